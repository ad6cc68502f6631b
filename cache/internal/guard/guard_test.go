package guard

import (
	"sync"
	"sync/atomic"
	"testing"
)

func object(n byte) *[32]byte { return &[32]byte{n, n, n, n, 31: n} }

func (g *Guard) sweeps(t *testing.T, n byte) bool {
	t.Helper()
	ran := false
	swept, err := g.Sweep(object(n), func() error { ran = true; return nil })
	if err != nil || swept != ran {
		t.Errorf("swept %v, ran %v, %v", swept, ran, err)
	}
	return swept
}

func TestLeases(t *testing.T) {
	var g Guard
	g.Touch(object(1))
	if !g.sweeps(t, 1) {
		t.Error("kept though no lease was open")
	}
	end1 := g.Begin()
	g.Touch(object(1))
	if g.sweeps(t, 1) {
		t.Error("swept under the lease that used it")
	}
	if !g.sweeps(t, 2) {
		t.Error("kept though nobody used it")
	}

	// A second lease overlaps the first, after a sweep.
	g.Renew()
	end2 := g.Begin()
	g.Touch(object(3))
	if g.sweeps(t, 1) || g.sweeps(t, 3) {
		t.Error("swept under the leases that used it")
	}
	end1()
	end1() // the second call does nothing
	if !g.sweeps(t, 1) {
		t.Error("kept by a lease that began after its use")
	}
	if g.sweeps(t, 3) {
		t.Error("swept under the second lease")
	}
	end2()
	if !g.sweeps(t, 3) {
		t.Error("kept when no lease is open")
	}
	g.Renew()
	if g.newest.Load() != nil || len(g.gens) != 0 {
		t.Error("something is left after a sweep without leases")
	}
}

func TestRenewWithoutLeases(t *testing.T) {
	var g Guard
	g.Renew()
	for range 100 {
		end := g.Begin()
		g.Renew()
		g.Renew()
		if len(g.gens) > 2 {
			t.Fatalf("%d generations for one lease", len(g.gens))
		}
		end()
	}
	if len(g.gens) != 1 {
		t.Errorf("%d generations are left", len(g.gens))
	}
}

// TestPresenceIsTrue looks for an object, under leases, that another goroutine
// sweeps and that is put again: what was found must not go before the lease ends.
func TestPresenceIsTrue(t *testing.T) {
	var g Guard
	var here atomic.Bool
	stop := make(chan struct{})
	var sweeper, users sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				g.Renew()
				_, _ = g.Sweep(object(1), func() error { here.Store(false); return nil })
			}
		}
	})
	for range 4 {
		users.Go(func() {
			for range 5000 {
				end := g.Begin()
				lock := g.Use(object(1))
				if !here.Load() {
					here.Store(true)
				}
				lock.RUnlock()
				for range 3 {
					if !here.Load() {
						t.Error("it went under the lease")
						end()
						return
					}
				}
				end()
			}
		})
	}
	users.Wait()
	close(stop)
	sweeper.Wait()
}

func BenchmarkUse(b *testing.B) {
	var g Guard
	defer g.Begin()()
	b.RunParallel(func(pb *testing.PB) {
		id := *object(1)
		for pb.Next() {
			id[31]++
			g.Use(&id).RUnlock()
		}
	})
}
