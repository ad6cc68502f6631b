// Package tree holds file system states as Merkle trees of directories, as git
// does: a directory is a list of entries, and an entry of kind Dir names the
// node of its children. Equality of any two subtrees is one comparison.
//
// A directory has two names. Its ID is its identity: it covers names, kinds,
// modes, owners, xattrs, link targets and contents, and not times, so that two
// trees with equal IDs are the same to every cache key. Its Addr is where its
// node is stored: it covers the times and the tags too, so that what is built
// from a tree has the times that this very tree has.
//
// A tree is either a state (what a process would see at /) or a layer (a
// difference, which also has entries of kind Whiteout, and directories that are
// Opaque). The form is the same; Apply and Diff go from one to the other. The
// lowest bit of an ID says whether there are such marks below, so that a layer
// that hides nothing is taken for a state without a look at it.
//
// A directory is stored as nodes of some 80 entries, cut where the names say so,
// under nodes of nodes: one set of entries has one form however it came about,
// and a change in a directory of any size rewrites the nodes on the way to it.
// The format is drawn at node and in docs/format-tree.md.
//
// Builder makes a tree from entries in any order, PutDir one directory, Editor
// changes a tree; Lookup, Resolve, ReadDir and Walk read one; Apply, Diff and
// Squash do the arithmetic of layers; Filter and Map reshape; Changed compares.
// All of them share what they do not change, and all but Builder and Editor may
// be called concurrently.
//
// Nodes may come from elsewhere. Reading a malformed one is an error that wraps
// ErrCorrupt, never a panic; CheckNode and Verify say whether a node or a tree is
// what its names claim. Paths are relative and clean, see CheckPath.
package tree

import (
	"crypto/sha256"

	"github.com/kiln-build/kiln/cache/blob"
)

// ID is the identity of a directory's children, times left out. The zero ID is
// that of no children. Its lowest bit, that of the last byte, is set where a
// Whiteout or an Opaque directory is below.
type ID [sha256.Size]byte

// Addr is where a directory's node is stored. The zero Addr is the empty directory.
type Addr [sha256.Size]byte

// Ref names a directory's children by both its names. The zero Ref is the empty directory.
type Ref struct {
	ID   ID
	Addr Addr
}

// Kind says what an entry is.
type Kind uint8

const (
	// None is the zero Kind: no entry.
	None Kind = iota
	// File is a regular file: Content, Size and Tag are set.
	File
	// Dir is a directory: Children is set, Opaque may be.
	Dir
	// Symlink is a symbolic link: Target is set.
	Symlink
	// Fifo is a named pipe.
	Fifo
	// CharDev is a character device: Dev is set.
	CharDev
	// BlockDev is a block device: Dev is set.
	BlockDev
	// Socket is a unix socket; image layers cannot hold one.
	Socket
	// Whiteout stands, in layers only, for a name that the layer removes.
	Whiteout
)

// Entry is a name in a directory and what it stands for. The root of a tree is
// an Entry of kind Dir whose Name is empty. Entries are values: nothing that an
// Entry refers to is changed once it is made.
type Entry struct {
	Name   string
	Kind   Kind
	Mode   uint32 // permission, set-id and sticky bits: 07777
	UID    uint32
	GID    uint32
	MTime  int64   // nanoseconds since 1970; no part of the identity
	Xattrs []Xattr // sorted by name

	Size    int64       // of a File, in bytes
	Content blob.Digest // of a File
	// Tag tells files apart that are equal in all else but must not share an
	// inode, as two names in one root file system that a user sees as two files.
	// Whoever first brings a file into the pool makes its tag from its path. Two
	// entries of one layer that are equal in everything, tag included, are hard
	// links to one file. No part of the identity.
	Tag uint64

	Target string // of a Symlink
	Dev    uint64 // of a device, as makedev(3) gives it

	Children Ref  // of a Dir
	Opaque   bool // of a Dir in a layer: nothing below shows through
}

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value string
}
