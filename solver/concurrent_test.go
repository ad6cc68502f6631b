package solver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// gate makes the op of that name wait for open, or for its context's end.
func (f *fixture) gate(name string) (open func()) {
	ch := make(chan struct{})
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.onRun[name] = func(ctx context.Context, _ *Job) error {
		select {
		case <-ch:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return func() { close(ch) }
}

type result struct {
	chains []cache.ChainID
	err    error
}

func (f *fixture) start(ctx context.Context, r Request) <-chan result {
	ch := make(chan result, 1)
	go func() {
		out, err := f.Solve(ctx, r)
		ch <- result{out, err}
	}()
	return ch
}

func TestTwoBuildsShareARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		open := f.gate("shared")
		shared := step(t, "shared", source(t, "image"))
		var late recorder
		a := f.start(t.Context(), Request{Session: "a", Edges: edges(step(t, "a", shared))})
		synctest.Wait()
		b := f.start(t.Context(), Request{Session: "b", Edges: edges(step(t, "b", shared)), Observe: late.observe})
		synctest.Wait()
		late.has(t, "started shared")
		open()
		if ra, rb := <-a, <-b; ra.err != nil || rb.err != nil {
			t.Fatal(ra.err, rb.err)
		}
		if got := f.w.ran("shared"); got != 1 {
			t.Errorf("shared ran %d times, want 1", got)
		}
		late.has(t, "completed shared")
		f.EndSession("a")
		f.EndSession("b")
		f.Close()
	})
}

func TestSessionsOfASharedJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		var job *Job
		f.w.onRun["shared"] = func(ctx context.Context, j *Job) error {
			job = j
			<-ctx.Done()
			return context.Cause(ctx)
		}
		shared := step(t, "shared")
		ctxA, cancelA := context.WithCancel(t.Context())
		ctxB, cancelB := context.WithCancel(t.Context())
		a := f.start(ctxA, Request{Session: "a", Edges: edges(shared)})
		synctest.Wait()
		b := f.start(ctxB, Request{Session: "b", Edges: edges(shared)})
		synctest.Wait()
		if got := job.Sessions(); len(got) != 2 {
			t.Errorf("sessions %v, want both", got)
		}
		cancelA()
		<-a
		if got := job.Sessions(); !slices.Equal(got, []SessionID{"b"}) {
			t.Errorf("sessions %v, want b alone", got)
		}
		cancelB()
		<-b
		if got := job.Sessions(); len(got) == 0 {
			t.Error("no session, want the last one that was")
		}
		f.Close()
	})
}

func TestCancelOneOfTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		open := f.gate("shared")
		shared := step(t, "shared")
		ctx, cancel := context.WithCancelCause(t.Context())
		gaveUp := errors.New("gave up")
		a := f.start(ctx, Request{Edges: edges(step(t, "a", shared))})
		b := f.start(t.Context(), Request{Edges: edges(step(t, "b", shared))})
		synctest.Wait()
		cancel(gaveUp)
		if r := <-a; !errors.Is(r.err, gaveUp) {
			t.Errorf("the first build ended with %v, want the cause", r.err)
		}
		open()
		if r := <-b; r.err != nil {
			t.Errorf("the second build: %v", r.err)
		}
		if f.w.ran("shared") != 1 || f.w.ran("a") != 0 || f.w.ran("b") != 1 {
			t.Errorf("runs: %v", f.w.runs)
		}
		f.Close()
	})
}

