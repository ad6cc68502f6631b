package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// Key is a definition key or a content key: what a record is found under.
type Key [sha256.Size]byte

// LayerID is the identity of a layer. For a layer of an image it is made of the
// layer's diff id, for one that kiln made, of the identity of its tree.
type LayerID [sha256.Size]byte

// ChainID is the identity of a chain of layers, made of that of the chain below
// and of the top layer. The zero ChainID is the empty chain: scratch.
type ChainID [sha256.Size]byte

// Absent stands in a record for an output that is not known: an inline cache has
// what is in its image, and a step may put out more. It is no chain, and what is
// made of an output that is absent is a miss.
var Absent = ChainID(bytes.Repeat([]byte{0xff}, sha256.Size))

// ContentID identifies what one operation sees of one of its inputs.
type ContentID [sha256.Size]byte

func (k Key) String() string     { return hex.EncodeToString(k[:]) }
func (l LayerID) String() string { return hex.EncodeToString(l[:]) }
func (c ChainID) String() string { return hex.EncodeToString(c[:]) }

// Layer is what is known of a layer. A layer of an image that nothing has read
// yet has no Root: its DiffID, its Blobs and where they come from are known only.
type Layer struct {
	ID LayerID
	// Root is the layer's tree, in layer form (see package tree). Its Kind is
	// None while the layer has not been unpacked.
	Root tree.Entry
	// DiffID is the digest of the layer's uncompressed tar stream, where known.
	DiffID blob.Digest
	// Blobs are the compressed forms that are known of the layer.
	Blobs []blob.Descriptor
	// Origins are repositories that hold Blobs, "host/name" each.
	Origins []string
	// Size is the sum of the sizes of the layer's files in bytes, once unpacked.
	Size int64
}

// Chain is a link of a chain of layers.
type Chain struct {
	Parent ChainID
	Layer  LayerID
	Depth  int // the number of layers, this one counted
}

// Record is what the cache holds under a key: the result of a vertex, and why.
type Record struct {
	// Outputs are the vertex's outputs in their order; Absent is one that is not known.
	Outputs []ChainID
	// Name is the vertex's name when it ran, for du, prune and explain.
	Name string
	// Vertex is the digest of the vertex's op, and Inputs what it saw of each input.
	Vertex [sha256.Size]byte
	Inputs []ContentID
	// Needs are the definition keys of the inputs. A build whose last step is found
	// looks at no other; that those are of use too is known by this.
	Needs []Key
	// Created is when the op had run, Duration how long it took.
	Created  time.Time
	Duration time.Duration
	// From is the remote cache in which a lookup just found the record; empty is
	// this one. It is not stored.
	From string
}

// Whole reports whether all outputs of the record are known.
func (r *Record) Whole() bool { return !slices.Contains(r.Outputs, Absent) }

// MissError says why a lookup found nothing that can be used.
type MissError struct {
	Key    Key
	Reason string
}

func (e *MissError) Error() string { return fmt.Sprintf("no record under %.12s: %s", e.Key, e.Reason) }

// GoneError says that a layer's data, which a record promised, is not here any
// more. The caller forgets the layer (ForgetLayer), which makes every record
// that leads to it a miss, and solves again.
type GoneError struct {
	Layer LayerID
	Err   error
}

func (e *GoneError) Error() string { return fmt.Sprintf("layer %.12s is gone: %v", e.Layer, e.Err) }
func (e *GoneError) Unwrap() error { return e.Err }

// NotUnpackedError says that a tree was asked for of a layer that has not been unpacked.
type NotUnpackedError struct{ Layer LayerID }

func (e *NotUnpackedError) Error() string {
	return fmt.Sprintf("layer %.12s has not been unpacked", e.Layer)
}
