package worker

import (
	"context"
	"slices"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/solver"
	"github.com/moby/buildkit/solver/pb"
)

// runDiff gives what leads from the lower input to the upper one: the layers that
// the upper has on top of the lower, where it is made so, and needs nothing
// unpacked then; otherwise one layer, the difference of the two states.
func (w *Worker) runDiff(ctx context.Context, job *solver.Job, op *pb.DiffOp) ([]cache.ChainID, error) {
	lower, err := inputOf(job.Vertex, job.Inputs, op.GetLower().GetInput())
	if err != nil {
		return nil, err
	}
	upper, err := inputOf(job.Vertex, job.Inputs, op.GetUpper().GetInput())
	if err != nil {
		return nil, err
	}
	if lower == upper {
		return []cache.ChainID{{}}, nil
	}
	if lower, err = w.solid(ctx, job, lower); err != nil {
		return nil, err
	}
	if upper, err = w.solid(ctx, job, upper); err != nil {
		return nil, err
	}
	out, ok, err := w.suffix(ctx, job, lower, upper)
	if err == nil && !ok {
		out, err = w.difference(ctx, job, lower, upper)
	}
	return []cache.ChainID{out}, err
}

// suffix makes a chain of the layers that upper has on top of lower; ok is false
// where it does not stand on lower.
func (w *Worker) suffix(ctx context.Context, job *solver.Job, lower, upper cache.ChainID) (out cache.ChainID, ok bool, err error) {
	layers, ok, err := w.above(ctx, job, lower, upper)
	if err != nil || !ok {
		return out, false, err
	}
	out, err = w.stack(ctx, cache.ChainID{}, layers)
	return out, err == nil, err
}

// above gives the layers that upper has on top of lower, bottom first, in a form
// that can be put on top of something else; ok is false where it does not stand on
// lower.
func (w *Worker) above(ctx context.Context, job *solver.Job, lower, upper cache.ChainID) (layers []cache.LayerID, ok bool, err error) {
	for at := upper; at != lower; {
		if at == (cache.ChainID{}) {
			return nil, false, nil
		}
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		c, err := w.cache.Chain(at)
		if err != nil {
			return nil, false, err
		}
		id, err := w.explicit(ctx, job, at, c)
		if err != nil {
			return nil, false, err
		}
		layers = append(layers, id)
		at = c.Parent
	}
	slices.Reverse(layers)
	return layers, true, nil
}

// explicit gives the top layer of a chain in a form that removes, wherever else it is
// put, only what it removes here. A step that replaces a folder leaves an opaque one,
// which would hide all that another base has in it. Layers of images are what they
// say they are.
func (w *Worker) explicit(ctx context.Context, job *solver.Job, at cache.ChainID, c cache.Chain) (cache.LayerID, error) {
	l, err := w.cache.Layer(c.Layer)
	if err != nil || l.Root.Kind != tree.Dir || l.ID != cache.TreeLayerID(l.Root) {
		return c.Layer, err
	}
	opaque, err := tree.HasOpaque(w.cache, l.Root)
	if err != nil || !opaque {
		return c.Layer, err
	}
	alone, err := w.difference(ctx, job, c.Parent, at)
	if err != nil {
		return c.Layer, err
	}
	made, err := w.cache.Chain(alone)
	return made.Layer, err
}

func (w *Worker) difference(ctx context.Context, job *solver.Job, lower, upper cache.ChainID) (cache.ChainID, error) {
	from, err := w.state(ctx, job, lower)
	if err != nil {
		return cache.ChainID{}, err
	}
	to, err := w.state(ctx, job, upper)
	if err != nil {
		return cache.ChainID{}, err
	}
	root, err := tree.Diff(w.cache, from, to, tree.ByAddr)
	if err != nil {
		return cache.ChainID{}, err
	}
	return w.extend(cache.ChainID{}, cache.Layer{ID: cache.TreeLayerID(root), Root: root})
}
