package image

import (
	"context"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/layer"
)

// Blobs finds or makes the blobs of single layers, for those who write no image
// of them. It is safe for concurrent use.
type Blobs struct{ layers *layers }

// NewBlobs gives the blobs that an image with these options has.
func NewBlobs(env exporter.Env, o Options) *Blobs { return &Blobs{newLayers(env, &o)} }

// Layer gives the blob of a layer, with the times that its files have; chain is one
// that has the layer.
func (b *Blobs) Layer(ctx context.Context, chain cache.ChainID, l cache.Layer) (Layer, error) {
	return b.layers.get(ctx, chain, l, layer.Options{})
}

// Copy gives the tar stream of an image's layer in the compression that the options
// force, made of a blob that is here. ok is false where none is, or where the layer
// has such a blob itself.
func (b *Blobs) Copy(ctx context.Context, chain cache.ChainID, l cache.Layer) (out Layer, ok bool) {
	if !pulled(l) {
		return out, false
	}
	for _, d := range l.Blobs {
		if compressionOf(d.MediaType) == b.layers.opts.Method.Compression {
			return out, false
		}
		ok = ok || b.layers.env.Cache.Blobs().Has(d.Digest)
	}
	if ok {
		var err error
		out, err = b.Layer(ctx, chain, l)
		ok = err == nil
	}
	return out, ok
}
