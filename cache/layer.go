package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// errUnknown is inside a GoneError for what the cache has no value of.
var errUnknown = errors.New("the cache knows nothing of it")

// ImageLayerID makes the identity of a layer of an image from its diff id.
func ImageLayerID(diff blob.Digest) LayerID {
	b := append(make([]byte, 0, 64), "kiln image layer 1\x00"...)
	return sha256.Sum256(append(b, diff[:]...))
}

// TreeLayerID makes the identity of a layer that kiln made: that of its tree,
// times left out.
func TreeLayerID(root tree.Entry) LayerID {
	id := root.ID()
	b := append(make([]byte, 0, 64), "kiln tree layer 1\x00"...)
	return sha256.Sum256(append(b, id[:]...))
}

// LayerFolder gives the name of the folder, in Path("layers"), of the layer
// whose tree is root. It covers the times: a layer whose root is replaced by one
// with other times gets another folder.
func LayerFolder(root tree.Entry) string {
	id := folderID(root)
	return hex.EncodeToString(id[:16])
}

func folderID(root tree.Entry) [32]byte { return sha256.Sum256(root.AppendEncode(nil)) }

// folderObject is the name under which the guard knows a layer's folder.
func folderObject(name string) *[32]byte {
	id := sha256.Sum256([]byte("kiln layer folder\x00" + name))
	return &id
}

func (l *Layer) encode() []byte {
	b := appendEntry(nil, l.Root)
	b = append(b, l.DiffID[:]...)
	b = binary.AppendVarint(b, l.Size)
	b = binary.AppendUvarint(b, uint64(len(l.Blobs)))
	for _, d := range l.Blobs {
		b = appendDescriptor(b, d)
	}
	b = binary.AppendUvarint(b, uint64(len(l.Origins)))
	for _, o := range l.Origins {
		b = appendText(b, o)
	}
	return b
}

func decodeLayer(id LayerID, b []byte) (Layer, error) {
	d := decoder{b: b}
	l := Layer{ID: id, Root: d.entry(), DiffID: d.id(), Size: d.int()}
	for range d.count(32) {
		l.Blobs = append(l.Blobs, d.descriptor())
	}
	for range d.count(1) {
		l.Origins = append(l.Origins, d.text())
	}
	return l, d.end()
}

// PutLayer adds to what is known of a layer. Where l.Root differs in its Addr
// from the Root that is known (the same files with other times) l.Root replaces
// it, and the DiffID and Blobs of a layer that kiln made are dropped with it.
func (c *Cache) PutLayer(l Layer) error {
	c.layerMu.Lock()
	defer c.layerMu.Unlock()
	root, err := c.putLayer(l)
	c.useFolder(root)
	return err
}

// putLayer is PutLayer with layerMu held. It gives the tree that the layer has now.
func (c *Cache) putLayer(l Layer) (tree.Entry, error) {
	defer c.guard.Use((*[32]byte)(&l.ID)).RUnlock()
	key := dbKey(prefixLayer, (*[32]byte)(&l.ID))
	v := unstamp(c.db.get(key))
	old, err := decodeLayer(l.ID, v)
	known := v != nil && err == nil
	if known {
		l = c.merge(old, l)
	}
	body := l.encode()
	if known && bytes.Equal(body, v) {
		return l.Root, nil
	}
	return l.Root, c.stamped(key, body)
}

// merge adds what is new of a layer to what is known.
func (c *Cache) merge(old, l Layer) Layer {
	switch {
	case l.Root.Kind == tree.None:
		l.Root = old.Root
	case old.Root.Kind != tree.None && !old.Root.Equal(l.Root):
		c.keepReplaced(old.Root)
		if l.ID == TreeLayerID(l.Root) {
			old.DiffID, old.Blobs = blob.Digest{}, nil
		}
	}
	if l.DiffID.IsZero() {
		l.DiffID = old.DiffID
	}
	if l.Size == 0 {
		l.Size = old.Size
	}
	blobs := slices.Clone(old.Blobs)
	for _, b := range l.Blobs {
		same := func(o blob.Descriptor) bool { return o.Digest == b.Digest && o.MediaType == b.MediaType }
		if i := slices.IndexFunc(blobs, same); i >= 0 {
			blobs[i] = b
		} else {
			blobs = append(blobs, b)
		}
	}
	l.Blobs = blobs
	origins := slices.Clone(old.Origins)
	for _, o := range l.Origins {
		if !slices.Contains(origins, o) {
			origins = append(origins, o)
		}
	}
	l.Origins = origins
	return l
}

