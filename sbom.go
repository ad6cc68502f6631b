package kiln

import (
	"context"
	"slices"

	"github.com/containerd/platforms"

	"github.com/kiln-build/kiln/frontend/sbom"
)

// scan gives the images of a result with a bill of materials each, unless the
// frontend brought one, as that of Dockerfiles does. How many stages there were
// besides the images only a frontend knows.
func (b *build) scan(ctx context.Context, m *made) error {
	for _, image := range m.images {
		for _, a := range image.Attestations {
			if a.PredicateType == sbom.PredicateType {
				return nil
			}
		}
	}
	generator, err := b.attests.sbom.Find(ctx, b.bridge(), platforms.Normalize(platforms.DefaultSpec()))
	if err != nil {
		return err
	}
	m.images = slices.Clone(m.images)
	for i := range m.images {
		image := &m.images[i]
		if image.Root.IsScratch() {
			continue
		}
		bill, err := generator.Scan(sbom.Target{ID: image.Name(), Core: image.Root, IgnoreCache: b.attests.noCache})
		if err != nil {
			return err
		}
		image.Attestations = append(slices.Clone(image.Attestations), bill)
	}
	return nil
}
