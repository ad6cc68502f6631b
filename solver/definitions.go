package solver

import (
	"context"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// Definition is a vertex with what its record is found under.
type Definition struct {
	Vertex *llb.Vertex
	Key    cache.Key // the definition key
	op     opKey
}

// ContentKey gives the content key of the vertex, had it seen this of its inputs.
func (d Definition) ContentKey(inputs []cache.ContentID) cache.Key { return contentKey(d.op, inputs) }

// Definitions gives those of all vertices that edges reach but the sources, inputs
// first. Sources are pinned unless the session has pinned them.
func (s *Solver) Definitions(ctx context.Context, session SessionID, edges ...llb.Edge) ([]Definition, error) {
	b, err := s.open(Request{Session: session})
	if err != nil {
		return nil, err
	}
	defer s.finish(b)
	p := newPlan(edges)
	if err := s.pinAll(ctx, b, p); err != nil {
		return nil, err
	}
	p.makeKeys()
	var out []Definition
	for i := range p.nodes {
		if n := &p.nodes[i]; n.vertex.Kind() != "source" {
			out = append(out, Definition{Vertex: n.vertex, Key: n.dk, op: n.op})
		}
	}
	return out, nil
}
