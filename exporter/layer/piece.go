package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

const (
	// pieceSize is how much of a stream a piece holds on average. A gzip stream
	// looks back 32 KiB, so that smaller pieces would begin to cost in size;
	// larger ones would cost more time for an edit.
	pieceSize = 1 << 20
	// maxPiece bounds what a piece grows to where chance makes no cut.
	maxPiece = 4 << 20
	// sliceSize is how much of a file a piece holds: a larger file has pieces of
	// its own, cut at multiples of it.
	sliceSize = 2 << 20
)

// part is some bytes of headers, and then a range of a file and zeros.
type part struct {
	path    string
	headers int        // bytes of piece.headers
	file    tree.Entry // of kind File where n is not 0
	off, n  int64
	pad     int64
}

// piece is a stretch of a stream that is compressed on its own.
type piece struct {
	headers []byte
	parts   []part
	size    int64
	// stream, where it is set, is all of the piece: it was read from a tar stream.
	stream []byte
}

// pieces are used again: of small files, a piece has some hundreds of kilobytes of
// headers, which were copied at each growth.
var pieces = sync.Pool{New: func() any { return new(piece) }}

// keptMemory is the size up to which memory of a piece is used again. Chance makes
// one piece in eight larger: if those were kept, all would be as large as the largest
// before long, and a layer of small files took twice the memory.
const keptMemory = 2 * pieceSize

// release gives back a piece that nobody uses any more.
func (p *piece) release() {
	clear(p.parts) // their strings are to go
	*p = piece{headers: p.headers[:0], parts: p.parts[:0]}
	if cap(p.headers) <= keptMemory {
		pieces.Put(p)
	}
}

// add puts a tar entry, or its beginning, into the piece.
func (p *piece) add(path string, header []byte, file tree.Entry, off, n int64) {
	if n == 0 && len(p.parts) > 0 {
		// Entries without contents become one part with those before and after.
		if last := &p.parts[len(p.parts)-1]; last.n == 0 && last.pad == 0 {
			p.headers = append(p.headers, header...)
			last.headers += len(header)
			p.size += int64(len(header))
			return
		}
	}
	pt := part{path: path, headers: len(header), n: n, off: off}
	if n > 0 {
		pt.file = file
		if off+n == file.Size {
			pt.pad = padding(file.Size)
		}
	}
	p.headers = append(p.headers, header...)
	p.parts = append(p.parts, pt)
	p.size += int64(len(header)) + n + pt.pad
}

// pieceID names the bytes of a piece by what they are made of.
type pieceID [sha256.Size]byte

func (p *piece) id() pieceID {
	h := sha256.New()
	io.WriteString(h, "kiln layer piece 1\n")
	p.hash(h)
	var id pieceID
	h.Sum(id[:0])
	return id
}

// chunk names what the piece becomes when it is compressed: by all that decides
// its bytes.
func (id pieceID) chunk(m Method) blob.ChunkID {
	return sha256.Sum256(fmt.Appendf(nil, "kiln layer chunk 1\n%s %d\n%s", m.Compression, m.key(), id[:]))
}

// hash feeds what the piece's bytes are made of to h.
func (p *piece) hash(h hash.Hash) {
	if p.stream != nil {
		fmt.Fprintf(h, "stream %d\n", len(p.stream))
		h.Write(p.stream)
		return
	}
	rest := p.headers
	var fixed [64]byte
	for i := range p.parts {
		pt := &p.parts[i]
		binary.LittleEndian.PutUint64(fixed[0:], uint64(pt.headers))
		binary.LittleEndian.PutUint64(fixed[8:], uint64(pt.off))
		binary.LittleEndian.PutUint64(fixed[16:], uint64(pt.n))
		binary.LittleEndian.PutUint64(fixed[24:], uint64(pt.pad))
		copy(fixed[32:], pt.file.Content[:])
		h.Write(fixed[:])
		h.Write(rest[:pt.headers])
		rest = rest[pt.headers:]
	}
}

