package worker

import (
	"context"
	"fmt"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
)

// ImageChain gives the chain of an image that a session has pinned. It brings no layer.
func (w *Worker) ImageChain(ctx context.Context, id solver.SessionID, v *llb.Vertex, pin string) (cache.ChainID, error) {
	op := v.Op().GetSource()
	if op == nil {
		return cache.ChainID{}, fmt.Errorf("vertex %s is no source", v.Digest())
	}
	s, err := w.source(op)
	if err != nil {
		return cache.ChainID{}, err
	}
	images, ok := s.(*imageSource)
	if !ok {
		return cache.ChainID{}, fmt.Errorf("%s is no image", op.Identifier)
	}
	job := &solver.Job{Vertex: v, Sessions: func() []solver.SessionID { return []solver.SessionID{id} }}
	return images.Chain(ctx, job, op, pin)
}
