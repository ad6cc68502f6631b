package worker

import (
	"context"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/solver"
	"github.com/moby/buildkit/solver/pb"
)

// runMerge puts the layers of all inputs on the first one's chain, in order.
func (w *Worker) runMerge(ctx context.Context, job *solver.Job, op *pb.MergeOp) ([]cache.ChainID, error) {
	var out cache.ChainID
	for _, in := range op.Inputs {
		id, err := inputOf(job.Vertex, job.Inputs, in.Input)
		if err != nil {
			return nil, err
		}
		if id, err = w.solid(ctx, job, id); err != nil {
			return nil, err
		}
		if out == (cache.ChainID{}) {
			out = id
			continue
		}
		layers, _, err := w.above(ctx, job, cache.ChainID{}, id)
		if err != nil {
			return nil, err
		}
		for _, l := range layers {
			if out, err = w.cache.Extend(out, l); err != nil {
				return nil, err
			}
		}
	}
	return []cache.ChainID{out}, nil
}
