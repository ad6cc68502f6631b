package worker

import (
	"context"
	"fmt"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
)

// ImageChain gives the chain of an image that a session has pinned. It brings no layer.
func (w *Worker) ImageChain(ctx context.Context, id solver.SessionID, v *llb.Vertex, pin string) (cache.ChainID, error) {
	images, job, err := w.imageOf(id, v)
	if err != nil {
		return cache.ChainID{}, err
	}
	return images.Chain(ctx, job, v.Op().GetSource(), pin)
}

// ImageBlobs gives the blobs of the layers of an image that a session has pinned.
func (w *Worker) ImageBlobs(ctx context.Context, id solver.SessionID, v *llb.Vertex, pin string) ([]blob.Digest, error) {
	images, job, err := w.imageOf(id, v)
	if err != nil {
		return nil, err
	}
	img, err := images.resolved(ctx, job, v.Op().GetSource(), pin)
	if err != nil {
		return nil, err
	}
	return img.Blobs(), nil
}

func (w *Worker) imageOf(id solver.SessionID, v *llb.Vertex) (*imageSource, *solver.Job, error) {
	op := v.Op().GetSource()
	if op == nil {
		return nil, nil, fmt.Errorf("vertex %s is no source", v.Digest())
	}
	s, err := w.source(op)
	if err != nil {
		return nil, nil, err
	}
	images, ok := s.(*imageSource)
	if !ok {
		return nil, nil, fmt.Errorf("%s is no image", op.Identifier)
	}
	return images, &solver.Job{Vertex: v, Sessions: func() []solver.SessionID { return []solver.SessionID{id} }}, nil
}
