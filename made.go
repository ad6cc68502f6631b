package kiln

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// made is a result of a frontend whose graphs were solved.
type made struct {
	*frontend.Result
	images []frontend.ResultImage // with the attestations that the engine adds
	edges  []llb.Edge             // what is to be solved: the images, then their attestations
	chains []cache.ChainID        // what edges came to
}

// plan lists what there is to solve of a result.
func (b *build) plan(ctx context.Context, r *frontend.Result) (*made, error) {
	m := &made{Result: r, images: r.Images}
	if b.attests.sbom != nil {
		if err := b.scan(ctx, m); err != nil {
			return nil, err
		}
	}
	for _, image := range m.images {
		m.edges = append(m.edges, image.Root)
	}
	for _, image := range m.images {
		for _, a := range image.Attestations {
			m.edges = append(m.edges, a.Root)
		}
	}
	return m, nil
}

// exported gives what exporters write.
func (b *build) exported(ctx context.Context, m *made) exporter.Result {
	out := exporter.Result{Metadata: m.Metadata, Multi: m.Index, Came: func(ctx context.Context) map[blob.Digest]bool { return b.came(ctx, m) }}
	said := m.chains[len(m.images):]
	for i, image := range m.images {
		x := exporter.Image{Platform: image.Platform, ID: image.ID, Root: m.chains[i], Config: image.Config, BaseConfig: image.BaseConfig}
		for j, a := range image.Attestations {
			x.Attestations = append(x.Attestations, exporter.Attestation{
				Path: a.Path, Bundle: a.Bundle, Root: said[j], PredicateType: a.PredicateType, Subjects: subjects(a.Subjects),
				SBOMCore: a.SBOMCore, InlineOnly: a.InlineOnly,
			})
		}
		said = said[len(image.Attestations):]
		if o := b.attests.provenance; o != nil && !image.Root.IsScratch() {
			x.Attestations = append(x.Attestations, b.attestation(ctx, m, i, *o))
		}
		out.Images = append(out.Images, x)
	}
	return out
}

func subjects(in []frontend.Subject) []exporter.Subject {
	var out []exporter.Subject
	for _, s := range in {
		x := exporter.Subject{Raw: s.Raw, Name: s.Name}
		for _, d := range s.Digests {
			x.Digests = append(x.Digests, digest.Digest(d))
		}
		out = append(out, x)
	}
	return out
}
