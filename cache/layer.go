package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"

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
	// A layer that was built has other times on each machine that built it, and so
	// other streams: a manifest must not list a blob of one beside the DiffID of another.
	if !old.DiffID.IsZero() && !l.DiffID.IsZero() && old.DiffID != l.DiffID {
		if l.Root.Kind == tree.None && old.Root.Kind != tree.None {
			l.DiffID, l.Blobs = old.DiffID, nil // the folder has the times of old
		} else {
			old.Blobs = nil
		}
	}
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

// ForgetLayer drops what is known of a layer. The states of all chains go with
// it: what is missing may be part of theirs, and they can be worked out again.
func (c *Cache) ForgetLayer(id LayerID) error {
	c.layerMu.Lock()
	defer c.layerMu.Unlock()
	err := c.db.delete(dbKey(prefixLayer, (*[32]byte)(&id)))
	c.chains.forget()
	return errors.Join(err, c.forgetStates())
}
