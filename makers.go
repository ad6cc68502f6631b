package kiln

import (
	"maps"
	"slices"
	"sync"

	"github.com/kiln-build/kiln/exporter/provenance"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// makers remembers which calls of frontends the graphs came from that clients were
// given, while the builds of those calls go on: a client may hand such a graph to
// another call, of the same build or of another, and the provenance of what that one
// makes tells of both. The zero value is ready for use. It is safe for concurrent use.
type makers struct {
	mu     sync.Mutex // guards what is below
	byEdge map[edgeKey][]*frontend.Call
}

// edgeKey names an edge in all builds, each of which has vertices of its own.
type edgeKey struct {
	vertex llb.Digest
	output int
}

// maxSameEdge bounds how many calls are kept of one graph, so that finding the maker
// stays cheap for clients that ask the same again and again.
const maxSameEdge = 64

func (m *makers) add(e llb.Edge, by *frontend.Call) edgeKey {
	key := edgeKey{e.Vertex.Digest(), e.Output}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.byEdge[key]) >= maxSameEdge {
		return key
	}
	if m.byEdge == nil {
		m.byEdge = map[edgeKey][]*frontend.Call{}
	}
	m.byEdge[key] = append(m.byEdge[key], by)
	return key
}

// find gives the call that made a graph. Calls that asked for other things may come to
// one graph: which of them it was is then not known.
func (m *makers) find(e llb.Edge) *frontend.Call {
	if e.IsScratch() {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	calls := m.byEdge[edgeKey{e.Vertex.Digest(), e.Output}]
	for i, c := range calls {
		if i > 0 && !sameCall(c, calls[0]) {
			return nil
		}
	}
	if len(calls) == 0 {
		return nil
	}
	return calls[0]
}

// sameCall reports whether two calls asked for the same.
func sameCall(a, b *frontend.Call) bool {
	return a == b || a.Frontend == b.Frontend && maps.Equal(provenance.Args(a.Opts), provenance.Args(b.Opts)) && maps.Equal(a.Makers, b.Makers)
}

func (m *makers) remove(key edgeKey, by *frontend.Call) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := slices.DeleteFunc(m.byEdge[key], func(c *frontend.Call) bool { return c == by })
	if len(left) == 0 {
		delete(m.byEdge, key)
	} else {
		m.byEdge[key] = left
	}
}

// attributed is a graph that a build has given its client.
type attributed struct {
	edge edgeKey
	by   *frontend.Call
}

// Attribute notes which call a graph came from. A function of a client's is nobody that
// a provenance could name.
func (b bridge) Attribute(e llb.Edge, by *frontend.Call) {
	if e.IsScratch() || by == nil || by.Frontend == "" {
		return
	}
	key := b.engine.makers.add(e, by)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.given = append(b.given, attributed{key, by})
}

// Maker gives the call that a graph came from.
func (b bridge) Maker(e llb.Edge) *frontend.Call { return b.engine.makers.find(e) }

// forgetGiven ends what others can learn of the build's graphs.
func (b *build) forgetGiven() {
	b.mu.Lock()
	given := b.given
	b.given = nil
	b.mu.Unlock()
	for _, g := range given {
		b.engine.makers.remove(g.edge, g.by)
	}
}

// maxMakers bounds how many calls one provenance tells of: calls that pass graphs on
// to each other twice each are soon more than anybody could list.
const maxMakers = 200

// inputsOf gives the requests that a call's inputs came from. sources say what
// addresses stood for; left is how many more there may be.
func inputsOf(call *frontend.Call, sources *provenance.Capture, left *int) map[string]*provenance.Request {
	var out map[string]*provenance.Request
	for _, name := range slices.Sorted(maps.Keys(call.Makers)) {
		if *left--; *left < 0 {
			break
		}
		maker := call.Makers[name]
		r := provenance.NewRequest(maker.Frontend, provenance.Args(maker.Opts), sources)
		r.Request.Inputs = inputsOf(maker, sources, left)
		if out == nil {
			out = map[string]*provenance.Request{}
		}
		out[name] = r
	}
	return out
}
