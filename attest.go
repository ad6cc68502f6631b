package kiln

import (
	"context"
	"fmt"
	"strings"

	"github.com/kiln-build/kiln/exporter/provenance"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sbom"
	"github.com/kiln-build/kiln/worker/source"
)

// attests are the attestations that a build is to have, besides its frontend's.
type attests struct {
	provenance *provenance.Options
	sbom       *sbom.Options
	noCache    bool // the bills of materials are made anew
}

// parseAttests reads the attributes that ask for attestations.
func parseAttests(attrs map[string]string) (attests, error) {
	filter, given := attrs["no-cache"]
	a := attests{noCache: given && filter == ""}
	asked, err := frontend.Attests(attrs)
	if err != nil {
		return a, err
	}
	for kind, fields := range asked {
		switch kind {
		case "provenance":
			o, err := provenance.ParseOptions(fields)
			if err != nil {
				return a, err
			}
			a.provenance = &o
		case sbom.Kind:
			if a.sbom, err = sbom.Parse(attrs); err != nil {
				return a, err
			}
		default:
			return a, fmt.Errorf("unknown attestation type %q", kind)
		}
	}
	return a, nil
}

// attested finds what is said of an image that was resolved.
func (b *build) attested(ctx context.Context, image frontend.Image, o frontend.SourceOptions) (*frontend.Attested, error) {
	name, _, _ := strings.Cut(image.Ref, "@")
	found, err := b.engine.worker.Images().Attested(ctx, b.credentials, name+"@"+image.Digest, o.Platform, source.ModeLocal, o.Predicates)
	if err != nil || found == nil {
		return nil, err
	}
	out := &frontend.Attested{Root: found.Root.String(), Image: found.Image.String()}
	if !found.Manifest.IsZero() {
		out.Manifest = found.Manifest.String()
	}
	for _, a := range found.Blobs {
		out.Blobs = append(out.Blobs, frontend.AttestedBlob{
			MediaType: a.Desc.MediaType, Digest: a.Desc.Digest.String(), Annotations: a.Desc.Annotations, Data: a.Data,
		})
	}
	return out, nil
}

// asked gives an image that a frontend asked about.
func asked(image frontend.Image, o frontend.ResolveOptions) frontend.Asked {
	image.Ref = strings.TrimPrefix(image.Ref, "oci-layout://")
	a := frontend.Asked{Image: image, Layout: o.Layout != ""}
	if o.Platform.OS != "" {
		a.Platform = &o.Platform
	}
	return a
}
