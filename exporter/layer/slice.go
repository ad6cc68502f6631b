package layer

import (
	"crypto/sha256"
	"io"

	"github.com/kiln-build/kiln/cache/blob"
)

// A slice is a piece of a large file. Its pieceID names it by the file's digest
// and the place in it, so that nothing is read to find its chunk; but a file that
// was changed in one place, or appended to, is another file throughout. So the
// chunks of slices are named by their bytes: what is compressed anew is hashed
// first, at a tenth of what compressing costs, and the pieceID is remembered with
// what came of it.

// slice reports whether the piece is one of a file that has more than one.
func (p *piece) slice() bool {
	return p.stream == nil && len(p.parts) == 1 && p.parts[0].file.Size > sliceSize
}

// contentID names a slice by its bytes.
func contentID(raw []byte) pieceID {
	h := sha256.New()
	io.WriteString(h, "kiln layer content 1\n")
	h.Write(raw)
	var id pieceID
	h.Sum(id[:0])
	return id
}

// sliceKey is where the States hold the contentID of a slice. A key of the hash of
// a stream has other than this many bytes.
func sliceKey(id pieceID) []byte { return append([]byte("slice"), id[:]...) }

// chunkID names the chunk of a piece; ok is false for a slice whose bytes have to
// be looked at for that.
func (m *Maker) chunkID(p planned, how Method) (id blob.ChunkID, ok bool) {
	if !p.p.slice() {
		return p.id.chunk(how), true
	}
	if m.States == nil {
		return id, false
	}
	content, ok := m.States.Get(sliceKey(p.id))
	if !ok || len(content) != len(pieceID{}) {
		return id, false
	}
	return pieceID(content).chunk(how), true
}

// remember keeps what a slice's bytes are called.
func (m *Maker) remember(slice, content pieceID) error {
	if m.States == nil {
		return nil
	}
	return m.States.Put(sliceKey(slice), content[:])
}
