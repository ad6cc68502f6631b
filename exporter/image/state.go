package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
)

// State gives the tree of a chain, with its files in the pool.
func State(ctx context.Context, env exporter.Env, id cache.ChainID) (tree.Entry, error) {
	if env.Source != nil {
		if err := env.Source.Unpack(ctx, id); err != nil {
			return tree.Entry{}, err
		}
	}
	return env.Cache.Merged(id)
}

// GoneFile turns the error of a file that a state has and the pool does not into
// that of the layer that it came from. Which one that is, only a look at all of
// them tells; where none lacks anything, the error is of something else.
func GoneFile(c *cache.Cache, id cache.ChainID, err error) error {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	layers, cerr := c.Layers(id)
	if cerr != nil {
		return errors.Join(err, cerr)
	}
	for _, l := range layers {
		if l.Root.Kind == tree.None {
			continue
		}
		lacks := tree.Walk(c, l.Root, func(path string, e tree.Entry) error {
			if e.Kind == tree.File && !c.Pool().Has(e) {
				return fmt.Errorf("the file of %q: %w", path, fs.ErrNotExist)
			}
			return nil
		})
		if lacks != nil {
			return &cache.GoneError{Layer: l.ID, Err: lacks}
		}
	}
	return err
}