func TestCancelBoth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		gaveUp := errors.New("gave up")
		var cause error
		f.w.onRun["shared"] = func(ctx context.Context, _ *Job) error {
			<-ctx.Done()
			time.Sleep(time.Second) // takes a while to stop
			cause = context.Cause(ctx)
			return cause
		}
		shared := step(t, "shared")
		ctx, cancel := context.WithCancelCause(t.Context())
		begun := time.Now()
		a := f.start(ctx, Request{Edges: edges(shared)})
		b := f.start(ctx, Request{Edges: edges(step(t, "b", shared))})
		synctest.Wait()
		cancel(gaveUp)
		<-a
		<-b
		if !errors.Is(cause, gaveUp) {
			t.Errorf("the worker saw the cause %v", cause)
		}
		if time.Since(begun) < time.Second {
			t.Error("both builds ended before what they alone wanted had stopped")
		}
		// A vertex that is being stopped is not joined.
		delete(f.w.onRun, "shared")
		solve(t, f, Request{Edges: edges(shared)})
		if len(f.tasks) != 0 {
			t.Errorf("%d tasks are left", len(f.tasks))
		}
		f.Close()
	})
}

func TestFailureLeavesOtherBuildsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		open := f.gate("shared")
		fail := make(chan struct{})
		f.w.onRun["bad"] = func(context.Context, *Job) error { <-fail; return errors.New("exit code 1") }
		shared := step(t, "shared")
		a := f.start(t.Context(), Request{Edges: edges(step(t, "a", shared, step(t, "bad")))})
		b := f.start(t.Context(), Request{Edges: edges(step(t, "b", shared))})
		synctest.Wait()
		close(fail)
		if r := <-a; r.err == nil {
			t.Error("the first build did not fail")
		}
		open()
		if r := <-b; r.err != nil || f.w.ran("shared") != 1 {
			t.Errorf("the second build: %v, with %d runs", r.err, f.w.ran("shared"))
		}
		f.Close()
	})
}

func TestIgnoreCache(t *testing.T) {
	f := newFixture(t, Options{})
	plain := step(t, "top", step(t, "middle", source(t, "image")))
	solve(t, f, Request{Edges: edges(plain)})
	// Run again though there is a record; what stands on it comes out the same.
	top := step(t, "top", fresh(t, "middle", source(t, "image")))
	solve(t, f, Request{Edges: edges(top)})
	if f.w.ran("middle") != 2 || f.w.ran("top") != 1 {
		t.Errorf("middle ran %d times, top %d; want 2 and 1", f.w.ran("middle"), f.w.ran("top"))
	}
	// What was run anew is what plain builds find.
	solve(t, f, Request{Edges: edges(plain)})
	if f.w.ran("middle") != 2 {
		t.Errorf("a plain build after it ran middle again")
	}
	// Within a session it is run once.
	solve(t, f, Request{Session: "s", Edges: edges(top)})
	solve(t, f, Request{Session: "s", Edges: edges(top)})
	if f.w.ran("middle") != 3 {
		t.Errorf("after two calls in one session middle had run %d times, want 3", f.w.ran("middle"))
	}
	f.EndSession("s")
}

func TestIgnoreCacheShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		open := f.gate("middle")
		ignoring, plain := fresh(t, "middle"), step(t, "middle")
		a := f.start(t.Context(), Request{Edges: edges(step(t, "top", ignoring))})
		b := f.start(t.Context(), Request{Edges: edges(step(t, "top", ignoring))})
		synctest.Wait()
		if got := f.w.ran("middle"); got != 1 {
			t.Errorf("two builds that ignore the cache ran it %d times, want 1", got)
		}
		c := f.start(t.Context(), Request{Edges: edges(step(t, "top", plain))})
		synctest.Wait()
		if got := f.w.ran("middle"); got != 2 {
			t.Errorf("with a plain build it ran %d times, want 2: they do not share", got)
		}
		open()
		for _, ch := range []<-chan result{a, b, c} {
			if r := <-ch; r.err != nil {
				t.Error(r.err)
			}
		}
		f.Close()
	})
}

