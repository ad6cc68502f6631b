package solver

import (
	"testing"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
)

func TestPassthroughRunsNothing(t *testing.T) {
	f := newFixture(t, Options{})
	a, b := step(t, "a"), step(t, "b")
	v, err := llb.Passthrough("group", []llb.Edge{a, b}, []int{1})
	if err != nil {
		t.Fatal(err)
	}
	got := solve(t, f, Request{Edges: edges(v.Output(0))})
	if want := solve(t, f, Request{Edges: edges(b)}); got != want || f.w.ran("a") != 1 {
		t.Errorf("got %v after %v, want the output of b, and a run too", got, f.w.runs)
	}
}

func TestKeysLeaveOutWhatDoesNotMatter(t *testing.T) {
	exec := func(proxy, ip string) llb.Edge {
		x := llb.Exec{Meta: &pb.Meta{Args: []string{"a"}, ProxyEnv: &pb.ProxyEnv{HttpProxy: proxy}, ExtraHosts: []*pb.HostIP{{Host: "db", IP: ip}}}, Mounts: []llb.Mount{llb.Root(llb.Edge{})}}
		v, err := x.Vertex()
		if err != nil {
			t.Fatal(err)
		}
		return v.Output(0)
	}
	local := func(unique string) llb.Edge {
		v, err := llb.Source("local://context", map[string]string{pb.AttrLocalUniqueID: unique})
		if err != nil {
			t.Fatal(err)
		}
		return v.Output(0)
	}
	for _, row := range []struct {
		name string
		a, b llb.Edge
		same bool
	}{
		{"proxies and addresses", exec("p", "10.0.0.1"), exec("q", "10.0.0.2"), true},
		{"the client's own ids of a folder", local("1"), local("2"), true},
		{"arguments", step(t, "a"), step(t, "b"), false},
		{"inputs are not in the op's key", step(t, "a", source(t, "x")), step(t, "a", source(t, "y")), true},
		{"the name of an image", source(t, "x"), source(t, "y"), true},
	} {
		if got := keyOf(row.a.Vertex, new([]byte)) == keyOf(row.b.Vertex, new([]byte)); got != row.same {
			t.Errorf("%s: same key %v, want %v", row.name, got, row.same)
		}
	}
}
