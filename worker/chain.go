package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/source"
	"golang.org/x/sync/errgroup"
)

// Overlayfs takes 500 lower folders at most, and mounting gets slower with each.
// A chain of more than maxLower has its lower part made into one folder; the cut
// is at a multiple of cutEvery, so that a chain that grows keeps its cut for long.
const (
	maxLower = 400
	cutEvery = 100
)

// Reader reads what chains hold on behalf of one session: with its credentials and
// folders, and no other's.
type Reader struct {
	w   *Worker
	job *solver.Job
}

// Reader gives the reader of a session.
func (w *Worker) Reader(id solver.SessionID) Reader {
	return Reader{w, &solver.Job{Sessions: func() []solver.SessionID { return []solver.SessionID{id} }}}
}

// Unpack makes every layer of a chain present: its tree known, its files in the pool.
func (r Reader) Unpack(ctx context.Context, id cache.ChainID) error {
	t, err := r.w.localOf(r.job, id)
	if err != nil {
		return err
	}
	if t != nil {
		return r.w.capture(ctx, t, "", t.root)
	}
	return r.w.unpack(ctx, r.job, id)
}

// Blob reads a compressed form of an image's layer, here or at one of its origins.
func (r Reader) Blob(ctx context.Context, l cache.Layer, d blob.Descriptor) (io.ReadCloser, error) {
	return r.w.images.Blob(ctx, r.w.credentials(r.job), l, d)
}

func (w *Worker) unpack(ctx context.Context, job *solver.Job, id cache.ChainID) error {
	var report source.Progress
	if job != nil {
		report = job.Progress
	}
	return w.images.Unpack(ctx, w.credentials(job), id, report)
}

// Fetch makes Worker a solver.Fetcher.
func (w *Worker) Fetch(ctx context.Context, job *solver.Job, id cache.ChainID) error {
	if t, err := w.localOf(job, id); t != nil || err != nil {
		return err // a local folder's files are copied when they are read
	}
	return w.images.Fetch(ctx, w.credentials(job), id)
}

// state gives the state of a chain, whose layers are pulled if need be. The files
// of a local folder's state are in the folder.
func (w *Worker) state(ctx context.Context, job *solver.Job, id cache.ChainID) (tree.Entry, error) {
	if t, err := w.localOf(job, id); t != nil || err != nil {
		if err != nil {
			return tree.Entry{}, err
		}
		return t.root, nil
	}
	root, err := w.cache.Merged(id)
	var packed *cache.NotUnpackedError
	if !errors.As(err, &packed) {
		return root, err
	}
	if err := w.unpack(ctx, job, id); err != nil {
		return tree.Entry{}, err
	}
	return w.cache.Merged(id)
}

// lower gives the folders of a chain's layers, bottom first, for an overlay.
func (w *Worker) lower(ctx context.Context, job *solver.Job, id cache.ChainID) ([]string, error) {
	layers, err := w.cache.Layers(id)
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if l.Root.Kind != tree.None {
			continue
		}
		if err := w.unpack(ctx, job, id); err != nil {
			return nil, err
		}
		if layers, err = w.cache.Layers(id); err != nil {
			return nil, err
		}
		break
	}
	if len(layers) > maxLower {
		if layers, err = w.cut(id, layers); err != nil {
			return nil, err
		}
	}
	if layers, err = w.shown(id, layers); err != nil {
		return nil, err
	}
	paths := make([]string, len(layers))
	group, ctx := errgroup.WithContext(ctx)
	for i, l := range layers {
		if p, ok := w.folders.Have(l); ok {
			paths[i] = p
			continue
		}
		group.Go(func() (err error) {
			paths[i], err = w.folders.Folder(ctx, l)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, w.noticed(err)
	}
	return topmost(paths), nil
}

// shown gives the upper layers of a chain as overlayfs has to have them. It does not look at
// the marks of roots: what lies below one that is opaque is left out. In a folder that no
// other layer has it lists the names of whiteouts: those that hide nothing, as in a
// difference on another base than its own, are taken out.
func (w *Worker) shown(id cache.ChainID, layers []cache.Layer) ([]cache.Layer, error) {
	marked := func(l cache.Layer) bool { return l.Root.Opaque || l.Root.Marked() }
	if !slices.ContainsFunc(layers, marked) {
		return layers, nil
	}
	out := slices.Clone(layers)
	for i, l := range slices.Backward(layers) {
		c, err := w.cache.Chain(id)
		if err != nil {
			return nil, err
		}
		id = c.Parent
		if l.Root.Marked() {
			if out[i], err = w.tidy(id, l); err != nil {
				return nil, err
			}
		}
		if l.Root.Opaque {
			return out[i:], nil
		}
	}
	return out, nil
}

// tidy gives a layer without the whiteouts that hide nothing of the chain below.
func (w *Worker) tidy(below cache.ChainID, l cache.Layer) (cache.Layer, error) {
	var lower tree.Entry
	if below != (cache.ChainID{}) && !l.Root.Opaque {
		var err error
		if lower, err = w.cache.Merged(below); err != nil {
			return l, err
		}
	}
	root, err := tree.Tidy(w.cache, lower, l.Root)
	if err != nil || root.Children == l.Root.Children {
		return l, err
	}
	return w.whole(root)
}

// topmost keeps the topmost of folders that occur more than once: overlayfs takes
// each once, and steps that write the same, or nothing at all, have one folder.
// What the upper one of two says of a path holds whatever the lower one said, and
// they speak of the same paths, so the lower one has no effect.
func topmost(paths []string) []string {
	seen := make(map[string]bool, len(paths))
	kept := make([]string, 0, len(paths))
	for _, p := range slices.Backward(paths) {
		if !seen[p] {
			seen[p] = true
			kept = append(kept, p)
		}
	}
	slices.Reverse(kept)
	return kept
}

// cut replaces the lower layers of a chain by one that is their state.
func (w *Worker) cut(id cache.ChainID, layers []cache.Layer) ([]cache.Layer, error) {
	keep := len(layers) - (len(layers)-(maxLower-cutEvery))/cutEvery*cutEvery
	at := id
	for range keep {
		c, err := w.cache.Chain(at)
		if err != nil {
			return nil, err
		}
		at = c.Parent
	}
	root, err := w.cache.Merged(at)
	if err != nil {
		return nil, err
	}
	base, err := w.whole(root)
	return append([]cache.Layer{base}, layers[len(layers)-keep:]...), err
}

// whole gives the layer that a tree is.
func (w *Worker) whole(root tree.Entry) (cache.Layer, error) {
	l := cache.Layer{ID: cache.TreeLayerID(root), Root: root}
	return l, w.cache.PutLayer(l)
}

// extend puts a layer on a chain; where the state below is at hand, so is the new one.
func (w *Worker) extend(id cache.ChainID, l cache.Layer) (cache.ChainID, error) {
	if err := w.cache.PutLayer(l); err != nil {
		return id, fmt.Errorf("storing layer %.12s: %w", l.ID, err)
	}
	return w.cache.Extend(id, l.ID)
}
