package source

import (
	"context"
	"sync"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/solver"
)

// flights are the layers that are on their way. Builds that want one layer share
// its flight; it is cancelled when the last of them has gone.
type flights struct {
	mu sync.Mutex
	m  map[cache.LayerID]*flight
}

// flight is one layer on its way.
type flight struct {
	done   chan struct{}
	cancel context.CancelFunc
	result pulled // once done is closed
	err    error

	mu      sync.Mutex // after flights.mu
	wanted  int        // guarded by flights.mu
	reports map[*Progress]struct{}
}

// do gives the result of fn, which runs once for all who want the layer at the
// same time. led says that it ran for this call.
func (f *flights) do(ctx context.Context, id cache.LayerID, report Progress, fn func(ctx context.Context, report Progress) (pulled, error)) (p pulled, led bool, err error) {
	f.mu.Lock()
	fl, ok := f.m[id]
	if !ok {
		// The flight goes on when the build that began it ends and another wants it.
		fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		fl = &flight{done: make(chan struct{}), cancel: cancel, reports: make(map[*Progress]struct{})}
		f.m[id] = fl
		go func() {
			defer cancel()
			fl.result, fl.err = fn(fctx, fl.report)
			f.mu.Lock()
			if f.m[id] == fl {
				delete(f.m, id)
			}
			f.mu.Unlock()
			close(fl.done)
		}()
	}
	fl.wanted++
	f.mu.Unlock()
	key := &report
	if report != nil {
		fl.mu.Lock()
		fl.reports[key] = struct{}{}
		fl.mu.Unlock()
	}
	select {
	case <-fl.done:
		f.leave(id, fl, key)
		return fl.result, !ok, fl.err
	case <-ctx.Done():
	}
	if f.leave(id, fl, key) {
		// Nobody else wants it: wait until nothing of it is left.
		<-fl.done
	}
	return pulled{}, !ok, context.Cause(ctx)
}

// leave says that a call wants a flight no more, and whether it was the last.
func (f *flights) leave(id cache.LayerID, fl *flight, key *Progress) (last bool) {
	fl.mu.Lock()
	delete(fl.reports, key)
	fl.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.wanted--; fl.wanted > 0 {
		return false
	}
	// Who comes now must not join what is being cancelled.
	if f.m[id] == fl {
		delete(f.m, id)
	}
	fl.cancel()
	return true
}

// report tells all who wait.
func (fl *flight) report(p solver.Progress) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for r := range fl.reports {
		(*r)(p)
	}
}
