package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/layer"
)

// The buckets of this package. Losing one costs time only.
const (
	// madeBucket maps what decides a blob's bytes to the blob (see madeKey).
	madeBucket = "exporter.layers"
	// statesBucket holds the layer.States.
	statesBucket = "exporter.states"
	// createdBucket maps a layer to when it was first exported, in nanoseconds
	// since 1970: an image of the same layers says the same times again.
	createdBucket = "exporter.created"
)

// layers finds or makes the blobs of an export's layers.
type layers struct {
	env   exporter.Env
	opts  *Options
	maker *layer.Maker
	// came is exporter.Result.Came, asked once.
	came func(context.Context) map[blob.Digest]bool
	// placed, where it has a key, is the layer that at gives a writer for, which takes
	// the blob while it is made. Both are set before the first use of get.
	placed layerKey
	at     func() io.Writer

	mu      sync.Mutex
	pending map[layerKey]*pending // guarded by mu
}

// layerKey is a layer with the clamp that it is wanted with.
type layerKey struct {
	id    cache.LayerID
	clamp layer.Options
}

// pending is a layer that is being found or made, for all who want it.
type pending struct {
	done  chan struct{}
	layer Layer
	err   error
}

func newLayers(env exporter.Env, o *Options) *layers {
	m := layer.NewMaker(Files(env.Cache), env.Cache.Blobs(), 0)
	m.States = env.Cache.Bucket(statesBucket)
	return &layers{env: env, opts: o, maker: m, pending: map[layerKey]*pending{}}
}

// get gives the blob of l, which is in the chain; images for several platforms that share layers wait
// for the one that came first.
func (ls *layers) get(ctx context.Context, chain cache.ChainID, l cache.Layer, clamp layer.Options) (Layer, error) {
	key := layerKey{l.ID, clamp}
	ls.mu.Lock()
	p, ok := ls.pending[key]
	if !ok {
		p = &pending{done: make(chan struct{})}
		ls.pending[key] = p
	}
	ls.mu.Unlock()
	if ok {
		select {
		case <-p.done:
			return p.layer, p.err
		case <-ctx.Done():
			return Layer{}, ctx.Err()
		}
	}
	defer close(p.done)
	if p.layer, ok = ls.known(ctx, chain, l, clamp); !ok {
		p.layer, p.err = ls.find(ctx, chain, l, clamp)
	}
	if p.err = gone(l.ID, p.err); p.err != nil {
		// Whoever asks later may have better luck.
		ls.mu.Lock()
		defer ls.mu.Unlock()
		delete(ls.pending, key)
	}
	return p.layer, p.err
}

// settle has get give that layer.
func (ls *layers) settle(key layerKey, out Layer) {
	p := &pending{done: make(chan struct{}), layer: out}
	close(p.done)
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.pending[key] = p
}

// pulled reports whether a layer is an image's, which keeps a blob that it came as.
func pulled(l cache.Layer) bool {
	return !l.DiffID.IsZero() && l.ID == cache.ImageLayerID(l.DiffID) && len(l.Blobs) > 0
}

// known gives the blob of a layer that it came with, or that was made before; ok is
// false where it has to be made.
func (ls *layers) known(ctx context.Context, chain cache.ChainID, l cache.Layer, clamp layer.Options) (out Layer, ok bool) {
	if pulled(l) {
		d := ls.choose(ctx, l.Blobs)
		if ls.opts.Force && compressionOf(d.MediaType) != ls.opts.Method.Compression {
			return Layer{}, false
		}
		return ls.existing(l, d), true
	}
	if !clamp.Clamped && !ls.opts.Method.Leveled && !l.DiffID.IsZero() {
		// What a remote cache knows of a layer.
		for _, d := range l.Blobs {
			if compressionOf(d.MediaType) == ls.opts.Method.Compression &&
				(ls.env.Cache.Blobs().Has(d.Digest) || l.Root.Kind == tree.None) {
				return ls.existing(l, d), true
			}
		}
	}
	if out, ok = ls.variant(chain, l, clamp); !ok && l.Root.Kind == tree.Dir {
		var m layer.Made
		if m, ok = ls.recall(ls.env.Cache.Bucket(madeBucket), madeKey(l.Root, ls.opts.Method, clamp)); ok {
			out = ls.made(l, m, clamp)
		}
	}
	return rewritten(out, clamp), ok
}

