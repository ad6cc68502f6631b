// Package remote keeps records, and the layers that they lead to, where other
// machines find them.
//
// A remote cache is an artifact as image-spec 1.1 has it, in a Store: a manifest
// of ArtifactType, whose config is the index and whose layers are the blobs that
// the cache holds itself (see Envelope for other kinds). The index lists records under
// their keys, the chains that they put out, and for each layer its blobs and who has
// them; it is drawn in docs/format-cache.md. An inline cache is the same inside the
// config of an image; it may have records that lack outputs.
// Besides records an index may list snapshots of cache mounts, variants of
// layers: the blobs that they are in images with times of their own; copies of the layers
// of base images; and the last builds, packed, which later ones are explained by.
//
// An Import is a cache that is read. It fetches the index and nothing else; a
// record that hits is put into the local cache with layers that are known and not
// unpacked, as those of a pulled image are, so that a layer moves only when
// somebody needs its files. An Exporter adds records to a cache while a build goes
// on, keeping what others have put there, also those who export at the same time.
//
// Nothing in a cache is believed: the index is checked as it is decoded, blobs are
// checked against their digests, a layer's identity against the tree that it
// unpacks to. What does not hold is a miss, with a reason for those who ask.
package remote

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/kiln-build/kiln/cache/blob"
)

// The media types of a cache's parts.
const (
	ArtifactType = "application/vnd.kiln.cache.v1"
	IndexType    = "application/vnd.kiln.cache.index.v1+json+zstd"

	manifestType   = "application/vnd.oci.image.manifest.v1+json"
	indexType      = "application/vnd.oci.image.index.v1+json"
	dockerListType = "application/vnd.docker.distribution.manifest.list.v2+json"
	emptyType      = "application/vnd.oci.empty.v1+json"
)

const (
	// maxManifest is what registries take.
	maxManifest = 4 << 20
	// maxIndex is room for some 50,000 records.
	maxIndex = 32 << 20
	// maxImages bounds the manifests of an image index that are looked into.
	maxImages = 64
)

// Store is where a cache lies: a name in a registry, a tag of a layout.
type Store interface {
	// Manifest gives the manifest that the cache's name stands for, or for a digest
	// that is not zero the one so called. Where there is none the error wraps
	// fs.ErrNotExist. The bytes are those of the digest.
	Manifest(ctx context.Context, d blob.Digest) ([]byte, error)
	// Blob reads a blob from offset on. Who reads it verifies it.
	Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error)
}

// Target is a Store that can be written.
type Target interface {
	Store
	// Put puts a blob there unless it is there; origins are repositories that have it. Where
	// it is left to somebody else who may not come to an end, the error wraps ErrTaken.
	Put(ctx context.Context, d blob.Descriptor, origins []string, open func(context.Context) (io.ReadCloser, error)) error
	// Commit makes the cache's name stand for a manifest, in the place of the one
	// called old; zero is none. Where it stands for another by now, and the store can
	// tell, the error wraps ErrChanged and nothing was changed. sure says that the
	// store can tell. Where blobs that the manifest names are gone, and the store says so,
	// the error wraps ErrRefused.
	Commit(ctx context.Context, d blob.Descriptor, manifest []byte, old blob.Digest) (sure bool, err error)
}

// FormatError says that what is under a cache's name is no cache that this
// version of kiln reads.
type FormatError struct{ Reason string }

func (e *FormatError) Error() string { return e.Reason }

func formatf(format string, args ...any) error {
	return &FormatError{fmt.Sprintf(format, args...)}
}

// document is what is read of any manifest.
type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        *blob.Descriptor  `json:"config,omitempty"`
	Layers        []blob.Descriptor `json:"layers"`
	Manifests     []blob.Descriptor `json:"manifests,omitempty"`
}

// Envelope is what kind of manifest a cache is written as. All are read.
type Envelope uint8

const (
	// Image is an image manifest: the index as its config, the blobs as its layers.
	Image Envelope = iota
	// Index is an image index that lists the blobs, and the cache's index as the
	// last of them. Registries that know no artifacts took caches in this form.
	Index
	// List is Index with the media type that Docker had for it.
	List
)

