package remote

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
)

// version is that of the index. It goes up with every change that older code
// would misread.
const version = 1

// Bounds of an index. Those of one layer or record are far above what kiln writes.
const (
	maxRecords = 20_000
	// maxUnused is how long a record stays that no export meets.
	maxUnused  = 28 * 24 * time.Hour
	maxDepth   = 10_000
	maxPerItem = 256
	maxBlob    = 1 << 40
	maxMounts  = 256
	// maxVariants bounds those of one layer.
	maxVariants = 8
)

// id is an identity of package cache as it is written: hex digits.
type id [32]byte

func (i id) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, i[:]), nil }

func (i *id) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(i)) {
		return fmt.Errorf("%.80q is no identity", b)
	}
	_, err := hex.Decode(i[:], b)
	return err
}

// index is what a cache knows.
type index struct {
	Version int      `json:"version"`
	Layers  []layer  `json:"layers"`
	Chains  []link   `json:"chains"`
	Records []record `json:"records"`
	Mounts  []mount  `json:"mounts,omitempty"`
	// Builds are the last that were exported, the newest first.
	Builds []listedBuild `json:"builds,omitempty"`
}

// layer is a layer and who has its blobs.
type layer struct {
	ID      id                `json:"id"`
	DiffID  blob.Digest       `json:"diffID"`
	Size    int64             `json:"size,omitempty"`
	Blobs   []blob.Descriptor `json:"blobs"`
	Origins []string          `json:"origins,omitempty"`
	// Held says that the cache holds the blobs itself.
	Held bool `json:"held,omitempty"`
	// Aside says that no image of the build that exported it had the layer.
	Aside bool `json:"aside,omitempty"`
	// Created is when the layer was first exported in an image, in nanoseconds since
	// 1970, for the history of the images that have it.
	Created int64 `json:"created,omitempty"`
	// Variants are of the tar stream that DiffID names.
	Variants []variant `json:"variants,omitempty"`
	// Copy is a blob of that stream that the cache holds for those who need the files,
	// of an image's layer, whose Blobs are elsewhere.
	Copy       *layerCopy  `json:"copy,omitempty"`
	Signatures []signature `json:"signatures,omitempty"`
}

// variant is a Variant with who vouches for it.
type variant struct {
	Variant
	Signatures []signature `json:"signatures,omitempty"`
}

// layerCopy is a blob that the cache holds besides a layer's own.
type layerCopy struct {
	Blob       blob.Descriptor `json:"blob"`
	Signatures []signature     `json:"signatures,omitempty"`
}

// link is a layer on top of a chain: the link of that index, which is lower than
// this one's, or -1 for the empty chain.
type link struct {
	Parent int `json:"parent"`
	Layer  int `json:"layer"`
}

// absent is an output of a record of an inline cache that is not in the image.
const absent = -2

// record is a cache.Record under its keys. An output is a link, or -1 for scratch.
type record struct {
	Keys     []id   `json:"keys"`
	Outputs  []int  `json:"outputs"`
	Name     string `json:"name,omitempty"`
	Vertex   id     `json:"vertex"`
	Inputs   []id   `json:"inputs,omitempty"`
	Created  int64  `json:"created,omitempty"`  // seconds since 1970
	Duration int64  `json:"duration,omitempty"` // nanoseconds
	// Used is when an export last met the record, in seconds since 1970.
	Used int64 `json:"used,omitempty"`
	// Signatures are of the record under one of its keys each.
	Signatures []signature `json:"signatures,omitempty"`
}

