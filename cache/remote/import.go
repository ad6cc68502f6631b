package remote

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// loadTimeout is how long an index may take: builds wait for it before they run
// their first step.
const loadTimeout = 30 * time.Second

// Import is a remote cache in which records are looked up. It is safe for
// concurrent use.
type Import struct {
	cache *cache.Cache
	store Store
	opt   Options

	cancel context.CancelFunc
	loaded chan struct{} // closed when the fields of the next block are set

	index    *index // nil where there is none that can be used
	manifest blob.Descriptor
	keys     map[cache.Key]int
	layers   map[cache.LayerID]int
	blobs    map[blob.Digest]struct{}

	mu sync.Mutex // guards what follows
	// chains are the links that were put into the local cache.
	chains map[int]cache.ChainID
	lost   map[cache.LayerID]struct{}
	signed map[int]bool // layers whose signatures were looked at
	// refused are the records that were not taken since nobody vouches for them.
	refused map[int]struct{}
	missing map[blob.Digest]struct{} // blobs that the store said it does not have
	// lostMounts are the cache mounts that could not be brought back.
	lostMounts map[string]struct{}
	dead       bool
}

// Options are the settings of an import; the zero value works.
type Options struct {
	// Name is what people call the cache.
	Name string
	// Origin is the repository that the store is, if it is one.
	Origin string
	// Created takes when layers that become known were first exported; may be nil.
	Created func(id cache.LayerID, at time.Time)
	// Variant takes variants of layers that become known; may be nil.
	Variant func(of blob.Digest, v Variant)
	// Copies lets Passing give copies of images' layers, and Aside layers that no image has.
	Copies, Aside bool
	// Verify are the keys one of which has to have signed what is taken; none takes all.
	Verify []ed25519.PublicKey
}

// Open begins to read a cache's index. done is called once, with what went wrong.
func Open(ctx context.Context, c *cache.Cache, s Store, o Options, done func(error)) *Import {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	i := &Import{
		cache: c, store: s, opt: o, cancel: cancel, loaded: make(chan struct{}),
		chains: map[int]cache.ChainID{-1: {}}, lost: map[cache.LayerID]struct{}{},
		signed: map[int]bool{}, refused: map[int]struct{}{},
		missing: map[blob.Digest]struct{}{}, lostMounts: map[string]struct{}{},
	}
	go func() {
		defer close(i.loaded)
		x, manifest, err := load(ctx, s)
		if err == nil {
			i.manifest = manifest
			i.use(x)
		} else if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("it did not answer within %v: %w", loadTimeout, err)
		}
		done(err)
	}()
	return i
}

func (i *Import) use(x *index) {
	i.index = x
	i.keys = make(map[cache.Key]int, 2*len(x.Records))
	i.layers = make(map[cache.LayerID]int, len(x.Layers))
	i.blobs = make(map[blob.Digest]struct{}, len(x.Layers))
	for n, r := range x.Records {
		for _, k := range r.Keys {
			if _, ok := i.keys[cache.Key(k)]; !ok {
				i.keys[cache.Key(k)] = n
			}
		}
	}
	for n, l := range x.Layers {
		i.layers[cache.LayerID(l.ID)] = n
		if l.Held {
			for _, b := range l.Blobs {
				i.blobs[b.Digest] = struct{}{}
			}
		}
		if l.Copy != nil {
			i.blobs[l.Copy.Blob.Digest] = struct{}{}
		}
	}
}

// Name is what people call the cache.
func (i *Import) Name() string { return i.opt.Name }

// Close ends the import; Lookup finds nothing any more.
func (i *Import) Close() {
	i.cancel()
	<-i.loaded
	i.mu.Lock()
	defer i.mu.Unlock()
	i.dead = true
}

// Lookup finds the record under a key, waiting for the index if need be, and
// makes the local cache know its chains. The error is a *cache.MissError.
func (i *Import) Lookup(k cache.Key) (cache.Record, error) {
	<-i.loaded
	n, ok := i.keys[k]
	if !ok {
		return cache.Record{}, &cache.MissError{Key: k, Reason: "nothing was recorded"}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.dead {
		return cache.Record{}, &cache.MissError{Key: k, Reason: "the remote cache lost layers"}
	}
	r := i.index.Records[n]
	if !i.vouched(r, k) {
		i.refused[n] = struct{}{}
		return cache.Record{}, &cache.MissError{Key: k, Reason: "the remote cache's record is not signed by a key that is asked for"}
	}
	out := cache.Record{
		From: i.opt.Name, Name: r.Name, Vertex: r.Vertex, Created: time.Unix(r.Created, 0), Duration: time.Duration(r.Duration),
		Outputs: make([]cache.ChainID, len(r.Outputs)),
	}
	for _, in := range r.Inputs {
		out.Inputs = append(out.Inputs, cache.ContentID(in))
	}
	for j, o := range r.Outputs {
		if out.Outputs[j] = cache.Absent; o == absent {
			continue
		}
		var err error
		if out.Outputs[j], err = i.chain(o); err != nil {
			return cache.Record{}, &cache.MissError{Key: k, Reason: err.Error()}
		}
	}
	return out, nil
}

// Refused counts the records that were looked up, and not taken since no key of
// Verify has signed them.
func (i *Import) Refused() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.refused)
}

