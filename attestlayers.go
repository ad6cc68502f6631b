package kiln

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/cache"
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
		return func(e llb.Edge) []ocispecs.Descriptor {
			outputs := chains[e.Vertex.Digest()]
			if e.Output >= len(outputs) {
				return nil
			}
			return b.engine.descriptors(outputs[e.Output], blobs)
		}
	}
}

// descriptors gives the blobs of a chain's layers; nil where one has none.
func (e *Engine) descriptors(id cache.ChainID, blobs exporter.Blobs) []ocispecs.Descriptor {
	layers, err := e.cache.Layers(id)
	if err != nil {
		return nil
	}
	var out []ocispecs.Descriptor
	for _, l := range layers {
		d, ok := blobs[l.ID]
		if !ok {
			if len(l.Blobs) == 0 {
				return nil
			}
			d = l.Blobs[0]
		}
		out = append(out, ocispecs.Descriptor{MediaType: d.MediaType, Digest: digest.Digest(d.Digest.String()), Size: d.Size})
	}
	return out
}
