package kiln

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/llb"
)

// layersOf gives a function that names the blobs of what a vertex put out, as far
// as records and the exporter know them. What the session knows is taken now.
func (b *build) layersOf(ctx context.Context, m *made) func(exporter.Blobs) func(llb.Edge) []ocispecs.Descriptor {
	chains := b.engine.solver.Known(b.session, m.edges[:len(m.images)]...)
	pins := b.engine.solver.Pins(b.session)
	for _, v := range llb.Walk(m.edges[:len(m.images)]...) {
		if v.Op().GetSource() == nil {
			continue
		}
		if id, err := b.engine.worker.ImageChain(ctx, b.session, v, pins[v.Digest()]); err == nil {
			chains[v.Digest()] = []cache.ChainID{id}
		}
	}
	for i, image := range m.images {
		if e := image.Root; !e.IsScratch() && len(chains[e.Vertex.Digest()]) <= e.Output && e.Output == 0 {
			chains[e.Vertex.Digest()] = []cache.ChainID{m.chains[i]}
		}
	}
	return func(blobs exporter.Blobs) func(llb.Edge) []ocispecs.Descriptor {
		d := &described{cache: b.engine.cache, blobs: blobs, known: map[cache.ChainID][]ocispecs.Descriptor{{}: nil}}
		return func(e llb.Edge) []ocispecs.Descriptor {
			outputs := chains[e.Vertex.Digest()]
			if e.Output >= len(outputs) {
				return nil
			}
			return d.of(outputs[e.Output])
		}
	}
}

// came gives the blobs of the layers of all images that the result was made of.
func (b *build) came(ctx context.Context, m *made) map[blob.Digest]bool {
	out := map[blob.Digest]bool{}
	pins := b.engine.solver.Pins(b.session)
	for _, v := range llb.Walk(m.edges[:len(m.images)]...) {
		if v.Op().GetSource() == nil {
			continue
		}
		blobs, err := b.engine.worker.ImageBlobs(ctx, b.session, v, pins[v.Digest()])
		if err != nil {
			continue // it is no image
		}
		for _, d := range blobs {
			out[d] = true
		}
	}
	return out
}

// described names the blobs of chains. The steps of a build stand on each other, so
// that what is known of one is most of what the next one needs.
type described struct {
	cache *cache.Cache
	blobs exporter.Blobs
	known map[cache.ChainID][]ocispecs.Descriptor
}

// of gives the blobs of a chain's layers, bottom first; nil where one has none.
func (d *described) of(id cache.ChainID) []ocispecs.Descriptor {
	type link struct {
		at cache.ChainID
		cache.Chain
	}
	var above []link
	for at := id; ; {
		if _, ok := d.known[at]; ok {
			break
		}
		ch, err := d.cache.Chain(at)
		if err != nil {
			return nil
		}
		above, at = append(above, link{at, ch}), ch.Parent
	}
	for _, l := range slices.Backward(above) {
		d.known[l.at] = d.describe(l.Chain)
	}
	return d.known[id]
}

// describe adds a chain's top layer to what is known of the chain below.
func (d *described) describe(ch cache.Chain) []ocispecs.Descriptor {
	below := d.known[ch.Parent]
	if below == nil && ch.Parent != (cache.ChainID{}) {
		return nil
	}
	blob, ok := d.blobs[ch.Layer]
	if !ok {
		l, err := d.cache.Layer(ch.Layer)
		if err != nil || len(l.Blobs) == 0 {
			return nil
		}
		blob = l.Blobs[0]
	}
	return append(slices.Clip(below), ocispecs.Descriptor{MediaType: blob.MediaType, Digest: digest.Digest(blob.Digest.String()), Size: blob.Size})
}