// keepReplaced keeps a tree that a layer had, for builds that began with it.
func (c *Cache) keepReplaced(root tree.Entry) {
	c.leaseMu.Lock()
	defer c.leaseMu.Unlock()
	if len(c.leases) > 0 {
		c.replaced = append(c.replaced, root)
	}
}

// useFolder notes the use of a layer's folder.
func (c *Cache) useFolder(root tree.Entry) {
	if root.Kind != tree.None {
		c.guard.Touch(folderObject(LayerFolder(root)))
	}
}

// Layer gives what is known of a layer; nothing is a *GoneError.
func (c *Cache) Layer(id LayerID) (Layer, error) {
	lock := c.guard.Use((*[32]byte)(&id))
	l, err := c.layer(id)
	lock.RUnlock()
	if err == nil {
		c.useFolder(l.Root)
	}
	return l, err
}

// layer is Layer without counting as a use.
func (c *Cache) layer(id LayerID) (Layer, error) {
	v := unstamp(c.db.get(dbKey(prefixLayer, (*[32]byte)(&id))))
	if v == nil {
		return Layer{}, &GoneError{Layer: id, Err: errUnknown}
	}
	l, err := decodeLayer(id, v)
	if err != nil {
		return Layer{}, &GoneError{Layer: id, Err: err}
	}
	return l, nil
}

// ForgetLayer drops what is known of a layer.
func (c *Cache) ForgetLayer(id LayerID) error {
	c.layerMu.Lock()
	defer c.layerMu.Unlock()
	err := c.db.delete(dbKey(prefixLayer, (*[32]byte)(&id)))
	c.chains.forget()
	return err
}

// Extend puts a layer on top of a chain. The parent must be known.
func (c *Cache) Extend(parent ChainID, top LayerID) (ChainID, error) {
	below, err := c.Chain(parent)
	if err != nil {
		return ChainID{}, fmt.Errorf("extending chain %.12s: %w", parent, err)
	}
	b := append(make([]byte, 0, 96), "kiln chain 1\x00"...)
	b = append(b, parent[:]...)
	id := ChainID(sha256.Sum256(append(b, top[:]...)))
	defer c.guard.Use((*[32]byte)(&id)).RUnlock()
	key := dbKey(prefixChain, (*[32]byte)(&id))
	if c.db.has(key) {
		return id, nil
	}
	v := append(make([]byte, 0, 72), parent[:]...)
	v = append(v, top[:]...)
	v = binary.AppendUvarint(v, uint64(below.Depth)+1)
	return id, c.db.put(key, v)
}

// Chain gives the top link of a chain; the empty chain's is the zero Chain. A
// chain that is not known is a *GoneError.
func (c *Cache) Chain(id ChainID) (Chain, error) {
	if id == (ChainID{}) {
		return Chain{}, nil
	}
	defer c.guard.Use((*[32]byte)(&id)).RUnlock()
	return c.chain(id)
}

// chain is Chain without counting as a use.
func (c *Cache) chain(id ChainID) (Chain, error) {
	v := c.db.get(dbKey(prefixChain, (*[32]byte)(&id)))
	d := decoder{b: v}
	ch := Chain{Parent: d.id(), Layer: d.id(), Depth: int(d.uint())}
	if err := d.end(); err != nil {
		if v == nil {
			err = errUnknown
		}
		return Chain{}, &GoneError{Err: fmt.Errorf("chain %.12s: %w", id, err)}
	}
	return ch, nil
}

