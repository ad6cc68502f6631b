package solver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/llb"
)

func edges(e ...llb.Edge) []llb.Edge { return e }

func TestDiamondRunsEachVertexOnce(t *testing.T) {
	f := newFixture(t, Options{})
	base := step(t, "base", source(t, "image"))
	top := step(t, "top", step(t, "left", base), step(t, "right", base))
	var r recorder
	first := solve(t, f, Request{Edges: edges(top), Observe: r.observe})
	for _, name := range []string{"image", "base", "left", "right", "top"} {
		if got := f.w.ran(name); got != 1 {
			t.Errorf("%s ran %d times, want 1", name, got)
		}
		r.has(t, "completed "+name)
	}

	var again recorder
	second := solve(t, f, Request{Edges: edges(top), Observe: again.observe})
	if first != second {
		t.Error("the second result differs")
	}
	for _, name := range []string{"image", "base", "left", "right", "top"} {
		if got := f.w.ran(name); got != 1 {
			t.Errorf("after the second build %s had run %d times, want 1", name, got)
		}
		if name != "image" { // a source was told of when it was pinned
			again.has(t, "cached "+name)
		}
	}
}

func TestHitEndsTheDescent(t *testing.T) {
	f := newFixture(t, Options{})
	e := source(t, "image")
	for _, name := range []string{"a", "b", "c", "d"} {
		e = step(t, name, e)
	}
	solve(t, f, Request{Edges: edges(e)})
	before := f.c.lookups
	solve(t, f, Request{Edges: edges(e)})
	if got := f.c.lookups - before; got != 1 {
		t.Errorf("%d lookups, want 1: that of the target", got)
	}
}

func TestScratchIsATarget(t *testing.T) {
	f := newFixture(t, Options{})
	out, err := f.Solve(context.Background(), Request{Edges: edges(llb.Edge{}, step(t, "a"))})
	if err != nil {
		t.Fatal(err)
	}
	var zero [32]byte
	if out[0] != zero || out[1] == zero {
		t.Errorf("got %v, want scratch and a chain", out)
	}
}

func TestSeveralOutputs(t *testing.T) {
	f := newFixture(t, Options{})
	x := llb.Exec{Meta: step(t, "two").Vertex.Op().GetExec().Meta, Mounts: []llb.Mount{
		llb.Root(source(t, "image")), llb.BindWritable(llb.Edge{}, "", "/out", true),
	}}
	v, err := x.Vertex()
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.Solve(context.Background(), Request{Edges: edges(v.Output(0), v.Output(1), step(t, "reader", v.Output(1)))})
	if err != nil {
		t.Fatal(err)
	}
	if out[0] == out[1] || f.w.ran("two") != 1 {
		t.Errorf("outputs %v after %d runs, want two outputs of one run", out, f.w.ran("two"))
	}
}

func TestPinChangesTheKey(t *testing.T) {
	f := newFixture(t, Options{})
	top := step(t, "top", source(t, "image"))
	first := solve(t, f, Request{Edges: edges(top)})
	f.w.pins["image"] = "2"
	second := solve(t, f, Request{Edges: edges(top)})
	if first == second || f.w.ran("top") != 2 {
		t.Errorf("top ran %d times, want 2, with other results", f.w.ran("top"))
	}
}

func TestSessionPinsOnce(t *testing.T) {
	f := newFixture(t, Options{})
	top := step(t, "top", source(t, "image"))
	solve(t, f, Request{Session: "s", Edges: edges(top)})
	f.w.pins["image"] = "2"
	solve(t, f, Request{Session: "s", Edges: edges(top)})
	if got := f.w.ran("top"); got != 1 {
		t.Errorf("within the session, top ran %d times, want 1", got)
	}
	f.EndSession("s")
	solve(t, f, Request{Session: "s", Edges: edges(top)})
	if got := f.w.ran("top"); got != 2 {
		t.Errorf("after the session, top had run %d times, want 2", got)
	}
}

func TestRebuiltInputThatCameOutTheSame(t *testing.T) {
	f := newFixture(t, Options{})
	f.w.constant["generate"] = true
	top := step(t, "top", step(t, "generate", source(t, "image")))
	solve(t, f, Request{Edges: edges(top)})
	f.w.pins["image"] = "2"
	var r recorder
	solve(t, f, Request{Edges: edges(top), Observe: r.observe})
	if f.w.ran("generate") != 2 || f.w.ran("top") != 1 {
		t.Errorf("generate ran %d times, top %d; want 2 and 1", f.w.ran("generate"), f.w.ran("top"))
	}
	r.has(t, "cached top")
	// The definition key leads to the record now, so that nothing is run at all.
	before := len(f.w.order)
	solve(t, f, Request{Edges: edges(top)})
	if got := f.w.order[before:]; len(got) != 0 {
		t.Errorf("the third build ran %v", got)
	}
}

