package kiln

import (
	"errors"

	"github.com/kiln-build/kiln/frontend/dockerfile"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
)

// placed gives the failure of a vertex with the lines that it was compiled from,
// and with what the build description itself says of the cause.
func (b *build) placed(err error) error {
	var failed *solver.VertexError
	if !errors.As(err, &failed) || len(failed.Locations) == 0 {
		return err
	}
	e := &dockerfile.Error{File: failed.Locations[0].File, Err: failed}
	for _, l := range failed.Locations {
		if l.File == e.File {
			e.Lines = append(e.Lines, dockerfile.Lines{Start: l.Start, End: l.End})
		}
	}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		e.Hint = hinted.Hint()
	}
	var missing *worker.NotFoundError
	if v := b.vertex(failed.Vertex); v != nil && errors.As(err, &missing) {
		if hint, ok := dockerfile.Explain(v, missing.Path); ok {
			e.Hint = hint
		}
	}
	return e
}

// vertex finds a step of the build's graph.
func (b *build) vertex(d llb.Digest) *llb.Vertex {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.steps[d]
}