// Layers gives a chain's layers, bottom first.
func (c *Cache) Layers(id ChainID) ([]Layer, error) {
	var layers []Layer
	for id != (ChainID{}) {
		ch, err := c.Chain(id)
		if err != nil {
			return nil, err
		}
		l, err := c.Layer(ch.Layer)
		if err != nil {
			return nil, err
		}
		if layers == nil {
			layers = make([]Layer, 0, min(ch.Depth, 1<<20))
		}
		layers = append(layers, l)
		id = ch.Parent
	}
	slices.Reverse(layers)
	return layers, nil
}

// scratch is the state of the empty chain.
var scratch = tree.Entry{Kind: tree.Dir, Mode: 0o755}

// Merged gives the state that a chain's layers make together: an Entry of kind
// Dir. It is worked out when first asked for, from the nearest chain below whose
// state is known, and kept. A layer that is not unpacked is a *NotUnpackedError.
func (c *Cache) Merged(id ChainID) (tree.Entry, error) {
	if e, ok := c.state(id); ok {
		return e, nil
	}
	v, err, _ := c.merged.Do(string(id[:]), func() (any, error) { return c.merge1(id) })
	if err != nil {
		return tree.Entry{}, fmt.Errorf("working out the state of chain %.12s: %w", id, err)
	}
	return v.(tree.Entry), nil
}

// state gives the state of a chain where it is known.
func (c *Cache) state(id ChainID) (tree.Entry, bool) {
	if id == (ChainID{}) {
		return scratch, true
	}
	defer c.guard.Use((*[32]byte)(&id)).RUnlock()
	d := decoder{b: unstamp(c.db.get(dbKey(prefixState, (*[32]byte)(&id))))}
	e := d.entry()
	if d.end() != nil || e.Kind != tree.Dir {
		return tree.Entry{}, false
	}
	return e, true
}

func (c *Cache) merge1(id ChainID) (tree.Entry, error) {
	var above []LayerID
	at := id
	state, ok := c.state(at)
	for !ok {
		ch, err := c.Chain(at)
		if err != nil {
			return tree.Entry{}, err
		}
		above = append(above, ch.Layer)
		at = ch.Parent
		state, ok = c.state(at)
	}
	for _, id := range slices.Backward(above) {
		l, err := c.Layer(id)
		if err != nil {
			return tree.Entry{}, err
		}
		if l.Root.Kind == tree.None {
			return tree.Entry{}, &NotUnpackedError{Layer: id}
		}
		if state, err = tree.Apply(c, state, l.Root); err != nil {
			return tree.Entry{}, goneIfMissing(id, err)
		}
	}
	return state, c.SetMerged(id, state)
}

// SetMerged notes the state of a chain where the caller has it at hand.
func (c *Cache) SetMerged(id ChainID, root tree.Entry) error {
	if id == (ChainID{}) {
		return nil
	}
	defer c.guard.Use((*[32]byte)(&id)).RUnlock()
	return c.stamped(dbKey(prefixState, (*[32]byte)(&id)), appendEntry(nil, root))
}

// verified are the chains whose layers are all known.
type verified struct {
	mu     sync.Mutex
	chains map[ChainID]struct{}
	round  int // goes up with forget: what was looked at before says nothing
}

// maxVerified bounds the memory that verified takes to some 10 MB.
const maxVerified = 200_000

func (v *verified) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.chains, v.round = nil, v.round+1
}

// verify checks that a chain's links and layers are all known.
func (c *Cache) verify(id ChainID) error {
	v := &c.chains
	v.mu.Lock()
	round := v.round
	v.mu.Unlock()
	var path []ChainID
	for id != (ChainID{}) {
		v.mu.Lock()
		_, ok := v.chains[id]
		v.mu.Unlock()
		if ok {
			break
		}
		ch, err := c.chain(id)
		if err != nil {
			return err
		}
		if !c.db.has(dbKey(prefixLayer, (*[32]byte)(&ch.Layer))) {
			return &GoneError{Layer: ch.Layer, Err: errUnknown}
		}
		path = append(path, id)
		id = ch.Parent
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.round != round {
		return nil
	}
	if len(v.chains)+len(path) > maxVerified {
		v.chains = nil
	}
	if v.chains == nil {
		v.chains = make(map[ChainID]struct{}, len(path))
	}
	for _, id := range path {
		v.chains[id] = struct{}{}
	}
	return nil
}