// read appends the piece's bytes to buf.
func (p *piece) read(f *Files, buf []byte) ([]byte, error) {
	if p.stream != nil {
		return append(buf, p.stream...), nil
	}
	rest := p.headers
	for i := range p.parts {
		pt := &p.parts[i]
		buf = append(buf, rest[:pt.headers]...)
		rest = rest[pt.headers:]
		if pt.n == 0 {
			continue
		}
		var err error
		if buf, err = pt.read(f, buf); err != nil {
			return buf, &FileError{Path: pt.path, Err: err}
		}
		buf = append(buf, zeros[:pt.pad]...)
	}
	return buf, nil
}

func (pt *part) read(f *Files, buf []byte) ([]byte, error) {
	start := len(buf)
	if f.Read != nil {
		buf = grow(buf, int(pt.n))
		if err := f.Read(pt.file, buf[start:], pt.off); err != nil {
			return buf[:start], shortRead(err)
		}
		return buf, nil
	}
	r, err := pt.open(f)
	if err != nil {
		return buf, err
	}
	defer r.Close()
	buf = grow(buf, int(pt.n))
	if _, err := io.ReadFull(r, buf[start:]); err != nil {
		return buf[:start], shortRead(err)
	}
	return buf, nil
}

// open gives a reader that stands at the beginning of the range.
func (pt *part) open(f *Files) (io.ReadCloser, error) {
	r, err := f.Open(pt.file)
	if err != nil {
		return nil, err
	}
	if pt.off == 0 {
		return r, nil
	}
	if s, ok := r.(io.Seeker); ok {
		_, err = s.Seek(pt.off, io.SeekStart)
	} else {
		_, err = io.CopyN(io.Discard, r, pt.off)
	}
	if err != nil {
		r.Close()
		return nil, shortRead(err)
	}
	return r, nil
}

// shortRead turns an early end into what it means.
func shortRead(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the file is shorter than its tree says: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// grow lengthens b by n bytes whose values do not matter.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b[:len(b)+n]
	}
	return append(b, make([]byte, n)...)
}

// cutter makes pieces of the entries that a walk gives.
type cutter struct {
	emit func(*piece) error
	cur  *piece
}

// add takes the next entry of the stream.
func (c *cutter) add(it item) error {
	if it.file.Size > sliceSize {
		return c.large(it)
	}
	n := int64(len(it.header)) + it.file.Size + padding(it.file.Size)
	if c.cur != nil && c.cur.size+n > maxPiece {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.piece().add(it.path, it.header, it.file, 0, it.file.Size)
	if cutAfter(it.path, n) {
		return c.flush()
	}
	return nil
}

// large gives a file pieces of its own, without its header, so that they are the
// same in every layer that has the file, whatever it is called there.
func (c *cutter) large(it item) error {
	c.piece().add(it.path, it.header, tree.Entry{}, 0, 0)
	if err := c.flush(); err != nil {
		return err
	}
	for off := int64(0); off < it.file.Size; off += sliceSize {
		c.piece().add(it.path, nil, it.file, off, min(sliceSize, it.file.Size-off))
		if err := c.flush(); err != nil {
			return err
		}
	}
	return nil
}

// end ends the stream.
func (c *cutter) end() error {
	c.piece().add("", zeros[:trailerSize], tree.Entry{}, 0, 0)
	return c.flush()
}

func (c *cutter) piece() *piece {
	if c.cur == nil {
		c.cur = pieces.Get().(*piece)
	}
	return c.cur
}

func (c *cutter) flush() error {
	p := c.cur
	if p == nil {
		return nil
	}
	c.cur = nil
	return c.emit(p)
}

// cutAfter decides by lot whether a piece ends behind the entry at path, with a
// chance in proportion to its size, so that pieces are of pieceSize on average.
// The lot is drawn from the path alone: an edit of the file moves no cut unless
// it changes the size very much.
func cutAfter(path string, size int64) bool {
	if size >= pieceSize {
		return true
	}
	h := uint64(14695981039346656037) // FNV-1a
	for i := range len(path) {
		h = (h ^ uint64(path[i])) * 1099511628211
	}
	// FNV's high bits hardly know the last letters; this spreads them.
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	h ^= h >> 32
	return h%pieceSize < uint64(size)
}