// find makes the blob of a layer that is not known.
func (ls *layers) find(ctx context.Context, chain cache.ChainID, l cache.Layer, clamp layer.Options) (Layer, error) {
	if pulled(l) {
		return ls.recompress(ctx, l, ls.choose(ctx, l.Blobs))
	}
	if l.Root.Kind == tree.None {
		var err error
		if l, err = ls.unpack(ctx, chain, l.ID); err != nil {
			return Layer{}, err
		}
	}
	out, err := ls.make(ctx, l, clamp)
	return rewritten(out, clamp), err
}

// rewrittenTime is the annotation of a layer whose times have a bound: that bound.
const rewrittenTime = "buildkit/rewritten-timestamp"

// rewritten notes at a layer which bound its times have.
func rewritten(l Layer, clamp layer.Options) Layer {
	if clamp.Clamped {
		l.Desc.Annotations = map[string]string{rewrittenTime: strconv.FormatInt(clamp.Clamp, 10)}
	}
	return l
}

// choose picks the blob of a pulled layer: the one that it came as in an image that
// the build read, or one of the wanted compression, or one that is here, or the
// first. Where the compression is forced it is what counts most.
func (ls *layers) choose(ctx context.Context, blobs []blob.Descriptor) blob.Descriptor {
	best, rank := blobs[0], -1
	var came map[blob.Digest]bool
	if len(blobs) > 1 && ls.came != nil {
		came = ls.came(ctx)
	}
	for _, d := range blobs {
		r := 0
		if compressionOf(d.MediaType) == ls.opts.Method.Compression {
			r += 2
			if ls.opts.Force {
				r += 8
			}
		}
		if came[d.Digest] {
			r += 4
		}
		if ls.env.Cache.Blobs().Has(d.Digest) {
			r++
		}
		if r > rank {
			best, rank = d, r
		}
	}
	return best
}

// existing gives a blob that is here or at an origin.
func (ls *layers) existing(l cache.Layer, d blob.Descriptor) Layer {
	d.MediaType = ociMediaType(d.MediaType)
	return Layer{ID: l.ID, DiffID: l.DiffID, Desc: d, Origins: l.Origins, open: ls.opener(l, d)}
}

func (ls *layers) opener(l cache.Layer, d blob.Descriptor) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		r, size, err := ls.env.Cache.Blobs().Open(d.Digest)
		if err == nil {
			if size != d.Size {
				r.Close()
				return nil, fmt.Errorf("blob %s has %d bytes and should have %d: %w", d.Digest, size, d.Size, io.ErrUnexpectedEOF)
			}
			return r, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || ls.env.Source == nil {
			return nil, err
		}
		return ls.env.Source.Blob(ctx, l, d)
	}
}

// make gives the blob of a layer whose tree is known: the one that was made of it
// before, or a new one.
func (ls *layers) make(ctx context.Context, l cache.Layer, clamp layer.Options) (Layer, error) {
	bucket, key := ls.env.Cache.Bucket(madeBucket), madeKey(l.Root, ls.opts.Method, clamp)
	m, ok := ls.recall(bucket, key)
	if ok {
		return ls.made(l, m, clamp), nil
	}
	at := ls.at
	if ls.placed != (layerKey{l.ID, clamp}) {
		at = nil
	}
	m, err := ls.makeNew(ctx, l, clamp, at)
	if err != nil {
		return Layer{}, err
	}
	if err := ls.keep(l, m, clamp); err != nil {
		return Layer{}, err
	}
	if err := bucket.Put(key, encodeMade(m)); err != nil {
		return Layer{}, fmt.Errorf("noting the blob of a layer: %w", err)
	}
	out := ls.made(l, m, clamp)
	out.Fresh, out.Placed = m.Compressed > 0, at != nil
	return out, nil
}

// makeNew makes the blob of a layer, and writes it to what at gives, if it is not nil.
func (ls *layers) makeNew(ctx context.Context, l cache.Layer, clamp layer.Options, at func() io.Writer) (layer.Made, error) {
	var known blob.Digest
	if !clamp.Clamped {
		known = l.DiffID
	}
	try := func() (layer.Made, error) {
		var w io.Writer
		if at != nil {
			w = at()
		}
		return ls.maker.MakeTo(ctx, w, l.Root, clamp, ls.opts.Method, known)
	}
	m, err := try()
	if errors.Is(err, fs.ErrNotExist) && ls.env.Source != nil {
		// Files of a local folder come into the pool when they are asked for.
		var alone cache.ChainID
		if alone, err = ls.env.Cache.Extend(cache.ChainID{}, l.ID); err == nil {
			_, err = ls.unpack(ctx, alone, l.ID)
		}
		if err == nil {
			m, err = try()
		}
	}
	return m, err
}

