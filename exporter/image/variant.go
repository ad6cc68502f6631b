package image

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter/layer"
)

// variantsBucket maps the diff id of a layer, and how it was made anew with other
// times or compression, to the blob that this came to. What another machine made need
// not be read to be named in a manifest, and need not be here where the registry has it.
const variantsBucket = "exporter.variants"

// how says what a variant is, the same on every machine. One that has the layer's own
// times is another compression of it: the cache need not hold the one that images have.
func how(m layer.Method, clamp layer.Options) string {
	text := m.Compression.String()
	if m.Leveled {
		text += fmt.Sprintf("-%d", m.Level)
	}
	if !clamp.Clamped {
		return text
	}
	return fmt.Sprintf("%s@%d", text, clamp.Clamp)
}

// SetVariant notes a variant of the layer whose diff id is of.
func SetVariant(c *cache.Cache, of blob.Digest, v remote.Variant) error {
	m := layer.Made{DiffID: v.DiffID, Digest: v.Blob.Digest, Size: v.Blob.Size}
	return c.Bucket(variantsBucket).Put(append(of[:], v.How...), encodeMade(m))
}

// Variants gives what is known of the variants of a layer whose diff id is known:
// those with the layer's own times, and then those with the latest times first.
func Variants(c *cache.Cache, l cache.Layer) (out []remote.Variant) {
	if l.DiffID.IsZero() {
		return nil
	}
	add := func(text string, m layer.Made) {
		out = append(out, remote.Variant{How: text, DiffID: m.DiffID, Blob: blob.Descriptor{Digest: m.Digest, Size: m.Size}})
	}
	_ = c.Bucket(variantsBucket).Each(l.DiffID[:], func(k, v []byte) error { // what is not found is made again
		if m, ok := decodeMade(v); ok {
			add(string(k[len(l.DiffID):]), m)
		}
		return nil
	})
	defer func() {
		slices.SortStableFunc(out, func(a, b remote.Variant) int { return cmp.Compare(clampOf(b), clampOf(a)) })
	}()
	if l.Root.Kind != tree.Dir {
		return out
	}
	prefix := madeKey(l.Root, layer.Method{}, layer.Options{})[:1+len(l.Root.Children.Addr)+1]
	_ = c.Bucket(madeBucket).Each(prefix, func(k, v []byte) error {
		m, ok := decodeMade(v)
		method, clamp, known := parseMadeKey(k[len(prefix):])
		if ok && known && (clamp.Clamped || method.Compression != layer.Uncompressed) {
			add(how(method, clamp), m)
		}
		return nil
	})
	return out
}

// clampOf gives the time of a variant; one without has the latest.
func clampOf(v remote.Variant) int64 {
	_, text, ok := strings.Cut(v.How, "@")
	if !ok {
		return math.MaxInt64
	}
	n, _ := strconv.ParseInt(text, 10, 64) // 0 where it is of another kind
	return n
}

// parseMadeKey reads what follows the tree in a key of madeKey.
func parseMadeKey(k []byte) (m layer.Method, o layer.Options, ok bool) {
	if len(k) != 4+8 {
		return m, o, false
	}
	m = layer.Method{Compression: layer.Compression(k[0]), Leveled: k[1] == 1, Level: int(int8(k[2]))}
	o = layer.Options{Clamped: k[3] == 1, Clamp: int64(binary.LittleEndian.Uint64(k[4:]))}
	return m, o, true
}

// variant gives a layer that is not unpacked with other times or compression, where
// somebody has made it so before. Its blob is made when it is read, and is then to be
// the same.
func (ls *layers) variant(chain cache.ChainID, l cache.Layer, clamp layer.Options) (Layer, bool) {
	if clamp.Same || l.Root.Kind != tree.None || l.DiffID.IsZero() {
		return Layer{}, false
	}
	v, ok := ls.env.Cache.Bucket(variantsBucket).Get(append(l.DiffID[:], how(ls.opts.Method, clamp)...))
	if !ok {
		return Layer{}, false
	}
	m, ok := decodeMade(v)
	if !ok || !clamp.Clamped && m.DiffID != l.DiffID {
		return Layer{}, false
	}
	d := blob.Descriptor{MediaType: ls.opts.Method.Compression.MediaType(), Digest: m.Digest, Size: m.Size}
	out := Layer{ID: l.ID, DiffID: m.DiffID, Desc: d}
	out.open = func(ctx context.Context) (io.ReadCloser, error) {
		l, err := ls.unpack(ctx, chain, l.ID)
		if err != nil {
			return nil, err
		}
		made, err := ls.make(ctx, l, clamp)
		if err != nil {
			return nil, err
		}
		if made.Desc.Digest != d.Digest {
			// Nobody is to count on it again.
			_ = ls.env.Cache.Bucket(variantsBucket).Delete(append(l.DiffID[:], how(ls.opts.Method, clamp)...))
			return nil, fmt.Errorf("layer %s made anew is %s, and a remote cache said %s: %w", l.DiffID, made.Desc.Digest, d.Digest, io.ErrUnexpectedEOF)
		}
		return made.Open(ctx)
	}
	return out, true
}
