package image

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/attest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// What marks the manifest of attestations in an index.
const (
	referenceType     = "vnd.docker.reference.type"
	referenceDigest   = "vnd.docker.reference.digest"
	attestationMark   = "attestation-manifest"
	attestationKind   = "application/vnd.docker.attestation.manifest.v1+json"
	predicateTypeNote = "in-toto.io/predicate-type"
)

// nowhere is the platform of the manifests of attestations: no machine picks one
// to run.
var nowhere = ocispecs.Platform{OS: "unknown", Architecture: "unknown"}

// AttestationManifest is what is said of one image of an index.
type AttestationManifest struct {
	Document
	Config     Document
	Statements []Document
}

// documents gives what the manifest consists of, each before what names it.
func (m *AttestationManifest) documents() []Document {
	out := append([]Document{}, m.Statements...)
	return append(out, m.Config, m.Document)
}

// Index reports whether a result is written as an index: where it has several
// images, or where something is said of one.
func (o *Options) Index(r exporter.Result) bool {
	if r.Index() {
		return true
	}
	for _, img := range r.Images {
		if len(img.Attestations) > 0 && (o.Inline || len(attest.Needed(img.Attestations)) > 0) {
			return true
		}
	}
	return false
}

// attestations writes what is said of image i, whose manifest is m.
func (a *assembly) attestations(ctx context.Context, i int, m Manifest, p exporter.Progress) (*AttestationManifest, error) {
	img := a.result.Images[i]
	if len(img.Attestations) == 0 {
		return nil, nil
	}
	if !a.opts.OCI {
		return nil, fmt.Errorf("cannot export attestations with %q", attrOCI+"=false")
	}
	blobs := exporter.Blobs{}
	for _, l := range m.Layers {
		blobs[l.ID] = l.Desc
	}
	predicates, err := attest.Read(ctx, a.env, img.Attestations, blobs)
	if err != nil {
		for _, said := range img.Attestations {
			err = GoneFile(a.env.Cache, said.Root, err)
		}
		return nil, err
	}
	names, err := a.opts.Names(a.result.Metadata)
	if err != nil {
		return nil, err
	}
	var self []attest.Subject
	for _, n := range names {
		purl, err := attest.PURL(attest.PURLDocker, n, &img.Platform)
		if err != nil {
			return nil, err
		}
		self = append(self, attest.Of(purl, m.Desc.Digest))
	}
	out := &AttestationManifest{}
	for _, pr := range predicates {
		if pr.Core() && pr.PredicateType == attest.SPDX {
			if pr.Data, err = a.nameLayers(ctx, img, m.Layers, pr.Data); err != nil {
				return nil, fmt.Errorf("completing the bill of materials: %w", err)
			}
		}
		data, err := json.Marshal(pr.Statement(self))
		if err != nil {
			return nil, fmt.Errorf("writing the attestation %s: %w", pr.Path, err)
		}
		d := document(attest.MediaType, data)
		d.Desc.Annotations = map[string]string{predicateTypeNote: pr.PredicateType}
		out.Statements = append(out.Statements, d)
	}
	if err := out.complete(m.Desc, a.opts.Artifact); err != nil {
		return nil, err
	}
	p.Step("exporting attestation manifest " + out.Desc.Digest.String())(nil)
	return out, nil
}

// complete writes the config and the manifest of statements about an image.
func (m *AttestationManifest) complete(target ocispecs.Descriptor, artifact bool) error {
	manifest := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest}
	if artifact {
		m.Config = Document{Desc: ocispecs.DescriptorEmptyJSON, Data: ocispecs.DescriptorEmptyJSON.Data}
		manifest.ArtifactType = attestationKind
		manifest.Subject = &ocispecs.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size}
	} else {
		config := ocispecs.Image{Platform: nowhere}
		config.RootFS.Type = "layers"
		for _, s := range m.Statements {
			config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, s.Desc.Digest)
		}
		data, err := json.Marshal(config)
		if err != nil {
			return fmt.Errorf("writing the config of attestations: %w", err)
		}
		m.Config = document(ocispecs.MediaTypeImageConfig, data)
	}
	manifest.Config = m.Config.Desc
	for _, s := range m.Statements {
		manifest.Layers = append(manifest.Layers, s.Desc)
	}
	data, err := json.MarshalIndent(manifest, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the manifest of attestations: %w", err)
	}
	m.Document = document(ocispecs.MediaTypeImageManifest, data)
	m.Desc.Platform = &nowhere
	m.Desc.Annotations = map[string]string{referenceType: attestationMark, referenceDigest: target.Digest.String()}
	return nil
}
