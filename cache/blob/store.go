package blob

import (
	"context"
	"io"
)

// Descriptor says of a blob what an OCI descriptor says.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      Digest            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Store is a folder of blobs, blobs/sha256/<hex>, and of recipes: blobs that are
// kept as a list of chunks (compressed pieces of layers) rather than as a file.
type Store struct{}

// Has reports whether the blob is here, as a file or as a recipe.
func (s *Store) Has(d Digest) bool { panic("unwritten") }

// Open reads a blob. A blob that is not here is an error that wraps fs.ErrNotExist.
func (s *Store) Open(d Digest) (io.ReadSeekCloser, int64, error) { panic("unwritten") }

// Put stores what r gives until its end; a size or digest that differs is an
// error, and nothing is stored. Several at once for one digest are fine.
func (s *Store) Put(ctx context.Context, d Digest, size int64, r io.Reader) error {
	panic("unwritten")
}

// PutRecipe stores a blob as the concatenation of chunks.
func (s *Store) PutRecipe(d Digest, size int64, chunks []ChunkID) error { panic("unwritten") }

// ChunkID names a compressed piece by what went into it (see docs/formats.md, Chunks).
type ChunkID [32]byte

// Chunk gives the bytes of a chunk; one that is not here wraps fs.ErrNotExist.
func (s *Store) Chunk(id ChunkID) ([]byte, error) { panic("unwritten") }

// PutChunk keeps a chunk.
func (s *Store) PutChunk(id ChunkID, data []byte) error { panic("unwritten") }
