package worker

import (
	"context"
	"fmt"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/solver"
	"github.com/moby/buildkit/solver/pb"
)

// maxChain is how many layers the result of a merge may have: as many as a chain of a
// remote cache, which could not be read again with more. Merging what was merged
// doubles them each time, so that 30 operations would come to a thousand million.
const maxChain = 10_000

// runMerge puts the layers of all inputs on the first one's chain, in order.
func (w *Worker) runMerge(ctx context.Context, job *solver.Job, op *pb.MergeOp) ([]cache.ChainID, error) {
	inputs, err := w.mergeInputs(ctx, job, op)
	if err != nil {
		return nil, err
	}
	var out cache.ChainID
	for _, id := range inputs {
		if out == (cache.ChainID{}) {
			out = id
			continue
		}
		layers, _, err := w.above(ctx, job, cache.ChainID{}, id)
		if err != nil {
			return nil, err
		}
		if out, err = w.stack(ctx, out, layers); err != nil {
			return nil, err
		}
	}
	return []cache.ChainID{out}, nil
}

// mergeInputs gives the chains that a merge is of, unless they are too many layers
// together.
func (w *Worker) mergeInputs(ctx context.Context, job *solver.Job, op *pb.MergeOp) ([]cache.ChainID, error) {
	ids := make([]cache.ChainID, len(op.Inputs))
	sum := 0
	for i, in := range op.Inputs {
		id, err := inputOf(job.Vertex, job.Inputs, in.Input)
		if err != nil {
			return nil, err
		}
		if ids[i], err = w.solid(ctx, job, id); err != nil {
			return nil, err
		}
		c, err := w.cache.Chain(ids[i])
		if err != nil {
			return nil, err
		}
		if sum += c.Depth; sum > maxChain {
			return nil, fmt.Errorf("merging %d inputs would make a file system of more than %d layers: merge fewer, or copy them into one", len(op.Inputs), maxChain)
		}
	}
	return ids, nil
}

// stack puts layers on a chain, bottom first.
func (w *Worker) stack(ctx context.Context, on cache.ChainID, layers []cache.LayerID) (cache.ChainID, error) {
	for _, l := range layers {
		if ctx.Err() != nil {
			return on, context.Cause(ctx)
		}
		var err error
		if on, err = w.cache.Extend(on, l); err != nil {
			return on, err
		}
	}
	return on, nil
}
