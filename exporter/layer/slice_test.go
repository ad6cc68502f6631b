package layer

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// TestSlices edits a large file: what is compressed is what changed, and the blob
// is that of a maker which knows nothing.
func TestSlices(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 5*sliceSize+1000)
	for i := range data {
		data[i] = byte(r.Uint32N(7))
	}
	edit := func(at int) []byte {
		b := bytes.Clone(data)
		b[at]++
		return b
	}
	s, st := newStore(), &states{kept: map[string][]byte{}}
	maker := NewMaker(s.Files(), s, 2)
	maker.States = st
	for _, c := range []struct {
		name  string
		files map[string][]byte
		most  int // slices that may be compressed, with the piece at the end
	}{
		{"first", map[string][]byte{"db": data}, 8},
		{"again", map[string][]byte{"db": data}, 0},
		{"edited in the middle", map[string][]byte{"db": edit(3*sliceSize + 5)}, 1},
		{"edited at the end", map[string][]byte{"db": edit(5*sliceSize + 5)}, 1},
		// The header has another size, and the last slice more bytes.
		{"appended to", map[string][]byte{"db": append(bytes.Clone(data), "more"...)}, 2},
		// Headers are pieces of their own.
		{"beside a copy", map[string][]byte{"db": data, "db.old": data}, 1},
		{"under another name", map[string][]byte{"moved": data}, 1},
	} {
		files := map[string]tree.Entry{}
		for name, b := range c.files {
			files[name] = s.file(b)
		}
		root := s.root(t, files)
		got, err := maker.Make(t.Context(), root, Options{}, Method{}, blob.Digest{})
		if err != nil {
			t.Fatal(err)
		}
		if got.Compressed > c.most {
			t.Errorf("%s: %d pieces were compressed, want at most %d", c.name, got.Compressed, c.most)
		}
		stream := s.stream(t, root, Options{})
		if want := blob.Digest(sha256.Sum256(stream)); got.DiffID != want {
			t.Errorf("%s: DiffID %s, want %s", c.name, got.DiffID, want)
		}
		zr, err := gzip.NewReader(bytes.NewReader(s.blob(got)))
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := io.ReadAll(zr); err != nil || !bytes.Equal(plain, stream) {
			t.Errorf("%s: the blob is not that of the stream: %v", c.name, err)
		}
		fresh := newStore()
		fresh.files, fresh.nodes = s.files, s.nodes
		want, err := NewMaker(fresh.Files(), fresh, 1).Make(t.Context(), root, Options{}, Method{}, blob.Digest{})
		if err != nil || got.Digest != want.Digest {
			t.Errorf("%s: the blob is %s, and %s (%v) where nothing is known", c.name, got.Digest, want.Digest, err)
		}
	}
}

// TestSlicesForgotten takes away chunks and what was remembered of them: both are
// made again.
func TestSlicesForgotten(t *testing.T) {
	s, st := newStore(), &states{kept: map[string][]byte{}}
	maker := NewMaker(s.Files(), s, 2)
	maker.States = st
	root := s.root(t, map[string]tree.Entry{"db": s.file(make([]byte, 3*sliceSize))})
	make := func() Made {
		m, err := maker.Make(t.Context(), root, Options{}, Method{}, blob.Digest{})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	first := make()
	clear(s.kept)
	if m := make(); m.Digest != first.Digest || m.Compressed == 0 {
		t.Errorf("without chunks: %s with %d compressed, want %s", m.Digest, m.Compressed, first.Digest)
	}
	for k := range st.kept {
		st.kept[k] = []byte("garbage")
	}
	if m := make(); m.Digest != first.Digest || m.Compressed != 0 {
		t.Errorf("without states: %s with %d compressed, want %s with none", m.Digest, m.Compressed, first.Digest)
	}
}
