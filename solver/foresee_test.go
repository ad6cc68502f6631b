package solver

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// fetcher is a fake worker to which chains can be brought.
type fetcher struct {
	*fakeWorker
	// began is told of the chains that are fetched, ended of how that ended. A fetch
	// lasts until open is closed or its context ends.
	began chan cache.ChainID
	ended chan error
	open  chan struct{}
}

func (f *fetcher) Fetch(ctx context.Context, _ *Job, chain cache.ChainID) error {
	f.began <- chain
	var err error
	select {
	case <-f.open:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	f.ended <- err
	return err
}

func newFetcherFixture(t *testing.T) (*fixture, *fetcher) {
	c := newFakeCache()
	w := &fetcher{newFakeWorker(c), make(chan cache.ChainID, 10), make(chan error, 10), make(chan struct{})}
	f := &fixture{New(c, w, Options{}), c, w.fakeWorker}
	t.Cleanup(f.Close)
	return f, w
}

// twoStages is a graph of a step that reads what an earlier build may have made of its
// tools, and what a compiler makes of a source.
func twoStages(t *testing.T) (tools, top llb.Edge) {
	tools = step(t, "tools", source(t, "base"))
	compile := step(t, "compile", source(t, "src"))
	return tools, step(t, "top", tools, compile)
}

func TestFetchAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFetcherFixture(t)
		tools, top := twoStages(t)
		chain := solve(t, f, Request{Edges: edges(tools)})
		open := f.gate("compile")
		done := f.start(t.Context(), Request{Edges: edges(top)})
		synctest.Wait()
		select {
		case got := <-w.began:
			if got != chain {
				t.Errorf("fetched %v, want the tools, %v", got, chain)
			}
		default:
			t.Error("nothing is fetched while the compiler runs, want the tools")
		}
		close(w.open)
		open()
		if r := <-done; r.err != nil {
			t.Error(r.err)
		}
		if n := len(w.began); n > 0 {
			t.Errorf("%d more chains were fetched, want none", n)
		}
	})
}

// A base image of a later stage is known once its source is solved.
func TestFetchAheadOfASource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFetcherFixture(t)
		close(w.open)
		open, base := f.gate("compile"), f.gate("base")
		done := f.start(t.Context(), Request{Edges: edges(step(t, "top", source(t, "base"), step(t, "compile")))})
		synctest.Wait()
		if n := len(w.began); n > 0 {
			t.Errorf("%d chains were fetched, want none: the base is not known yet", n)
		}
		base()
		synctest.Wait()
		if n := len(w.began); n != 1 {
			t.Errorf("%d chains were fetched, want the base", n)
		}
		open()
		if r := <-done; r.err != nil {
			t.Error(r.err)
		}
	})
}

// What is known to be needed no more is not fetched on, and Solve waits for the end of it.
func TestFetchAheadInVain(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(cancel, open func())
	}{
		{"the compiler gives what it gave before", func(_, open func()) { open() }},
		{"the build is cancelled", func(cancel, _ func()) { cancel() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, w := newFetcherFixture(t)
				w.constant["compile"] = true
				_, top := twoStages(t)
				solveAside(t, f, top, w)
				f.w.pins["src"] = "edited"
				open := f.gate("compile")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := f.start(ctx, Request{Edges: edges(top)})
				synctest.Wait()
				if n := len(w.began); n != 1 {
					t.Fatalf("%d chains are fetched, want one", n)
				}
				tt.end(cancel, open)
				<-done
				select {
				case err := <-w.ended:
					if err == nil {
						t.Error("the fetch came to its end, want it cancelled")
					}
				default:
					t.Error("the fetch goes on after Solve has returned")
				}
				if got := f.w.ran("top"); got != 1 {
					t.Errorf("top ran %d times, want once, in the first build", got)
				}
			})
		})
	}
}

// Before a process runs, all may still turn out to be as it was.
func TestNothingFetchedWithoutAProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := newFetcherFixture(t)
		tools := step(t, "tools", source(t, "base"))
		solve(t, f, Request{Edges: edges(tools)})
		open := f.gate("src")
		done := f.start(t.Context(), Request{Edges: edges(step(t, "top", tools, source(t, "src")))})
		synctest.Wait()
		open()
		if r := <-done; r.err != nil {
			t.Error(r.err)
		}
		if n := len(w.began); n > 0 {
			t.Errorf("%d chains were fetched, want none", n)
		}
	})
}

// solveAside solves an edge for the first time, with a fetcher that is at hand at once.
func solveAside(t *testing.T, f *fixture, e llb.Edge, w *fetcher) {
	t.Helper()
	hold := w.open
	w.open = make(chan struct{})
	close(w.open)
	solve(t, f, Request{Edges: edges(e)})
	w.open = hold
	for len(w.began) > 0 {
		<-w.began
		<-w.ended
	}
}