// A build takes what another ran that ignores the cache too, where that was begun after
// it began itself, however late it comes to the vertex; and while the other goes on.
func TestIgnoreCacheSinceBegun(t *testing.T) {
	var now time.Time
	f := newFixture(t, Options{Clock: func() time.Time { now = now.Add(time.Second); return now }})
	e := fresh(t, "a")
	f.BeginSession("early")
	f.BeginSession("one")
	want := solve(t, f, Request{Session: "one", Edges: edges(e)})
	if got := solve(t, f, Request{Session: "early", Edges: edges(e)}); got != want || f.w.ran("a") != 1 {
		t.Errorf("a build that had begun got %v and not %v; it ran %d times, want 1", got, want, f.w.ran("a"))
	}
	f.BeginSession("late")
	solve(t, f, Request{Session: "late", Edges: edges(e)})
	if got := f.w.ran("a"); got != 2 {
		t.Errorf("for a build that began afterwards it ran %d times in all, want 2", got)
	}
	f.BeginSession("alone")
	f.EndSession("one")
	f.EndSession("early")
	f.EndSession("late")
	solve(t, f, Request{Session: "alone", Edges: edges(e)})
	if got := f.w.ran("a"); got != 3 {
		t.Errorf("when the others had ended it ran %d times in all, want 3", got)
	}
	f.EndSession("alone")
}

// Two vertices below one that ignore the cache are told apart: a build that wants
// only one of them anew must not take a result for which only the other one was.
func TestIgnoreCacheCoversWhich(t *testing.T) {
	a := newPlan(edges(step(t, "top", fresh(t, "x"), step(t, "y"))))
	b := newPlan(edges(step(t, "top", step(t, "x"), fresh(t, "y"))))
	c := newPlan(edges(step(t, "top", step(t, "x"), step(t, "y"))))
	for _, p := range []*plan{a, b, c} {
		p.makeKeys()
	}
	last := len(a.nodes) - 1
	if a.nodes[last].share == b.nodes[last].share {
		t.Error("both share a key")
	}
	if a.nodes[last].share == c.nodes[last].share || c.nodes[last].share != c.nodes[last].dk {
		t.Error("the plain vertex has a key that is not its definition key, or shares one")
	}
	if a.nodes[last].dk != c.nodes[last].dk {
		t.Error("ignoring the cache changed the definition key")
	}
}

func TestGoneLayerIsMadeAgain(t *testing.T) {
	f := newFixture(t, Options{})
	base := step(t, "base", source(t, "image"))
	old := solve(t, f, Request{Edges: edges(base)})
	f.w.missing[old] = true
	var r recorder
	got := solve(t, f, Request{Edges: edges(step(t, "top", base)), Observe: r.observe})
	if f.w.ran("base") != 2 || f.w.ran("top") != 1 {
		t.Errorf("base ran %d times, top %d; want 2 and 1 (%v)", f.w.ran("base"), f.w.ran("top"), got)
	}
	r.has(t, "warning top")
	r.has(t, "completed top")
}

func TestGoneForGood(t *testing.T) {
	f := newFixture(t, Options{})
	gone := &cache.GoneError{Layer: cache.LayerID{1}, Err: errors.New("deleted")}
	f.w.onRun["a"] = func(context.Context, *Job) error { return fmt.Errorf("mounting: %w", gone) }
	_, err := f.Solve(context.Background(), Request{Edges: edges(step(t, "a"))})
	if !errors.Is(err, error(gone)) || !strings.Contains(err.Error(), "times over") {
		t.Errorf("got %v, want it to give up", err)
	}
	if got := f.w.ran("a"); got != maxGoneSame+1 {
		t.Errorf("it was tried %d times, want %d", got, maxGoneSame+1)
	}
}

// A layer that an exporter found gone is forgotten with what a session remembers.
func TestForgetLayerOfASession(t *testing.T) {
	f := newFixture(t, Options{})
	e := fresh(t, "a")
	out := solve(t, f, Request{Session: "s", Edges: edges(e)})
	if err := f.ForgetLayer(cache.LayerID(out)); err != nil {
		t.Fatal(err)
	}
	solve(t, f, Request{Session: "s", Edges: edges(e)})
	if got := f.w.ran("a"); got != 2 {
		t.Errorf("ran %d times, want 2", got)
	}
	f.EndSession("s")
}

