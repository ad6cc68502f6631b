package kiln

import (
	"fmt"
	"testing"

	"github.com/kiln-build/kiln/exporter/provenance"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

func sourceEdge(t *testing.T, id string) llb.Edge {
	t.Helper()
	v, err := llb.Source(id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v.Output(0)
}

func TestMakers(t *testing.T) {
	var m makers
	e, other := sourceEdge(t, "local://a"), sourceEdge(t, "local://b")
	one := &frontend.Call{Frontend: "dockerfile.v0", Opts: map[string]string{"target": "a", "attest:sbom": ""}}
	same := &frontend.Call{Frontend: "dockerfile.v0", Opts: map[string]string{"target": "a"}}
	differs := &frontend.Call{Frontend: "dockerfile.v0", Opts: map[string]string{"target": "b"}}
	key := m.add(e, one)
	m.add(e, same)
	// Vertices are made anew for each build, and are the same graph all the same.
	if got := m.find(sourceEdge(t, "local://a")); got != one {
		t.Errorf("got %v, want the first of two calls that asked for the same", got)
	}
	if got := m.find(other); got != nil {
		t.Errorf("got %v for a graph that nobody made", got)
	}
	if got := m.find(llb.Edge{}); got != nil {
		t.Errorf("got %v for scratch", got)
	}
	m.add(e, differs)
	if got := m.find(e); got != nil {
		t.Errorf("got %v, want none of two calls that differ", got)
	}
	m.remove(key, differs)
	m.remove(key, one)
	if got := m.find(e); got != same {
		t.Errorf("got %v, want the call that is left", got)
	}
	m.remove(key, same)
	if len(m.byEdge) != 0 {
		t.Errorf("%d graphs are left", len(m.byEdge))
	}
}

// TestInputsOf bounds what calls come to that pass their results on twice each.
func TestInputsOf(t *testing.T) {
	call := &frontend.Call{Frontend: "first", Opts: map[string]string{"build-arg:URL": "http://me:hunter2@example.com"}}
	for i := range 50 {
		call = &frontend.Call{Frontend: fmt.Sprint("call ", i), Makers: map[string]*frontend.Call{"a": call, "b": call}}
	}
	left := maxMakers
	if n := countRequests(inputsOf(call, &provenance.Capture{}, &left)); n > maxMakers {
		t.Errorf("got %d requests, want %d at most", n, maxMakers)
	}
	left = maxMakers
	out := inputsOf(&frontend.Call{Makers: map[string]*frontend.Call{"in": {
		Frontend: "f", Opts: map[string]string{"target": "x", "platform": "linux/arm64"},
	}}}, &provenance.Capture{}, &left)
	if r := out["in"]; r == nil || r.Request.Frontend != "f" || r.Request.Args["target"] != "x" || r.Request.Args["platform"] != "" {
		t.Errorf("got %+v", out["in"])
	}
}

func countRequests(in map[string]*provenance.Request) int {
	n := len(in)
	for _, r := range in {
		n += countRequests(r.Request.Inputs)
	}
	return n
}