// check finds what an index may not say. lowest is the least number that an output
// may have.
func (x *index) check(lowest int) error {
	for i := range x.Layers {
		if err := x.Layers[i].check(i); err != nil {
			return err
		}
	}
	depth := make([]int, len(x.Chains))
	for i, c := range x.Chains {
		if err := c.check(i); err != nil {
			return err
		}
		if c.Layer >= len(x.Layers) {
			return formatf("chain %d of its index makes no sense", i)
		}
		if depth[i] = 1; c.Parent >= 0 {
			depth[i] += depth[c.Parent]
		}
		if depth[i] > maxDepth {
			return formatf("chain %d of its index has more than %d layers", i, maxDepth)
		}
	}
	for i := range x.Mounts {
		if err := x.Mounts[i].check(i); err != nil {
			return err
		}
	}
	for i := range x.Builds {
		if err := x.Builds[i].check(i); err != nil {
			return err
		}
	}
	for i := range x.Records {
		r := &x.Records[i]
		if err := r.check(i); err != nil {
			return err
		}
		if slices.ContainsFunc(r.Outputs, func(o int) bool { return o < lowest || o >= len(x.Chains) }) {
			return formatf("record %d of its index makes no sense", i)
		}
	}
	return nil
}

func (l *layer) check(n int) error {
	if len(l.Blobs) > maxPerItem || len(l.Origins) > maxPerItem || l.DiffID.IsZero() || l.Size < 0 || l.Created < 0 ||
		len(l.Variants) > maxVariants || len(l.Signatures) > maxSignatures {
		return formatf("layer %d of its index makes no sense", n)
	}
	for _, b := range l.Blobs {
		if b.Size < 0 || b.Size > maxBlob || len(b.MediaType) > maxPerItem || len(b.Annotations) > maxPerItem {
			return formatf("a blob of layer %d of its index makes no sense", n)
		}
	}
	if c := l.Copy; c != nil && (c.Blob.Size < 0 || c.Blob.Size > maxBlob || len(c.Blob.MediaType) > maxPerItem || len(c.Signatures) > maxSignatures) {
		return formatf("the copy of layer %d of its index makes no sense", n)
	}
	for _, v := range l.Variants {
		if v.Blob.Size < 0 || v.Blob.Size > maxBlob || len(v.How) > maxPerItem || len(v.Blob.MediaType) > maxPerItem ||
			v.DiffID.IsZero() || len(v.Signatures) > maxSignatures {
			return formatf("a variant of layer %d of its index makes no sense", n)
		}
	}
	return nil
}

func (l *link) check(n int) error {
	if l.Parent < -1 || l.Parent >= n || l.Layer < 0 || n >= maxLinks {
		return formatf("chain %d of its index makes no sense", n)
	}
	return nil
}

func (r *record) check(n int) error {
	if len(r.Signatures) > maxPerItem || len(r.Keys) == 0 || len(r.Keys) > maxPerItem || len(r.Outputs) > maxPerItem || r.Created < 0 || r.Duration < 0 {
		return formatf("record %d of its index makes no sense", n)
	}
	return nil
}

// builder puts an index together, each thing in it once.
type builder struct {
	index
	layers map[id]int
	chains map[link]int
	keys   map[id]struct{}
	// met are records of the index that is merged in which are met now, by key.
	met map[id]int64
}

func newBuilder() *builder {
	return &builder{
		index:  index{Version: version, Layers: []layer{}, Chains: []link{}, Records: []record{}},
		layers: map[id]int{}, chains: map[link]int{}, keys: map[id]struct{}{}, met: map[id]int64{},
	}
}

// layer adds a layer, or what is new of it.
func (b *builder) layer(l layer) int {
	n, ok := b.layers[l.ID]
	if !ok {
		n = len(b.Layers)
		b.layers[l.ID] = n
		b.Layers = append(b.Layers, l)
		return n
	}
	have := &b.Layers[n]
	switch same := have.sameBlobs(l); {
	case same:
		have.Held = have.Held || l.Held
		have.Signatures = addSignatures(have.Signatures, l.Signatures)
	case len(l.Signatures) > 0 && len(have.Signatures) == 0, l.Held && !have.Held && signersCover(l.Signatures, have.Signatures):
		// What is signed stands, and what is held: blobs that are elsewhere may go away.
		have.Held, have.DiffID, have.Blobs, have.Signatures, have.Variants, have.Copy = l.Held, l.DiffID, l.Blobs, l.Signatures, nil, nil
	}
	if have.DiffID == l.DiffID {
		if have.Copy == nil {
			have.Copy = l.Copy
		}
		have.Variants = addVariants(l.Variants, have.Variants)
	}
	if have.Created == 0 {
		have.Created = l.Created
	}
	for _, o := range l.Origins {
		if !slices.Contains(have.Origins, o) && len(have.Origins) < maxPerItem {
			have.Origins = append(slices.Clip(have.Origins), o)
		}
	}
	return n
}

