package blob

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"sort"

	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"golang.org/x/sys/unix"
)

// recipe is a blob as a list of chunks.
type recipe struct {
	size   int64
	chunks []ChunkID
	ends   []int64 // of each chunk in the blob
}

// A recipe's file: the magic, the blob's size, for each chunk its id and length,
// and the crc32c of all that. Numbers are little-endian.
var recipeMagic = []byte("kiln recipe 1\x00\x00\x00")

const recipeRow = len(ChunkID{}) + 4

// PutRecipe stores a blob as the concatenation of chunks, which are here. Their
// lengths must add up to size; that they are the bytes of d is for the caller to
// know, who has hashed them when they were made.
func (s *Store) PutRecipe(d Digest, size int64, chunks []ChunkID) error {
	b := append(make([]byte, 0, len(recipeMagic)+12+len(chunks)*recipeRow), recipeMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	var sum int64
	for i := range chunks {
		n, ok := s.chunkSize(&chunks[i])
		if !ok {
			return fmt.Errorf("storing blob %s: chunk %.12x: %w", d, chunks[i], fs.ErrNotExist)
		}
		b = append(b, chunks[i][:]...)
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
		sum += n
	}
	if sum != size {
		return fmt.Errorf("storing blob %s: its chunks have %d bytes where %d were expected", d, sum, size)
	}
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if err := s.putRecipe(&d, b); err != nil {
		return fmt.Errorf("storing blob %s: %w", d, tmpfile.Explain(err))
	}
	return nil
}

func (s *Store) putRecipe(d *Digest, b []byte) error {
	defer s.guard.Use((*[32]byte)(d)).RUnlock()
	dir := int(s.recipes.Fd())
	f, err := tmpfile.Create(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	s.guard.SetDirty()
	name := hex.EncodeToString(d[:])
	err = f.Link(dir, name)
	if !tmpfile.IsExist(err) {
		return err
	}
	// One blob may be cut in other ways; the chunks of the old recipe may be gone.
	if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := f.Link(dir, name); err != nil && !tmpfile.IsExist(err) {
		return err
	}
	return nil
}

// recipe reads a blob's recipe. A chunk that is not here is an error as that of
// a recipe that is not here.
func (s *Store) recipe(d Digest) (*recipe, error) {
	b, err := s.readRecipe(&d)
	if err != nil {
		return nil, err
	}
	r, err := parseRecipe(b)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", err, fs.ErrNotExist)
	}
	var start int64
	for i := range r.chunks {
		n, ok := s.chunkSize(&r.chunks[i])
		if !ok || n != r.ends[i]-start {
			return nil, fmt.Errorf("chunk %.12x: %w", r.chunks[i], fs.ErrNotExist)
		}
		start = r.ends[i]
	}
	return r, nil
}

func (s *Store) readRecipe(d *Digest) ([]byte, error) {
	defer s.guard.Use((*[32]byte)(d)).RUnlock()
	f, err := openat(s.recipes, hex.EncodeToString(d[:]), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxChunk))
}

func parseRecipe(b []byte) (*recipe, error) {
	bad := func(what string) (*recipe, error) { return nil, errors.New("a damaged recipe: " + what) }
	head := len(recipeMagic) + 8
	if len(b) < head+4 || !bytes.Equal(b[:len(recipeMagic)], recipeMagic) {
		return bad("it does not begin as one")
	}
	body, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(sum) {
		return bad("its checksum differs")
	}
	rows := body[head:]
	if len(rows)%recipeRow != 0 {
		return bad("it ends in the middle of a row")
	}
	r := &recipe{size: int64(binary.LittleEndian.Uint64(body[len(recipeMagic):]))}
	n := len(rows) / recipeRow
	r.chunks, r.ends = make([]ChunkID, n), make([]int64, n)
	var end int64
	for i := range n {
		row := rows[i*recipeRow:]
		copy(r.chunks[i][:], row)
		end += int64(binary.LittleEndian.Uint32(row[len(ChunkID{}):]))
		r.ends[i] = end
	}
	if end != r.size {
		return bad("its chunks do not add up to its size")
	}
	return r, nil
}

// recipeReader reads a blob from its chunks, one of them in memory.
type recipeReader struct {
	store  *Store
	recipe *recipe
	off    int64
	have   int // the chunk in data, plus one
	data   []byte
}

func (r *recipeReader) Read(b []byte) (int, error) {
	if len(b) == 0 && r.recipe != nil && r.off < r.recipe.size {
		return 0, nil
	}
	data, err := r.rest()
	if err != nil {
		return 0, err
	}
	n := copy(b, data)
	r.off += int64(n)
	return n, nil
}

// WriteTo writes a chunk at a time, without a copy in between.
func (r *recipeReader) WriteTo(w io.Writer) (total int64, err error) {
	for {
		data, err := r.rest()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(data)
		r.off += int64(n)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// rest gives the bytes from the reader's place to the end of their chunk; io.EOF is
// the blob's end.
func (r *recipeReader) rest() ([]byte, error) {
	if r.recipe == nil {
		return nil, fs.ErrClosed
	}
	if r.off >= r.recipe.size {
		return nil, io.EOF
	}
	i := sort.Search(len(r.recipe.ends), func(i int) bool { return r.recipe.ends[i] > r.off })
	start := int64(0)
	if i > 0 {
		start = r.recipe.ends[i-1]
	}
	if r.have != i+1 {
		data, err := r.store.Chunk(r.recipe.chunks[i])
		if err != nil {
			return nil, err
		}
		if int64(len(data)) != r.recipe.ends[i]-start {
			return nil, fmt.Errorf("chunk %.12x changed: %w", r.recipe.chunks[i], fs.ErrNotExist)
		}
		r.data, r.have = data, i+1
	}
	return r.data[r.off-start:], nil
}

func (r *recipeReader) Seek(offset int64, whence int) (int64, error) {
	if r.recipe == nil {
		return 0, fs.ErrClosed
	}
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.recipe.size
	default:
		return 0, fmt.Errorf("seeking in a blob: no such whence as %d", whence)
	}
	if offset < 0 {
		return 0, errors.New("seeking in a blob: before its beginning")
	}
	r.off = offset
	return offset, nil
}

func (r *recipeReader) Close() error {
	r.recipe, r.data = nil, nil
	return nil
}
