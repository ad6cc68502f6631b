package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
)

// InlineField is the field of an image's config that holds an inline cache.
const InlineField = "kiln.cache.v1"

// maxConfig bounds an image's config: registries hold nothing larger.
const maxConfig = 4 << 20

// inline is the cache of one image: its layers are the image's, and every output
// of a record is a number of them, from the bottom, or -1 where it is not in the
// image.
type inline struct {
	Version int            `json:"version"`
	Layers  []id           `json:"layers"`
	Records []inlineRecord `json:"records"`
}

// inlineRecord has no times, so that the config of an image that was built again
// is the same.
type inlineRecord struct {
	Keys    []id   `json:"keys"`
	Outputs []int  `json:"outputs"`
	Name    string `json:"name,omitempty"`
	Vertex  id     `json:"vertex"`
	Inputs  []id   `json:"inputs,omitempty"`
}

// Inline gives an image's config with the records in it of which an output is the
// image's root or what is below that. A config that has none is given as it is.
func Inline(c *cache.Cache, config []byte, root cache.ChainID, entries []Entry) ([]byte, error) {
	depth := map[cache.ChainID]int{{}: 0}
	layers, err := c.Layers(root)
	if err != nil {
		return nil, err
	}
	in := inline{Version: version}
	var at cache.ChainID
	for n, l := range layers {
		if at, err = c.Extend(at, l.ID); err != nil {
			return nil, err
		}
		depth[at] = n + 1
		in.Layers = append(in.Layers, id(l.ID))
	}
	for _, e := range entries {
		if r, ok := inlineOf(e, depth); ok {
			in.Records = append(in.Records, r)
		}
	}
	if len(in.Records) == 0 {
		return config, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("reading the image config: %w", err)
	}
	if fields[InlineField], err = json.Marshal(in); err != nil {
		return nil, err
	}
	return json.Marshal(fields)
}

// inlineOf gives the record of an entry of which the image has an output, if any.
// Scratch, which every image has, is one only where it is all that there is.
func inlineOf(e Entry, depth map[cache.ChainID]int) (r inlineRecord, ok bool) {
	r = inlineRecord{Keys: ids(e.Keys), Name: e.Record.Name, Vertex: e.Record.Vertex, Inputs: ids(e.Record.Inputs)}
	for _, o := range e.Record.Outputs {
		d, in := depth[o]
		if !in {
			d = -1
		}
		ok = ok || d > 0
		r.Outputs = append(r.Outputs, d)
	}
	return r, ok || len(r.Outputs) > 0 && !slices.Contains(r.Outputs, -1)
}

func ids[T ~[32]byte](in []T) []id {
	var out []id
	for _, v := range in {
		out = append(out, id(v))
	}
	return out
}

// loadInline reads the inline caches of an image, or of all those of an index.
func loadInline(ctx context.Context, s Store, m document) (*index, error) {
	b := newBuilder()
	images := []document{m}
	if len(m.Manifests) > maxImages {
		return nil, formatf("it is an index of %d images, and %d at most are looked into", len(m.Manifests), maxImages)
	}
	for _, d := range m.Manifests {
		data, err := s.Manifest(ctx, d.Digest)
		if err != nil {
			return nil, fmt.Errorf("reading the manifest of one of its images: %w", err)
		}
		var image document
		if err := json.Unmarshal(data, &image); err != nil {
			return nil, formatf("the manifest of one of its images cannot be read: %v", err)
		}
		images = append(images, image)
	}
	for _, m := range images {
		if m.Config == nil {
			continue
		}
		if err := addInline(ctx, s, m, b); err != nil {
			return nil, err
		}
	}
	if len(b.Records) == 0 {
		return nil, fmt.Errorf("it is an image without an inline cache: %w", fs.ErrNotExist)
	}
	return &b.index, b.check(absent)
}

// history is an entry of an image's history.
type history struct {
	Created time.Time `json:"created"`
	Empty   bool      `json:"empty_layer"`
}

// createdOf gives when the layers of a history were made, in nanoseconds since 1970.
func createdOf(entries []history) (created []int64) {
	for _, h := range entries {
		if !h.Empty {
			created = append(created, max(h.Created.UnixNano(), 0))
		}
	}
	return created
}

// addInline adds what the config of one image holds; nothing is fine.
func addInline(ctx context.Context, s Store, m document, b *builder) error {
	data, err := readBlob(ctx, s, *m.Config, maxConfig)
	if err != nil {
		return fmt.Errorf("reading the config of its image: %w", err)
	}
	var config struct {
		Cache  json.RawMessage `json:"kiln.cache.v1"`
		RootFS struct {
			DiffIDs []blob.Digest `json:"diff_ids"`
		} `json:"rootfs"`
		History []history `json:"history"`
	}
	if json.Unmarshal(data, &config) != nil || len(config.Cache) == 0 {
		return nil // some other artifact, or an image of another builder's
	}
	var v struct {
		Version int `json:"version"`
	}
	var in inline
	if err := json.Unmarshal(config.Cache, &v); err != nil || v.Version != version {
		return formatf("its inline cache has version %d, and this kiln reads version %d", v.Version, version)
	}
	if err := json.Unmarshal(config.Cache, &in); err != nil {
		return formatf("its inline cache cannot be read: %v", err)
	}
	if len(in.Layers) != len(m.Layers) || len(in.Layers) != len(config.RootFS.DiffIDs) || len(in.Layers) > maxDepth {
		return formatf("its inline cache has %d layers, its manifest %d and its config %d",
			len(in.Layers), len(m.Layers), len(config.RootFS.DiffIDs))
	}
	links, created := []int{-1}, createdOf(config.History)
	for n, lid := range in.Layers {
		d := m.Layers[n]
		d.Annotations = nil
		l := layer{ID: lid, DiffID: config.RootFS.DiffIDs[n], Blobs: []blob.Descriptor{d}, Held: true}
		if n < len(created) {
			l.Created = created[n]
		}
		links = append(links, b.link(links[n], b.layer(l)))
	}
	for _, r := range in.Records {
		rec := record{Keys: r.Keys, Name: r.Name, Vertex: r.Vertex, Inputs: r.Inputs}
		for _, o := range r.Outputs {
			switch {
			case o == -1:
				rec.Outputs = append(rec.Outputs, absent)
			case o < 0 || o >= len(links):
				return formatf("its inline cache names a layer that the image does not have")
			default:
				rec.Outputs = append(rec.Outputs, links[o])
			}
		}
		b.record(rec)
	}
	return nil
}