// made gives what was made of a layer, as one that can be read.
func (ls *layers) made(l cache.Layer, m layer.Made, clamp layer.Options) Layer {
	how := ls.opts.Method
	d := blob.Descriptor{MediaType: how.Compression.MediaType(), Digest: m.Digest, Size: m.Size}
	out := Layer{ID: l.ID, DiffID: m.DiffID, Desc: d, Origins: l.Origins, open: ls.opener(l, d), made: true}
	if how.Compression == layer.Uncompressed {
		s := layer.Stream{Files: Files(ls.env.Cache), Options: clamp}
		out.stream = func(ctx context.Context, w io.Writer) error { return s.Write(ctx, w, l.Root) }
	}
	return out
}

// recall finds what was made before, where it can still be read.
func (ls *layers) recall(b *cache.Bucket, key []byte) (layer.Made, bool) {
	v, ok := b.Get(key)
	if !ok {
		return layer.Made{}, false
	}
	m, ok := decodeMade(v)
	if !ok || ls.opts.Method.Compression != layer.Uncompressed && !ls.env.Cache.Blobs().Has(m.Digest) {
		return layer.Made{}, false
	}
	return m, true
}

// keep stores a new blob, and tells the cache of it where it is the layer's own
// and not one with other times.
func (ls *layers) keep(l cache.Layer, m layer.Made, clamp layer.Options) error {
	if len(m.Chunks) > 0 {
		if err := ls.env.Cache.Blobs().PutRecipe(m.Digest, m.Size, m.Chunks); err != nil {
			return fmt.Errorf("storing the blob of a layer: %w", err)
		}
	}
	if clamp.Clamped {
		return nil
	}
	l.DiffID, l.Blobs, l.Origins = m.DiffID, nil, nil
	if len(m.Chunks) > 0 {
		l.Blobs = []blob.Descriptor{{MediaType: ls.opts.Method.Compression.MediaType(), Digest: m.Digest, Size: m.Size}}
	}
	if err := ls.env.Cache.PutLayer(l); err != nil {
		return fmt.Errorf("noting the blob of a layer: %w", err)
	}
	return nil
}

// created gives when a layer was first exported.
func (ls *layers) created(id cache.LayerID) (time.Time, error) {
	if t := Created(ls.env.Cache, id); !t.IsZero() {
		return t, nil
	}
	now := ls.env.Now()
	return now, SetCreated(ls.env.Cache, id, now)
}

// Created gives when a layer was first exported; zero is never.
func Created(c *cache.Cache, id cache.LayerID) time.Time {
	if v, ok := c.Bucket(createdBucket).Get(id[:]); ok && len(v) == 8 {
		return time.Unix(0, int64(binary.LittleEndian.Uint64(v)))
	}
	return time.Time{}
}

// SetCreated notes when a layer was first exported, by another machine for one.
func SetCreated(c *cache.Cache, id cache.LayerID, t time.Time) error {
	return c.Bucket(createdBucket).Put(id[:], binary.LittleEndian.AppendUint64(nil, uint64(t.UnixNano())))
}

// madeKey is all that decides the bytes of a layer's blob.
func madeKey(root tree.Entry, how layer.Method, clamp layer.Options) []byte {
	b := append(make([]byte, 0, 64), 1) // the version of the stream's form
	b = append(b, root.Children.Addr[:]...)
	b = append(b, flag(root.Opaque), byte(how.Compression), flag(how.Leveled), byte(how.Level), flag(clamp.Clamped))
	return binary.LittleEndian.AppendUint64(b, uint64(clamp.Clamp))
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func encodeMade(m layer.Made) []byte {
	b := append(make([]byte, 0, 72), m.DiffID[:]...)
	b = append(b, m.Digest[:]...)
	return binary.LittleEndian.AppendUint64(b, uint64(m.Size))
}

func decodeMade(b []byte) (m layer.Made, ok bool) {
	if len(b) != 72 {
		return m, false
	}
	copy(m.DiffID[:], b)
	copy(m.Digest[:], b[32:])
	m.Size = int64(binary.LittleEndian.Uint64(b[64:]))
	return m, true
}

// unpack makes the files of a chain present, and gives the layer of it that they
// are wanted for.
func (ls *layers) unpack(ctx context.Context, chain cache.ChainID, id cache.LayerID) (cache.Layer, error) {
	if ls.env.Source == nil {
		return cache.Layer{}, &cache.NotUnpackedError{Layer: id}
	}
	if err := ls.env.Source.Unpack(ctx, chain); err != nil {
		return cache.Layer{}, err
	}
	l, err := ls.env.Cache.Layer(id)
	if err == nil && l.Root.Kind == tree.None {
		err = &cache.NotUnpackedError{Layer: id}
	}
	return l, err
}
