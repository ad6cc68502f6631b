package solver

import (
	"context"
	"slices"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// twoOutputs is a step whose second output is a folder beside its root.
func twoOutputs(t *testing.T, on llb.Edge) *llb.Vertex {
	t.Helper()
	x := llb.Exec{Meta: step(t, "two").Vertex.Op().GetExec().Meta, Mounts: []llb.Mount{
		llb.Root(on), llb.BindWritable(llb.Edge{}, "", "/out", true),
	}}
	v, err := x.Vertex()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// lose makes all records of two outputs forget one of them.
func (f *fixture) lose(output int) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	for k, r := range f.c.records {
		if len(r.Outputs) == 2 {
			r.Outputs = []cache.ChainID{r.Outputs[0], r.Outputs[1]}
			r.Outputs[output] = cache.Absent
			f.c.records[k] = r
		}
	}
}

// A record that lacks an output answers those who do not ask for it.
func TestAbsentOutput(t *testing.T) {
	for _, c := range []struct {
		name   string
		ignore bool // the base runs again and comes out the same: a lookup by content
		ask    []int
		runs   int // of the step, in all
	}{
		{"the other one is asked for", false, []int{1}, 1},
		{"it is asked for", false, []int{0}, 2},
		{"both are asked for", false, []int{0, 1}, 2},
		{"by content, the other one", true, []int{1}, 1},
		{"by content, it", true, []int{0}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, Options{})
			v := twoOutputs(t, step(t, "base", source(t, "image")))
			want, err := f.Solve(context.Background(), Request{Edges: edges(v.Output(0), v.Output(1))})
			if err != nil {
				t.Fatal(err)
			}
			f.lose(0)
			if c.ignore {
				v = twoOutputs(t, fresh(t, "base", source(t, "image")))
			}
			var ask []llb.Edge
			for _, o := range c.ask {
				ask = append(ask, v.Output(o))
			}
			got, err := f.Solve(context.Background(), Request{Edges: ask})
			if err != nil {
				t.Fatal(err)
			}
			for i, o := range c.ask {
				if got[i] != want[o] {
					t.Errorf("output %d is %v, want %v", o, got[i], want[o])
				}
			}
			if f.w.ran("two") != c.runs {
				t.Errorf("ran %d times, want %d", f.w.ran("two"), c.runs)
			}
			// What ran has whole records again.
			if f.Solve(context.Background(), Request{Edges: edges(v.Output(0))}); f.w.ran("two") != 2 {
				t.Errorf("ran %d times in the end, want 2", f.w.ran("two"))
			}
		})
	}
}

// A build that comes to a step which a record of another output has solved, for a
// build that goes on, runs it, and disturbs nobody.
func TestAbsentOutputOfASharedTask(t *testing.T) {
	f := newFixture(t, Options{})
	v := twoOutputs(t, step(t, "base", source(t, "image")))
	f.w.constant["base"] = true
	want, err := f.Solve(context.Background(), Request{Edges: edges(v.Output(0), v.Output(1))})
	if err != nil {
		t.Fatal(err)
	}
	f.lose(0)
	reached, release := make(chan struct{}), make(chan struct{})
	f.w.onRun["reader"] = func(context.Context, *Job) error { close(reached); <-release; return nil }
	f.w.pins["image"] = "another" // what stands on it is found by content
	first := make(chan error, 1)
	go func() {
		_, err := f.Solve(context.Background(), Request{Edges: edges(step(t, "reader", v.Output(1)))})
		first <- err
	}()
	<-reached
	got, err := f.Solve(context.Background(), Request{Edges: edges(v.Output(0), v.Output(1))})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) || f.w.ran("two") != 2 {
		t.Errorf("got %v after %d runs, want %v after 2", got, f.w.ran("two"), want)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}