// manifest makes the manifest of a cache.
func (e Envelope) manifest(index blob.Descriptor, blobs []blob.Descriptor) (mediaType string, data []byte, err error) {
	if e == Image {
		data, err = json.Marshal(document{SchemaVersion: 2, MediaType: manifestType, ArtifactType: ArtifactType, Config: &index, Layers: blobs})
		return manifestType, data, err
	}
	list := struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType,omitempty"`
		Manifests     []blob.Descriptor `json:"manifests"`
	}{2, indexType, ArtifactType, append(blobs, index)}
	if e == List {
		list.MediaType, list.ArtifactType = dockerListType, ""
	}
	data, err = json.Marshal(list)
	return list.MediaType, data, err
}

// plainIndexType is an index that is not compressed, as kiln wrote it before.
const plainIndexType = "application/vnd.kiln.cache.index.v1+json"

// index gives the cache's index as the manifest names it, if it is a cache's.
func (m document) index() *blob.Descriptor {
	is := func(d blob.Descriptor) bool { return d.MediaType == IndexType || d.MediaType == plainIndexType }
	if m.Config != nil && is(*m.Config) {
		return m.Config
	}
	if n := len(m.Manifests) - 1; n >= 0 && is(m.Manifests[n]) {
		return &m.Manifests[n]
	}
	return nil
}

// load reads the index of a cache, and describes its manifest.
func load(ctx context.Context, s Store) (*index, blob.Descriptor, error) {
	data, err := s.Manifest(ctx, blob.Digest{})
	if err != nil {
		return nil, blob.Descriptor{}, err
	}
	return loadManifest(ctx, s, data)
}

// loadManifest is load with the manifest at hand.
func loadManifest(ctx context.Context, s Store, data []byte) (*index, blob.Descriptor, error) {
	name := descriptor(manifestType, data)
	var m document
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, name, formatf("its manifest cannot be read: %v", err)
	}
	if m.MediaType == indexType || m.MediaType == dockerListType {
		name.MediaType = m.MediaType
	}
	if d := m.index(); d != nil && (m.ArtifactType == ArtifactType || m.MediaType == dockerListType) {
		x, err := loadIndex(ctx, s, *d)
		return x, name, err
	}
	if m.ArtifactType == ArtifactType {
		return nil, name, formatf("its manifest names no index")
	}
	if strings.HasPrefix(m.ArtifactType, "application/vnd.kiln.cache.") {
		return nil, name, formatf("it is a cache of another version, %s", m.ArtifactType)
	}
	x, err := loadInline(ctx, s, m)
	return x, name, err
}

func loadIndex(ctx context.Context, s Store, d blob.Descriptor) (*index, error) {
	var data []byte
	var err error
	if d.MediaType == plainIndexType {
		data, err = readBlob(ctx, s, d, maxIndex)
	} else {
		data, err = readSmall(ctx, s, d, maxIndex)
	}
	if err != nil {
		return nil, fmt.Errorf("reading its index: %w", err)
	}
	return decode(data)
}

// ReadManifest reads a manifest for a Store, all of it. One that is too long, or is not
// the one called d, where d is not zero, is a *FormatError.
func ReadManifest(r io.Reader, d blob.Digest) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > maxManifest:
		return nil, formatf("its manifest has more than the %d bytes that are read", maxManifest)
	case !d.IsZero() && sha256.Sum256(data) != d:
		return nil, formatf("its manifest %s is damaged", d)
	}
	return data, nil
}

// readBlob reads a small blob and verifies it.
func readBlob(ctx context.Context, s Store, d blob.Descriptor, limit int64) ([]byte, error) {
	if d.Size < 0 || d.Size > limit {
		return nil, formatf("%s has %d bytes, and %d at most are read", d.Digest, d.Size, limit)
	}
	r, err := s.Blob(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != d.Size || sha256.Sum256(data) != d.Digest {
		return nil, formatf("%s is damaged: its bytes are others than its name says", d.Digest)
	}
	return data, nil
}

// isMissing reports whether a store said that it does not have something.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
