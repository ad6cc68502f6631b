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
