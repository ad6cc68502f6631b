package source

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/registry"
)

// manifest is what OCI and docker manifests and indexes have in common: an index
// has Manifests, a manifest has Config and Layers.
type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []manifestEntry   `json:"manifests"`
	Config        blob.Descriptor   `json:"config"`
	Layers        []manifestLayer   `json:"layers"`
	FSLayers      []json.RawMessage `json:"fsLayers"` // schema 1 only
}

// manifestEntry is a manifest in an index.
type manifestEntry struct {
	blob.Descriptor
	Platform *ocispecs.Platform `json:"platform"`
}

// manifestLayer is a layer in a manifest.
type manifestLayer struct {
	blob.Descriptor
	URLs []string `json:"urls"`
}

// maxNesting bounds indexes in indexes. The specification has no bound, and
// nobody goes further than one.
const maxNesting = 3

// parseManifest reads a manifest or index. What could be read as both is refused:
// two readers would see two images under one digest.
func parseManifest(data []byte) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("its manifest cannot be read: %w", err)
	}
	switch {
	case m.SchemaVersion == 1 || m.FSLayers != nil || registry.IsSchema1(m.MediaType):
		return m, errors.New("it has a docker schema 1 manifest, which registries gave up in 2019; pull and push it once with a docker older than 28, or rebuild it")
	case m.SchemaVersion != 2:
		return m, fmt.Errorf("its manifest has schema version %d instead of 2", m.SchemaVersion)
	case m.Manifests != nil && (m.Layers != nil || !m.Config.Digest.IsZero()):
		return m, errors.New("its manifest is an index and a manifest at the same time")
	case m.MediaType != "" && !registry.IsManifest(m.MediaType):
		return m, fmt.Errorf("its manifest calls itself %q: %w", m.MediaType, errNoConfig)
	case m.Manifests == nil && m.Config.Digest.IsZero():
		return m, fmt.Errorf("its manifest has no config: %w", errNoConfig)
	}
	return m, nil
}

// checkManifest checks what a registry sent before it is kept.
func checkManifest(d blob.Descriptor, data []byte) error {
	m, err := parseManifest(data)
	if err != nil {
		return err
	}
	if m.MediaType != "" && registry.IsManifest(d.MediaType) && isIndexType(m.MediaType) != isIndexType(d.MediaType) {
		return fmt.Errorf("the registry calls it %q, and it calls itself %q", d.MediaType, m.MediaType)
	}
	return nil
}

func isIndexType(t string) bool {
	return t == ocispecs.MediaTypeImageIndex || t == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// findManifest goes from what a reference names down to the manifest for a platform.
func findManifest(d blob.Descriptor, data []byte, p ocispecs.Platform, fetch fetchFunc) (manifest, blob.Descriptor, error) {
	for range maxNesting + 1 {
		m, err := parseManifest(data)
		if err != nil {
			return m, d, err
		}
		if d.MediaType == "" {
			d.MediaType = m.mediaType()
		}
		if m.Manifests == nil {
			return m, d, m.checkConfig()
		}
		if d, err = choose(m.Manifests, p); err != nil {
			return m, d, err
		}
		if data, err = fetch(d); err != nil {
			return m, d, err
		}
	}
	return manifest{}, d, fmt.Errorf("its indexes lead to indexes more than %d deep", maxNesting)
}

// mediaType gives the media type; in OCI manifests the field may be missing.
func (m *manifest) mediaType() string {
	switch {
	case m.MediaType != "":
		return m.MediaType
	case m.Manifests != nil:
		return ocispecs.MediaTypeImageIndex
	}
	return ocispecs.MediaTypeImageManifest
}

// checkConfig refuses what registries hold besides images: charts, signatures.
func (m *manifest) checkConfig() error {
	switch m.Config.MediaType {
	case ocispecs.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json":
		return nil
	}
	return fmt.Errorf("%w: its config is %q", errNoConfig, m.Config.MediaType)
}

// choose gives the manifest of an index that suits a platform best, with variants
// as containerd orders them: for linux/arm/v7 also v6, never v8.
func choose(entries []manifestEntry, p ocispecs.Platform) (blob.Descriptor, error) {
	match := platforms.Only(p)
	var best *manifestEntry
	var available []string
	for i := range entries {
		e := &entries[i]
		if e.isAttestation() || !registry.IsManifest(e.MediaType) {
			continue
		}
		if e.Platform == nil {
			// It suits whatever nothing else suits; its config decides.
			if best == nil {
				best = e
			}
			continue
		}
		available = append(available, platforms.Format(platforms.Normalize(*e.Platform)))
		if !match.Match(*e.Platform) {
			continue
		}
		if best == nil || best.Platform == nil || match.Less(*e.Platform, *best.Platform) {
			best = e
		}
	}
	if best != nil {
		return best.Descriptor, nil
	}
	if len(available) == 0 {
		return blob.Descriptor{}, errors.New("its index names no image")
	}
	slices.Sort(available)
	return blob.Descriptor{}, fmt.Errorf("it is not there for %s, only for %s", platforms.Format(p), strings.Join(slices.Compact(available), ", "))
}

// isAttestation reports whether an entry of an index is not an image but speaks of one.
func (e *manifestEntry) isAttestation() bool {
	return e.Annotations["vnd.docker.reference.type"] == "attestation-manifest" ||
		e.Platform != nil && e.Platform.OS == "unknown" && e.Platform.Architecture == "unknown"
}

// check reports why a layer cannot be read, or nil.
func (l *manifestLayer) check() error {
	if l.Size < 0 || l.Digest.IsZero() {
		return fmt.Errorf("digest %s with %d bytes is no blob", l.Digest, l.Size)
	}
	if len(l.URLs) > 0 {
		return fmt.Errorf("it is kept outside of registries, at %s, which kiln does not fetch", strings.Join(l.URLs, ", "))
	}
	if compressionOf(l.MediaType) == compressionUnknown {
		return fmt.Errorf("its media type %q is that of no layer which kiln can read", l.MediaType)
	}
	return nil
}