// sameBlobs reports whether two say the same of a layer's blobs.
func (l layer) sameBlobs(o layer) bool {
	return l.DiffID == o.DiffID && slices.EqualFunc(l.Blobs, o.Blobs, func(a, b blob.Descriptor) bool {
		return a.Digest == b.Digest && a.Size == b.Size && a.MediaType == b.MediaType
	})
}

func (v variant) same(w variant) bool {
	return v.How == w.How && v.DiffID == w.DiffID && v.Blob.Digest == w.Blob.Digest && v.Blob.Size == w.Blob.Size
}

// addVariants adds new ones in front; one of the same kind stands in the place of
// an older one.
func addVariants(old, fresh []variant) []variant {
	out := slices.Clip(fresh)
	for _, v := range old {
		if !slices.ContainsFunc(fresh, func(w variant) bool { return v.How == w.How }) {
			out = append(out, v)
		}
	}
	return out[:min(len(out), maxVariants)]
}

func (b *builder) link(parent, layer int) int {
	l := link{parent, layer}
	n, ok := b.chains[l]
	if !ok {
		n = len(b.Chains)
		b.chains[l] = n
		b.Chains = append(b.Chains, l)
	}
	return n
}

// record adds a record under those of its keys that have none.
func (b *builder) record(r record) {
	keys := make([]id, 0, len(r.Keys))
	for _, k := range r.Keys {
		if _, ok := b.keys[k]; !ok {
			b.keys[k] = struct{}{}
			keys = append(keys, k)
		}
	}
	if len(keys) > 0 {
		r.Keys = keys
		b.Records = append(b.Records, r)
	}
}

// merge adds what another index has, its records used last first, as far as there
// is room and back to a time in seconds since 1970. What is there already stands.
func (b *builder) merge(x *index, since int64) {
	records := slices.Clone(x.Records)
	for i := range records {
		for _, k := range records[i].Keys {
			records[i].Used = max(records[i].Used, b.met[k])
		}
	}
	slices.SortStableFunc(records, func(a, b record) int { return cmp.Compare(b.Used, a.Used) })
	for _, m := range x.Mounts {
		if m.Used >= since && len(b.Mounts) < maxMounts && !slices.ContainsFunc(b.Mounts, func(o mount) bool { return o.ID == m.ID }) {
			b.Mounts = append(b.Mounts, m)
		}
	}
	b.mergeBuilds(x.Builds, since)
	links := map[int]int{-1: -1}
	for _, r := range records {
		if len(b.Records) >= maxRecords || r.Used < since {
			return
		}
		if slices.Contains(r.Outputs, absent) || !slices.ContainsFunc(r.Keys, func(k id) bool { _, ok := b.keys[k]; return !ok }) {
			continue
		}
		r.Outputs = slices.Clone(r.Outputs)
		for i, o := range r.Outputs {
			r.Outputs[i] = b.copyChain(x, o, links)
		}
		b.record(r)
	}
}

// copyChain adds a chain of x; links are those that were added before.
func (b *builder) copyChain(x *index, at int, links map[int]int) int {
	var path []int
	for {
		if n, ok := links[at]; ok {
			for _, i := range slices.Backward(path) {
				n = b.link(n, b.layer(x.Layers[x.Chains[i].Layer]))
				links[i] = n
			}
			return n
		}
		path = append(path, at)
		at = x.Chains[at].Parent
	}
}

// isImage reports whether a layer is that of an image, and not one that kiln made.
func (l layer) isImage() bool { return cache.ImageLayerID(l.DiffID) == cache.LayerID(l.ID) }
