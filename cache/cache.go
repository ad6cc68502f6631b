// Package cache is the state folder: records of what was built, and the trees,
// chains, layers, blobs and files that they lead to.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/pool"
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
	// Outputs are the vertex's outputs in their order.
	Outputs []ChainID
	// Name is the vertex's name when it ran, for du, prune and explain.
	Name string
	// Vertex is the digest of the vertex's op, and Inputs what it saw of each input.
	Vertex [sha256.Size]byte
	Inputs []ContentID
	// Created is when the op had run, Duration how long it took.
	Created  time.Time
	Duration time.Duration
}

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

// Options are the settings of a cache; the zero value works.
type Options struct {
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
	// Waiting is called when another process holds the state folder and Open
	// waits for it; nil says nothing.
	Waiting func(pid int, command string)
}

// Cache is an open state folder. It is safe for concurrent use.
type Cache struct{}

// Open opens or makes the state folder dir. It waits while another process owns it.
func Open(ctx context.Context, dir string, o Options) (*Cache, error) { panic("unwritten") }

// Close makes what was written durable and lets the folder go.
func (c *Cache) Close() error { panic("unwritten") }

// Path gives the path of a file or folder of the state folder, Path("layers") for one.
func (c *Cache) Path(elem ...string) string { panic("unwritten") }

// Node and PutNode make a Cache a tree.Nodes.
func (c *Cache) Node(a tree.Addr) ([]byte, error)       { panic("unwritten") }
func (c *Cache) PutNode(a tree.Addr, node []byte) error { panic("unwritten") }

// Pool, Blobs are the parts of the folder.
func (c *Cache) Pool() *pool.Pool   { panic("unwritten") }
func (c *Cache) Blobs() *blob.Store { panic("unwritten") }

// ImageLayerID and TreeLayerID make the identity of a layer.
func ImageLayerID(diff blob.Digest) LayerID { panic("unwritten") }
func TreeLayerID(root tree.Entry) LayerID   { panic("unwritten") }

// PutLayer adds to what is known of a layer. Where l.Root differs in its Addr
// from the Root that is known (the same files with other times) l.Root replaces
// it, and the DiffID and Blobs of a layer that kiln made are dropped with it.
func (c *Cache) PutLayer(l Layer) error { panic("unwritten") }

// Layer gives what is known of a layer; nothing is a *GoneError.
func (c *Cache) Layer(id LayerID) (Layer, error) { panic("unwritten") }

// ForgetLayer drops what is known of a layer.
func (c *Cache) ForgetLayer(id LayerID) error { panic("unwritten") }

// Extend puts a layer on top of a chain.
func (c *Cache) Extend(parent ChainID, top LayerID) (ChainID, error) { panic("unwritten") }

// Chain gives the top link of a chain; the empty chain's is the zero Chain.
func (c *Cache) Chain(id ChainID) (Chain, error) { panic("unwritten") }

// Layers gives a chain's layers, bottom first.
func (c *Cache) Layers(id ChainID) ([]Layer, error) { panic("unwritten") }

// Merged gives the state that a chain's layers make together: an Entry of kind
// Dir. It is worked out when first asked for, from the nearest chain below whose
// state is known, and kept. A layer that is not unpacked is a *NotUnpackedError.
func (c *Cache) Merged(id ChainID) (tree.Entry, error) { panic("unwritten") }

// SetMerged notes the state of a chain where the caller has it at hand.
func (c *Cache) SetMerged(id ChainID, root tree.Entry) error { panic("unwritten") }

// Lookup finds the record under a key. The error is a *MissError where there is
// none, or none whose chains can still be had.
func (c *Cache) Lookup(k Key) (Record, error) { panic("unwritten") }

// Store puts a record under keys.
func (c *Cache) Store(r Record, keys ...Key) error { panic("unwritten") }

// Lease keeps what it holds from being collected, until Release.
type Lease struct{}

// Lease makes a lease that holds nothing yet. Whatever is put into the cache or
// the pool between its making and its Release is held too.
func (c *Cache) Lease() *Lease { panic("unwritten") }

// Hold adds a chain and all that it leads to.
func (l *Lease) Hold(id ChainID) { panic("unwritten") }

// Release ends the lease.
func (l *Lease) Release() { panic("unwritten") }

// Bucket is a small named key-value store beside the records, for what parts of
// the worker remember: digests by stat, ETags, durations. Losing it costs time only.
type Bucket struct{}

// Bucket gives the bucket of that name.
func (c *Cache) Bucket(name string) *Bucket { panic("unwritten") }

// Get gives a copy of the value under key; ok is false where there is none.
func (b *Bucket) Get(key []byte) (value []byte, ok bool) { panic("unwritten") }

// Put stores a value; it becomes durable in the background.
func (b *Bucket) Put(key, value []byte) error { panic("unwritten") }

// Usage is one line of what the state folder holds.
type Usage struct {
	ID          string    // of the record, mount or blob
	Kind        string    // "regular", "source.local", "exec.cachemount", "internal", as BuildKit names them
	Description string    // the vertex's name, the mount's id
	Size        int64     // bytes on disk that go if this is pruned alone
	Shared      bool      // parts of it are used by others too
	InUse       bool      // a build holds it
	Created     time.Time
	LastUsed    time.Time
	Uses        int
	Parents     []string
}

// Usage lists what the folder holds, largest first.
func (c *Cache) Usage(ctx context.Context) ([]Usage, error) { panic("unwritten") }

// PruneOptions say what to collect. The zero value collects what no record leads to.
type PruneOptions struct {
	All          bool             // whatever no build holds
	KeepDuration time.Duration    // keep what was used since; 0 is no such bound
	MaxUsed      int64            // collect, longest unused first, until the folder is at most so large; 0 is no bound
	Filter       func(Usage) bool // consider only these; nil is all
}

// Prune collects and gives what went.
func (c *Cache) Prune(ctx context.Context, o PruneOptions) ([]Usage, error) { panic("unwritten") }

var _ tree.Nodes = (*Cache)(nil)
