// Package layer turns the tree of a layer into the tar stream that an image
// layer is, and that stream into a compressed blob.
//
// The stream is what containerd's diff would write of the same files: names in
// sorted order, a directory before what is in it, whiteouts as empty files named
// ".wh.NAME", an opaque directory as one that holds ".wh..wh..opq", modification
// times in whole seconds, numeric owners only. It depends on nothing but the
// tree and Options.
//
// To be compressed, the stream is cut into pieces of about a megabyte, and each
// piece becomes a member (gzip) or a frame (zstd) of its own: a chunk. A chunk is
// named by what went into its piece, so that a piece which was compressed before
// is found again and only read. Where the cuts are depends on the names and sizes
// next to each cut, never on what lies before, so that an edit moves no other
// cut. Neither the number of cores nor what was cached shows in the output.
//
// A piece holds whole entries, or, of a file larger than 2 MiB, a stretch of 2 MiB
// that begins at a multiple of it. Names are made with sha256, of text and of
// little-endian numbers of 64 bits:
//
//	piece = H("kiln layer piece 1\n", for each run of headers and the file behind it:
//	          length of the headers, offset and length in the file, length of the
//	          padding, content digest of the file (32 bytes), the headers)
//	chunk = H("kiln layer chunk 1\n", compression, " ", level, "\n", piece)
//
// The level is -1 for the default one.
package layer

import (
	"fmt"
	"io"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// Files reads trees and the files that they are made of.
type Files struct {
	// Nodes holds the directories.
	Nodes tree.Nodes
	// Open reads the contents of an entry of kind File. It is called from
	// several goroutines at once.
	Open func(e tree.Entry) (io.ReadCloser, error)
	// Read, where it is set, is what Open, reading from off until b is full, and
	// closing come to. It is called from several goroutines at once.
	Read func(e tree.Entry, b []byte, off int64) error
}

// Chunks keeps compressed pieces; a *blob.Store does.
type Chunks interface {
	// Chunk gives what was kept under id; nothing wraps fs.ErrNotExist.
	Chunk(id blob.ChunkID) ([]byte, error)
	PutChunk(id blob.ChunkID, data []byte) error
}

// Options change the stream. The zero value changes nothing.
type Options struct {
	// Clamp, where Clamped is set, is the latest modification time that is
	// written, in seconds since 1970: SOURCE_DATE_EPOCH.
	Clamp   int64
	Clamped bool
	// Same gives everything the time Clamp, also what is older.
	Same bool
}

// mtime gives the time in seconds that is written for ns nanoseconds.
func (o Options) mtime(ns int64) int64 {
	s := ns / 1e9
	if ns%1e9 < 0 {
		s-- // truncated towards the past, as time.Truncate does
	}
	if o.Clamped && (s > o.Clamp || o.Same) {
		s = o.Clamp
	}
	return s
}

// FileError says that the contents of a file could not be read as the tree has them.
type FileError struct {
	Path string
	Err  error
}

func (e *FileError) Error() string { return fmt.Sprintf("reading %q of a layer: %v", e.Path, e.Err) }
func (e *FileError) Unwrap() error { return e.Err }
