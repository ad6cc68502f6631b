package blob

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"golang.org/x/sys/unix"
)

// ChunkID names a compressed piece by what went into it (see docs/formats.md, Chunks).
type ChunkID [32]byte

// A chunk's name does not say what its bytes must be, so its file ends with
// their crc32c, little-endian.
const trailer = 4

// maxChunk bounds what is read into memory for a chunk; pieces are about a megabyte.
const maxChunk = 1 << 30

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func chunkName(id *ChunkID) string {
	var b [65]byte
	hex.Encode(b[:2], id[:1])
	b[2] = '/'
	hex.Encode(b[3:], id[1:])
	return string(b[:])
}

// chunkDir makes the folder of a chunk, once.
func (s *Store) chunkDir(id *ChunkID) {
	s.chunkDirs[id[0]].Do(func() {
		_ = unix.Mkdirat(int(s.chunks.Fd()), hex.EncodeToString(id[:1]), 0o700)
	})
}

// Chunk gives the bytes of a chunk; one that is not here, or damaged, wraps fs.ErrNotExist.
func (s *Store) Chunk(id ChunkID) ([]byte, error) {
	f, err := s.openChunk(&id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("chunk %.12x: %w", id, err)
	}
	if st.Size() < trailer || st.Size() > maxChunk {
		return nil, fmt.Errorf("chunk %.12x is damaged: %w", id, fs.ErrNotExist)
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("chunk %.12x: %w", id, err)
	}
	data, sum := b[:len(b)-trailer:len(b)-trailer], b[len(b)-trailer:]
	if crc32.Checksum(data, castagnoli) != binary.LittleEndian.Uint32(sum) {
		_ = unix.Unlinkat(int(s.chunks.Fd()), chunkName(&id), 0)
		return nil, fmt.Errorf("chunk %.12x is damaged: %w", id, fs.ErrNotExist)
	}
	return data, nil
}

func (s *Store) openChunk(id *ChunkID) (*os.File, error) {
	defer s.guard.Use((*[32]byte)(id)).RUnlock()
	f, err := openat(s.chunks, chunkName(id), unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("chunk %.12x: %w", *id, err)
	}
	return f, nil
}

// chunkSize gives the length of a chunk's bytes; ok is false where it is not here.
func (s *Store) chunkSize(id *ChunkID) (n int64, ok bool) {
	defer s.guard.Use((*[32]byte)(id)).RUnlock()
	var st unix.Stat_t
	err := unix.Fstatat(int(s.chunks.Fd()), chunkName(id), &st, unix.AT_SYMLINK_NOFOLLOW)
	return st.Size - trailer, err == nil && st.Size >= trailer
}

// PutChunk keeps a chunk.
func (s *Store) PutChunk(id ChunkID, data []byte) error {
	if _, ok := s.chunkSize(&id); ok {
		return nil
	}
	if err := s.putChunk(&id, data); err != nil {
		return fmt.Errorf("storing chunk %.12x: %w", id, tmpfile.Explain(err))
	}
	return nil
}

func (s *Store) putChunk(id *ChunkID, data []byte) error {
	s.chunkDir(id)
	f, err := tmpfile.Create(int(s.chunks.Fd()))
	if err != nil {
		return err
	}
	defer f.Close()
	sum := binary.LittleEndian.AppendUint32(nil, crc32.Checksum(data, castagnoli))
	if _, err := f.Write(data); err != nil {
		return err
	}
	if _, err := f.Write(sum); err != nil {
		return err
	}
	s.guard.SetDirty()
	s.guard.Grow(int64(len(data)))
	if err := f.Link(int(s.chunks.Fd()), chunkName(id)); err != nil && !tmpfile.IsExist(err) {
		return err
	}
	return nil
}
