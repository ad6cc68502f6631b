package source

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/platforms"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/registry"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// What marks the manifest of attestations in an index, and its layers.
const (
	referenceType   = "vnd.docker.reference.type"
	referenceDigest = "vnd.docker.reference.digest"
	attestationMark = "attestation-manifest"
	predicateType   = "in-toto.io/predicate-type"
)

// Attested is what is said of one image of an index, beside it.
type Attested struct {
	// Root is the index, Image the manifest of the platform's image, and Manifest
	// that of its attestations; zero where there are none.
	Root, Image, Manifest blob.Digest
	// Blobs are the index, the manifest of attestations, and the statements that
	// were asked for.
	Blobs []AttestedBlob
}

// AttestedBlob is a document with its descriptor.
type AttestedBlob struct {
	Desc blob.Descriptor
	Data []byte
}

// Attested finds what is said of the image that ref names for a platform, with the
// statements whose predicates have one of some types. It is nil for what is no index.
func (s *Images) Attested(ctx context.Context, cred registry.Credentials, ref string, p ocispecs.Platform, mode Mode, types []string) (*Attested, error) {
	r, err := registry.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	if p.OS == "" && p.Architecture == "" {
		p = platforms.DefaultSpec()
	}
	d, data, err := s.named(ctx, cred, r, mode)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(data)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", r, err)
	}
	if m.Manifests == nil {
		return nil, nil
	}
	if d.MediaType == "" {
		d.MediaType = m.mediaType()
	}
	image, err := choose(m.Manifests, p)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", r, err)
	}
	out := &Attested{Root: d.Digest, Image: image.Digest, Blobs: []AttestedBlob{{d, data}}}
	at, ok, err := attestationsOf(data, image.Digest)
	if err != nil || !ok {
		return out, err
	}
	out.Manifest = at.Digest
	if data, err = s.fetch(ctx, cred, r, at); err != nil {
		return nil, fmt.Errorf("the attestations of %s: %w", r, err)
	}
	out.Blobs = append(out.Blobs, AttestedBlob{at, data})
	var said ocispecs.Manifest
	if err := json.Unmarshal(data, &said); err != nil {
		return nil, fmt.Errorf("the attestations of %s: %w", r, err)
	}
	for _, l := range said.Layers {
		if !slices.Contains(types, l.Annotations[predicateType]) {
			continue
		}
		d, err := described(l)
		if err != nil {
			return nil, fmt.Errorf("the attestations of %s: %w", r, err)
		}
		if data, err = s.fetch(ctx, cred, r, d); err != nil {
			return nil, fmt.Errorf("the attestations of %s: %w", r, err)
		}
		out.Blobs = append(out.Blobs, AttestedBlob{d, data})
	}
	return out, nil
}

// attestationsOf finds, in an index, the manifest of what is said of an image.
func attestationsOf(index []byte, image blob.Digest) (blob.Descriptor, bool, error) {
	var idx ocispecs.Index
	if err := json.Unmarshal(index, &idx); err != nil {
		return blob.Descriptor{}, false, fmt.Errorf("reading an index: %w", err)
	}
	for _, m := range idx.Manifests {
		if m.Annotations[referenceType] == attestationMark && m.Annotations[referenceDigest] == image.String() {
			d, err := described(m)
			return d, err == nil, err
		}
	}
	return blob.Descriptor{}, false, nil
}

func described(d ocispecs.Descriptor) (blob.Descriptor, error) {
	id, err := blob.Parse(d.Digest.String())
	return blob.Descriptor{MediaType: d.MediaType, Digest: id, Size: d.Size, Annotations: d.Annotations}, err
}