func TestFailureInOneBranch(t *testing.T) {
	f := newFixture(t, Options{})
	boom := errors.New("exit code 1")
	cancelled := make(chan struct{})
	slowRuns := make(chan struct{})
	f.w.onRun["slow"] = func(ctx context.Context, _ *Job) error {
		close(slowRuns)
		<-ctx.Done()
		close(cancelled)
		return context.Cause(ctx)
	}
	f.w.onRun["bad"] = func(context.Context, *Job) error {
		<-slowRuns
		return boom
	}
	bad := step(t, "bad")
	top := step(t, "top", step(t, "slow"), bad)
	var r recorder
	_, err := f.Solve(context.Background(), Request{Edges: edges(top), Observe: r.observe})
	for _, e := range r.events {
		if c, ok := e.(VertexCompleted); ok && (c.Name == "slow") != errors.Is(c.Err, context.Canceled) {
			t.Errorf("%s completed with %v", c.Name, c.Err)
		}
	}
	var ve *VertexError
	if !errors.As(err, &ve) || ve.Name != "bad" || ve.Vertex != bad.Vertex.Digest() || !errors.Is(err, boom) {
		t.Fatalf("got %v, want the failure of bad", err)
	}
	if strings.Count(err.Error(), "bad") != 1 {
		t.Errorf("%q names the vertex more than once", err)
	}
	select {
	case <-cancelled:
	default:
		t.Error("Solve returned before the other branch had stopped")
	}
	if f.w.ran("top") != 0 {
		t.Error("top ran without its input")
	}
	// A failure is not remembered.
	delete(f.w.onRun, "bad")
	delete(f.w.onRun, "slow")
	solve(t, f, Request{Edges: edges(top)})
	if got := f.w.ran("bad"); got != 2 {
		t.Errorf("bad ran %d times, want 2", got)
	}
}

func TestPinFailureNamesTheVertex(t *testing.T) {
	f := newFixture(t, Options{})
	f.w.onPin["image"] = func(context.Context, *Job) error { return errors.New("no such host") }
	_, err := f.Solve(context.Background(), Request{Edges: edges(step(t, "top", source(t, "image")))})
	var ve *VertexError
	if !errors.As(err, &ve) || ve.Name != "image" {
		t.Errorf("got %v, want the failure of image", err)
	}
}

func TestPanickingWorkerIsAnError(t *testing.T) {
	f := newFixture(t, Options{})
	f.w.onRun["a"] = func(context.Context, *Job) error { panic("at the disco") }
	_, err := f.Solve(context.Background(), Request{Edges: edges(step(t, "a"))})
	if err == nil || !strings.Contains(err.Error(), "at the disco") {
		t.Errorf("got %v, want the panic", err)
	}
}

func TestWrongNumberOfOutputsInARecordIsAMiss(t *testing.T) {
	f := newFixture(t, Options{})
	e := step(t, "a")
	solve(t, f, Request{Edges: edges(e)})
	for k, r := range f.c.records {
		r.Outputs = nil
		f.c.records[k] = r
	}
	var r recorder
	solve(t, f, Request{Edges: edges(e), Observe: r.observe})
	if got := f.w.ran("a"); got != 2 {
		t.Errorf("ran %d times, want 2", got)
	}
	started := r.events[slices.IndexFunc(r.events, func(e Event) bool { _, ok := e.(VertexStarted); return ok })]
	if why := started.(VertexStarted).Why; !strings.Contains(why, "0 outputs") {
		t.Errorf("the start says %q, want the reason of the miss", why)
	}
}

func TestFailingStoreIsAWarning(t *testing.T) {
	f := newFixture(t, Options{})
	f.c.fail = errors.New("disk full")
	var r recorder
	solve(t, f, Request{Edges: edges(step(t, "a")), Observe: r.observe})
	r.has(t, "warning a")
	r.has(t, "completed a")
}

func TestClosedSolver(t *testing.T) {
	f := newFixture(t, Options{})
	running := make(chan struct{})
	f.w.onRun["a"] = func(ctx context.Context, _ *Job) error {
		close(running)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	ended := make(chan error)
	go func() {
		_, err := f.Solve(context.Background(), Request{Edges: edges(step(t, "a"))})
		ended <- err
	}()
	<-running
	go f.Close()
	if err := <-ended; !errors.Is(err, errClosed) {
		t.Errorf("the build under way ended with %v", err)
	}
	if _, err := f.Solve(context.Background(), Request{}); !errors.Is(err, errClosed) {
		t.Errorf("a build after Close ended with %v", err)
	}
}
