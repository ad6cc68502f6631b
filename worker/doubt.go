package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
)

// Doubt makes the worker check, from now on, that the files of what it copies
// are in the pool. It is called when a file turned out to be missing that the
// cache promised: a copy hands on entries and looks at no file, so that making
// the layer again whose file is missing, by the same copy, would promise it again.
// With doubt, the layer that the copy reads from is found to be gone.
func (w *Worker) Doubt() { w.doubt.Store(true) }

// noticed passes an error on, and doubts if it is a missing file.
func (w *Worker) noticed(err error) error {
	if errors.As(err, new(*cache.GoneError)) {
		w.Doubt()
	}
	return err
}

// check finds a layer of a chain that has a file which is not in the pool; where
// there is one the error is a *cache.GoneError.
func (w *Worker) check(ctx context.Context, id cache.ChainID) error {
	layers, err := w.cache.Layers(id)
	if err != nil {
		return err
	}
	for _, l := range layers {
		if l.Root.Kind != tree.Dir {
			continue
		}
		err := tree.Walk(w.cache, l.Root, func(p string, e tree.Entry) error {
			if e.Kind == tree.File && !w.cache.Pool().Has(e) {
				return fmt.Errorf("file %q of the pool: %w", p, fs.ErrNotExist)
			}
			return ctx.Err()
		})
		if errors.Is(err, fs.ErrNotExist) {
			return &cache.GoneError{Layer: l.ID, Err: err}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lost finds the layer to blame where a file of one of these chains was not in
// the pool. Other errors it passes on.
func (w *Worker) lost(ctx context.Context, err error, chains []cache.ChainID) error {
	if !errors.Is(err, fs.ErrNotExist) || errors.As(err, new(*cache.GoneError)) || errors.As(err, new(*ChangedError)) {
		return err
	}
	for _, id := range chains {
		if t, _ := w.localOf(nil, id); t != nil {
			continue
		}
		if gone := w.check(ctx, id); gone != nil {
			return w.noticed(gone)
		}
	}
	return err
}
