package solver

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/llb"
)

// graphs has build operations solve the graphs of their names.
func (f *fixture) graphs(of func(name string) llb.Edge) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.onRun["build"] = func(ctx context.Context, job *Job) error {
		e := of(job.Vertex.Op().GetBuild().Attrs[pb.AttrLLBDefinitionFilename])
		_, err := f.Solve(ctx, Request{Session: job.Sessions()[0], Edges: edges(e)})
		return err
	}
}

// nest makes a build operation whose graph has a name.
func nest(t testing.TB, name string, def llb.Edge) llb.Edge {
	t.Helper()
	v, err := llb.Build(def, map[string]string{pb.AttrLLBDefinitionFilename: name})
	if err != nil {
		t.Fatal(err)
	}
	return v.Output(0)
}

// A build operation runs once in a build, whatever the cache holds; what its graph has
// run, and what stands on it, is found.
func TestNestedGraph(t *testing.T) {
	f := newFixture(t, Options{})
	def := source(t, "def")
	f.graphs(func(string) llb.Edge { return step(t, "inner", source(t, "image")) })
	top := step(t, "top", nest(t, "g", def))
	for i, session := range []SessionID{"a", "b"} {
		for range 2 {
			solve(t, f, Request{Session: session, Edges: edges(top)})
		}
		f.EndSession(session)
		f.w.mu.Lock()
		got := [3]int{f.w.runs["build"], f.w.runs["inner"], f.w.runs["top"]}
		f.w.mu.Unlock()
		if want := [3]int{i + 1, 1, 1}; got != want {
			t.Errorf("after build %d the operation, its step and what stands on it ran %d times, want %d", i+1, got, want)
		}
	}
}

// Operations that wait for each other in a circle are an error, in one build and in
// several, and nothing hangs.
func TestNestedCircle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		def := source(t, "def")
		next := map[string]string{"itself": "itself", "ping": "pong", "pong": "ping"}
		f.graphs(func(name string) llb.Edge { return step(t, "on "+name, nest(t, next[name], def)) })
		if _, err := f.Solve(t.Context(), Request{Session: "a", Edges: edges(nest(t, "itself", def))}); !errors.Is(err, errCircle) {
			t.Errorf("an operation that needs itself: %v", err)
		}
		a := f.start(t.Context(), Request{Session: "a", Edges: edges(nest(t, "ping", def))})
		b := f.start(t.Context(), Request{Session: "b", Edges: edges(nest(t, "pong", def))})
		if ra, rb := <-a, <-b; !errors.Is(ra.err, errCircle) || !errors.Is(rb.err, errCircle) {
			t.Errorf("two builds whose operations need each other: %v and %v", ra.err, rb.err)
		}
		f.EndSession("a")
		f.EndSession("b")
		synctest.Wait()
	})
}

func TestNestedTooDeep(t *testing.T) {
	f := newFixture(t, Options{})
	def := source(t, "def")
	f.graphs(func(name string) llb.Edge {
		n, err := strconv.Atoi(name)
		if err != nil || n == 0 {
			return source(t, "bottom")
		}
		return nest(t, strconv.Itoa(n-1), def)
	})
	solve(t, f, Request{Session: "a", Edges: edges(nest(t, strconv.Itoa(MaxBuilds-1), def))})
	_, err := f.Solve(t.Context(), Request{Session: "b", Edges: edges(nest(t, strconv.Itoa(MaxBuilds), def))})
	if err == nil || !strings.Contains(err.Error(), "deep") {
		t.Errorf("one more than the bound: %v", err)
	}
}
