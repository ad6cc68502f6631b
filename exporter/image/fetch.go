package image

import (
	"context"

	"github.com/kiln-build/kiln/exporter"
	"golang.org/x/sync/errgroup"
)

// fetchesAtOnce is how many layers are downloaded at the same time.
const fetchesAtOnce = 4

// Fetch brings the layers that are at their origins only into the store: what
// writes one layer after the other would else wait for each download in turn.
func Fetch(ctx context.Context, env exporter.Env, layers []Layer) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchesAtOnce)
	blobs := env.Cache.Blobs()
	for _, l := range layers {
		if l.stream != nil || l.made || blobs.Has(l.Desc.Digest) {
			continue
		}
		g.Go(func() error {
			r, err := l.Open(ctx)
			if err != nil {
				return err
			}
			defer r.Close()
			if blobs.Has(l.Desc.Digest) {
				return nil // the source stores what it downloads
			}
			return blobs.Put(ctx, l.Desc.Digest, l.Desc.Size, r)
		})
	}
	return g.Wait()
}

// Layers gives the layers of all manifests, each once.
func (i *Image) Layers() []Layer {
	var out []Layer
	seen := map[string]bool{}
	for _, m := range i.Manifests {
		for _, l := range m.Layers {
			if d := l.Desc.Digest.String(); !seen[d] {
				seen[d] = true
				out = append(out, l)
			}
		}
	}
	return out
}
