package solver

import (
	"testing"
	"testing/synctest"

	"github.com/kiln-build/kiln/cache"
)

// lookingAfar gives a solver whose cache is empty, and one of whose sessions knows of
// the records of from's cache.
func lookingAfar(t *testing.T, from *fixture, session SessionID) (f *fixture) {
	t.Helper()
	f = newFixture(t, Options{Lookup: func(id SessionID, k cache.Key) (cache.Record, error) {
		r, err := f.c.Lookup(k)
		if err != nil && id == session {
			return from.c.Lookup(k)
		}
		return r, err
	}})
	return f
}

func TestLookupsAreOnBehalfOfASession(t *testing.T) {
	afar := newFixture(t, Options{})
	image := source(t, "image")
	step := step(t, "step", image)
	solve(t, afar, Request{Edges: edges(step)})
	f := lookingAfar(t, afar, "told")
	solve(t, f, Request{Session: "other", Edges: edges(image)}) // pins it
	if known := f.Known("other", step); len(known) != 0 {
		t.Errorf("the other session knows %v", known)
	}
	expect(t, previewed(t, f, step), "step", MightRun, NoBasis)
	solve(t, f, Request{Session: "told", Edges: edges(step)})
	if n := f.w.ran("step"); n != 0 {
		t.Errorf("for the session that knows of the record the step ran %d times", n)
	}
	if known := f.Known("told", step); len(known) != 1 {
		t.Errorf("the session that knows of the record knows %v", known)
	}
	solve(t, f, Request{Session: "other", Edges: edges(step)})
	if n := f.w.ran("step"); n != 1 {
		t.Errorf("for the other session the step ran %d times, want 1", n)
	}
}

// A step that several builds wait for is looked up by content on behalf of each.
func TestLookupOfASharedTask(t *testing.T) {
	for _, c := range []struct {
		sessions []SessionID
		ran      int
	}{
		{[]SessionID{"other"}, 1},
		{[]SessionID{"other", "told"}, 0},
		{[]SessionID{"told", "other"}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			afar := newFixture(t, Options{})
			afar.w.constant["below"] = true
			afar.w.pins["image"] = "1"
			step := step(t, "step", step(t, "below", source(t, "image")))
			solve(t, afar, Request{Edges: edges(step)})
			f := lookingAfar(t, afar, "told")
			f.w.constant["below"] = true
			f.w.pins["image"] = "2"
			open := f.gate("below")
			var ends []<-chan result
			for _, id := range c.sessions {
				ends = append(ends, f.start(t.Context(), Request{Session: id, Edges: edges(step)}))
				synctest.Wait()
			}
			open()
			for _, end := range ends {
				if r := <-end; r.err != nil {
					t.Error(r.err)
				}
			}
			if n := f.w.ran("step"); n != c.ran {
				t.Errorf("for %v the step ran %d times, want %d", c.sessions, n, c.ran)
			}
			afar.Close()
			f.Close()
		})
	}
}
