package solver

import (
	"context"
	"errors"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// peeker is a fake worker that can look ahead.
type peeker struct{ *fakeWorker }

func (p peeker) Standing(_ context.Context, job *Job) (cache.ChainID, bool, error) {
	return p.result(nameOf(job.Vertex), job, 0), true, nil
}

func (p peeker) Peek(ctx context.Context, job *Job, input int) (cache.ContentID, bool, error) {
	id, err := p.Content(ctx, job, input)
	return id, true, err
}

// told gives what a report says of each vertex, by name.
func told(steps []Step) map[string]Step {
	out := map[string]Step{}
	for _, s := range steps {
		out[nameOf(s.Vertex)] = s
	}
	return out
}

func reported(t *testing.T, f *fixture, e ...llb.Edge) map[string]Step {
	t.Helper()
	var out map[string]Step
	_, err := f.Solve(context.Background(), Request{Edges: e, Report: func(s []Step) { out = told(s) }})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func previewed(t *testing.T, f *fixture, e ...llb.Edge) map[string]Step {
	t.Helper()
	var out map[string]Step
	if err := f.Preview(context.Background(), Request{Edges: e, Report: func(s []Step) { out = told(s) }}); err != nil {
		t.Fatal(err)
	}
	return out
}

// expect checks outcomes and what answered.
func expect(t *testing.T, got map[string]Step, name string, outcome Outcome, basis Basis) {
	t.Helper()
	s, ok := got[name]
	if !ok {
		t.Errorf("the report says nothing of %s", name)
	} else if s.Outcome != outcome || s.Basis != basis {
		t.Errorf("%s: got outcome %d by %d, want %d by %d", name, s.Outcome, s.Basis, outcome, basis)
	}
}

func TestReport(t *testing.T) {
	f := newFixture(t, Options{})
	f.w.constant["middle"] = true
	graph := func() llb.Edge { return step(t, "top", step(t, "middle", step(t, "bottom", source(t, "image")))) }

	got := reported(t, f, graph())
	for _, name := range []string{"bottom", "middle", "top"} {
		expect(t, got, name, Ran, NoBasis)
	}
	if got["image"].Pin == "" || len(got["top"].Contents) != 1 || len(got["top"].Outputs) != 1 {
		t.Errorf("a pin, contents or outputs are missing: %+v", got)
	}

	got = reported(t, f, graph())
	expect(t, got, "top", Hit, ByDefinition)
	expect(t, got, "middle", Unneeded, NoBasis)
	if got["top"].Key != got["top"].Definition {
		t.Errorf("the key of a hit by definition is %s, want %s", got["top"].Key, got["top"].Definition)
	}

	// The image moves. What reads "middle" sees what it saw before.
	f.w.pins["image"] = "2"
	got = reported(t, f, graph())
	expect(t, got, "bottom", Ran, NoBasis)
	expect(t, got, "middle", Ran, NoBasis)
	expect(t, got, "top", Hit, ByContent)
	if got["top"].Key == got["top"].Definition {
		t.Error("the key of a hit by content is its definition key")
	}
}

func TestReportOfFailure(t *testing.T) {
	f := newFixture(t, Options{})
	f.w.onRun["bad"] = func(context.Context, *Job) error { return errors.New("no") }
	var got map[string]Step
	_, err := f.Solve(context.Background(), Request{
		Edges:  edges(step(t, "after", step(t, "bad", step(t, "good")))),
		Report: func(s []Step) { got = told(s) },
	})
	if err == nil {
		t.Fatal("the build did not fail")
	}
	expect(t, got, "good", Ran, NoBasis)
	expect(t, got, "bad", Failed, NoBasis)
	expect(t, got, "after", Pending, NoBasis)
}

func TestReportTellsOfWhatRanBeforeALayerWasGone(t *testing.T) {
	f := newFixture(t, Options{})
	first := true
	var below cache.ChainID
	f.w.onRun["top"] = func(_ context.Context, job *Job) error {
		if !first {
			return nil
		}
		first, below = false, job.Inputs[0]
		return &cache.GoneError{Layer: cache.LayerID(below), Err: errors.New("deleted")}
	}
	got := reported(t, f, step(t, "top", step(t, "bottom"), step(t, "beside", step(t, "under"))))
	// It was run twice, the steps beside it once, of which the second attempt looks at
	// the upper one only: all ran.
	for _, name := range []string{"bottom", "under", "beside", "top"} {
		expect(t, got, name, Ran, NoBasis)
	}
}

func TestPreview(t *testing.T) {
	f := newFixture(t, Options{})
	looking := New(f.c, peeker{f.w}, Options{})
	t.Cleanup(looking.Close)
	ahead := &fixture{looking, f.c, f.w}
	f.w.constant["middle"] = true
	graph := func(bottom string) llb.Edge {
		return step(t, "top", step(t, "middle", step(t, bottom, source(t, "image"))))
	}
	got := previewed(t, ahead, graph("bottom"))
	expect(t, got, "bottom", WouldRun, NoBasis)
	expect(t, got, "middle", MightRun, NoBasis)
	expect(t, got, "top", MightRun, NoBasis)
	for _, name := range []string{"image", "bottom", "middle", "top"} {
		if n := f.w.ran(name); n != 0 {
			t.Errorf("%s ran %d times in a preview", name, n)
		}
	}

	reported(t, f, graph("bottom"))
	got = previewed(t, ahead, graph("bottom"))
	expect(t, got, "top", Hit, ByDefinition)
	expect(t, got, "bottom", Unneeded, NoBasis)

	// Two images that are of one content to the step above them.
	e := step(t, "reads", step(t, "constant", source(t, "image")))
	f.w.constant["constant"] = true
	reported(t, f, e)
	f.w.pins["image"] = "2"
	reported(t, f, step(t, "constant", source(t, "image")))
	got = previewed(t, ahead, e)
	expect(t, got, "reads", Hit, ByContent)
	expect(t, got, "constant", Hit, ByDefinition)

	// What ignores the cache runs, and what stands on it may.
	got = previewed(t, ahead, step(t, "top", fresh(t, "anew", source(t, "image"))))
	expect(t, got, "anew", WouldRun, NoBasis)
	expect(t, got, "top", MightRun, NoBasis)
	if !got["top"].Fresh {
		t.Error("what stands on a step that runs anew is not fresh")
	}

	// A worker that cannot look ahead leaves open what is found by content.
	got = previewed(t, f, step(t, "new", source(t, "image")))
	expect(t, got, "new", MightRun, NoBasis)
}