// While a layer is fetched anew, what runs beside it goes on.
func TestGoneLayerLeavesTheRestRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		base := step(t, "base")
		old := solve(t, f, Request{Edges: edges(base)})
		f.w.missing[old] = true
		open := f.gate("slow")
		ch := f.start(t.Context(), Request{Edges: edges(step(t, "top", step(t, "slow"), step(t, "reader", base)))})
		synctest.Wait()
		open()
		if r := <-ch; r.err != nil {
			t.Fatal(r.err)
		}
		if f.w.ran("slow") != 1 || f.w.ran("base") != 2 {
			t.Errorf("slow ran %d times, base %d; want 1 and 2", f.w.ran("slow"), f.w.ran("base"))
		}
		f.Close()
	})
}

func TestParallelismBoundsExecs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{Parallelism: 3})
		var leaves []llb.Edge
		for i := range 20 {
			name := fmt.Sprint("leaf", i)
			f.w.onRun[name] = func(context.Context, *Job) error { time.Sleep(time.Second); return nil }
			leaves = append(leaves, step(t, name))
		}
		begun := time.Now()
		solve(t, f, Request{Edges: edges(step(t, "top", leaves...))})
		if f.w.peak != 3 {
			t.Errorf("%d ran at once, want 3", f.w.peak)
		}
		if got := time.Since(begun); got != 7*time.Second {
			t.Errorf("20 steps of 1s, 3 at a time, took %v; want 7s", got)
		}
		f.Close()
	})
}

type mapDurations map[string][]byte

func (m mapDurations) Get(k []byte) ([]byte, bool) { v, ok := m[string(k)]; return v, ok }
func (m mapDurations) Put(k, v []byte) error       { m[string(k)] = v; return nil }

func TestLongestPathFirst(t *testing.T) {
	d := mapDurations{}
	f := newFixture(t, Options{Parallelism: 1, Durations: d})
	// b is short and followed by something long; a and c only look longer.
	a, b, c := step(t, "a"), step(t, "b"), step(t, "c")
	top := step(t, "top", a, step(t, "long", b), c)
	for name, s := range map[string]int{"a": 20, "b": 1, "c": 30, "long": 60, "top": 1} {
		for _, v := range llb.Walk(top) {
			if nameOf(v) == name {
				k := keyOf(v, new([]byte))
				d[string(k[:])] = binary.LittleEndian.AppendUint64(nil, uint64(time.Duration(s)*time.Second))
			}
		}
	}
	hold := f.gate("first")
	blocker := f.start(t.Context(), Request{Edges: edges(step(t, "first"))})
	for f.w.ran("first") == 0 {
		time.Sleep(time.Millisecond)
	}
	ch := f.start(t.Context(), Request{Edges: edges(top)})
	for ready := 0; ready < 3; {
		f.mu.Lock()
		ready = len(f.queues[classExec].ready)
		f.mu.Unlock()
	}
	hold()
	<-blocker
	if r := <-ch; r.err != nil {
		t.Fatal(r.err)
	}
	// When "long" comes to be ready depends on how fast its content is identified.
	got := slices.DeleteFunc(slices.Clone(f.w.order), func(name string) bool { return name == "long" })
	if want := []string{"first", "b", "c", "a", "top"}; !slices.Equal(got, want) {
		t.Errorf("ran in the order %v, want %v", got, want)
	}
}

func TestDurationsAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mapDurations{}
		f := newFixture(t, Options{Durations: d})
		f.w.onRun["a"] = func(context.Context, *Job) error { time.Sleep(7 * time.Second); return nil }
		e := step(t, "a", source(t, "image"))
		solve(t, f, Request{Edges: edges(e)})
		k := keyOf(e.Vertex, new([]byte))
		if got, ok := f.remembered(&node{vertex: e.Vertex, op: k}); !ok || got != 7*time.Second {
			t.Errorf("remembered %v, want 7s", got)
		}
		if len(d) != 1 {
			t.Errorf("%d durations are noted, want that of the step alone: the source took no time", len(d))
		}
		f.Close()
	})
}