// vouched reports whether keys that are asked for have signed a record, under one
// of its keys, and all layers that it leads to. i.mu is held.
func (i *Import) vouched(r record, k cache.Key) bool {
	if len(i.opt.Verify) == 0 {
		return true
	}
	if !verifiedByAny(i.opt.Verify, r.Signatures, r.message(id(k), i.index.outputsOf(r))) {
		return false
	}
	for _, at := range r.Outputs {
		for ; at >= 0; at = i.index.Chains[at].Parent {
			n := i.index.Chains[at].Layer
			ok, known := i.signed[n]
			if !known {
				l := i.index.Layers[n]
				ok = verifiedByAny(i.opt.Verify, l.Signatures, l.message())
				i.signed[n] = ok
			}
			if !ok {
				return false
			}
		}
	}
	return true
}

// chain makes a chain known. i.mu is held.
func (i *Import) chain(at int) (cache.ChainID, error) {
	var path []int
	for {
		if _, ok := i.chains[at]; ok {
			break
		}
		path = append(path, at)
		at = i.index.Chains[at].Parent
	}
	id := i.chains[at]
	for n := len(path) - 1; n >= 0; n-- {
		l := i.index.Layers[i.index.Chains[path[n]].Layer]
		if err := i.putLayer(l); err != nil {
			return id, err
		}
		var err error
		if id, err = i.cache.Extend(id, cache.LayerID(l.ID)); err != nil {
			return id, err
		}
		i.chains[path[n]] = id
	}
	return id, nil
}

var errLost = errors.New("a layer of it was lost")

// putLayer makes a layer known, unless it is. What is known of an image's layer
// stands as it is: a cache must not spoil what an image said.
func (i *Import) putLayer(l layer) error {
	lid := cache.LayerID(l.ID)
	if _, ok := i.lost[lid]; ok {
		return errLost
	}
	known, err := i.cache.Layer(lid)
	if err == nil && (known.Root.Kind != tree.None || l.isImage()) {
		return nil
	}
	if len(l.Blobs) == 0 {
		return fmt.Errorf("nobody has layer %.12s", lid)
	}
	origins := l.Origins
	if l.Held && i.opt.Origin != "" {
		origins = append([]string{i.opt.Origin}, origins...)
	}
	if i.opt.Created != nil && l.Created > 0 {
		i.opt.Created(lid, time.Unix(0, l.Created))
	}
	if i.opt.Variant != nil {
		for _, v := range l.Variants {
			if len(i.opt.Verify) == 0 || verifiedByAny(i.opt.Verify, v.Signatures, v.message(l.DiffID)) {
				i.opt.Variant(l.DiffID, v.Variant)
			}
		}
	}
	return i.cache.PutLayer(cache.Layer{ID: lid, DiffID: l.DiffID, Blobs: l.Blobs, Origins: origins, Size: l.Size})
}

// Holds reports whether the cache lists a layer, and can still be counted on for it.
func (i *Import) Holds(id cache.LayerID) bool {
	if !i.ready() {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	_, lost := i.lost[id]
	_, ok := i.layers[id]
	return ok && !lost && !i.dead
}

// mayLack reports whether something of what the cache lists of a layer was found missing:
// the layer, one of the blobs, or so much that nothing is counted on any more. A nil
// Import knows of nothing.
func (i *Import) mayLack(id cache.LayerID, blobs ...blob.Descriptor) bool {
	if i == nil || !i.ready() {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, lost := i.lost[id]; lost || i.dead {
		return true
	}
	return slices.ContainsFunc(blobs, func(d blob.Descriptor) bool { _, ok := i.missing[d.Digest]; return ok })
}

// Passing gives a blob of a layer that the cache holds for those who need the layer's
// files and will hardly want the blob again: a copy of an image's layer, which takes
// less to be unpacked than the layer's own, or that of a layer that no image has.
func (i *Import) Passing(l cache.Layer) (d blob.Descriptor, ok bool) {
	if !i.Holds(l.ID) {
		return d, false
	}
	has := i.index.Layers[i.layers[l.ID]]
	if has.DiffID != l.DiffID {
		return d, false
	}
	if i.opt.Aside && has.Aside && has.Held && len(has.Blobs) > 0 {
		return has.Blobs[0], true
	}
	c := has.Copy
	if !i.opt.Copies || c == nil || len(i.opt.Verify) > 0 && !verifiedByAny(i.opt.Verify, c.Signatures, c.message(l.DiffID)) {
		return d, false
	}
	return c.Blob, true
}

// Blob reads a blob that the cache holds, from offset on; the bytes are not
// verified. One that it does not hold wraps fs.ErrNotExist.
func (i *Import) Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	if i.ready() {
		if _, ok := i.blobs[d.Digest]; ok {
			r, err := i.store.Blob(ctx, d, offset)
			if isMissing(err) {
				i.mu.Lock()
				defer i.mu.Unlock()
				i.missing[d.Digest] = struct{}{}
			}
			return r, err
		}
	}
	return nil, fmt.Errorf("blob %s is in no remote cache: %w", d.Digest, fs.ErrNotExist)
}

func (i *Import) ready() bool {
	select {
	case <-i.loaded:
		return i.index != nil
	default:
		return false
	}
}

// Lost notes that a layer of the cache could not be had, which makes every record
// that leads to it a miss. After one more nothing of the cache is taken: it may be
// gone altogether, and a build must not find that out layer by layer. Lost gives
// the layers that the local cache should then forget too: those which it knows of
// through this cache only.
func (i *Import) Lost(id cache.LayerID) (others []cache.LayerID) {
	if !i.ready() {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := i.layers[id]; !ok || i.dead {
		return nil
	}
	i.lost[id] = struct{}{}
	i.chains = map[int]cache.ChainID{-1: {}}
	if len(i.lost) < 2 {
		return nil
	}
	i.dead = true
	for other := range i.layers {
		if l, err := i.cache.Layer(other); err == nil && l.Root.Kind == tree.None && other != id {
			others = append(others, other)
		}
	}
	return others
}
