package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/klauspost/compress/zstd"
)

func TestMake(t *testing.T) {
	for _, how := range []Method{
		{}, // gzip as it comes
		{Compression: Gzip, Level: 9, Leveled: true},  // and hardest
		{Compression: Gzip, Level: 0, Leveled: true},  // stored
		{Compression: Zstd},                           //
		{Compression: Zstd, Level: 12, Leveled: true}, //
	} {
		t.Run(fmt.Sprintf("%s %d", how.Compression, how.key()), func(t *testing.T) {
			s := newStore()
			root := s.root(t, s.mixed(300, 1))
			want := s.stream(t, root, Options{})
			m, err := NewMaker(s.Files(), s, 2).Make(t.Context(), root, Options{}, how, blob.Digest{})
			if err != nil {
				t.Fatal(err)
			}
			compressed := s.blob(m)
			if m.Digest != sha256.Sum256(compressed) || m.Size != int64(len(compressed)) {
				t.Errorf("the blob is not what its digest and size say")
			}
			if m.DiffID != sha256.Sum256(want) {
				t.Errorf("the DiffID is not that of the stream")
			}
			var got []byte
			if how.Compression == Gzip {
				r, err := gzip.NewReader(bytes.NewReader(compressed)) // the standard library's
				if err != nil {
					t.Fatal(err)
				}
				got, err = io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
			} else {
				r, err := zstd.NewReader(bytes.NewReader(compressed))
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				if got, err = io.ReadAll(r); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes unpacked, want %d", len(got), len(want))
			}
		})
	}
}

func TestMakeUncompressed(t *testing.T) {
	s := newStore()
	root := s.root(t, s.mixed(300, 1))
	want := s.stream(t, root, Options{})
	m, err := NewMaker(s.Files(), s, 2).Make(t.Context(), root, Options{}, Method{Compression: Uncompressed}, blob.Digest{})
	if err != nil || m.DiffID != sha256.Sum256(want) || m.Digest != m.DiffID || m.Size != int64(len(want)) || len(m.Chunks) != 0 {
		t.Errorf("got %+v, %v", m, err)
	}
	opens := s.opens
	again, err := NewMaker(s.Files(), s, 2).Make(t.Context(), root, Options{}, Method{Compression: Uncompressed}, m.DiffID)
	if err != nil || again.Size != m.Size || s.opens != opens {
		t.Errorf("with a known DiffID: size %d, %v, %d files read; want %d, none read", again.Size, err, s.opens-opens, m.Size)
	}
}

func TestSameOnAnyNumberOfCores(t *testing.T) {
	var first Made
	for _, procs := range []int{1, 2, 8} {
		s := newStore()
		m, err := NewMaker(s.Files(), s, procs).Make(t.Context(), s.root(t, s.mixed(400, 2)), Options{}, Method{}, blob.Digest{})
		if err != nil {
			t.Fatal(err)
		}
		if procs == 1 {
			first = m
		} else if m.Digest != first.Digest || m.DiffID != first.DiffID {
			t.Errorf("%d at once: %s, want %s", procs, m.Digest, first.Digest)
		}
	}
}

func TestAnEditCompressesOnePiece(t *testing.T) {
	s := newStore()
	files := s.mixed(1500, 3)
	maker := NewMaker(s.Files(), s, 2)
	maker.States = &states{kept: map[string][]byte{}}
	first, err := maker.Make(t.Context(), s.root(t, files), Options{}, Method{}, blob.Digest{})
	if err != nil {
		t.Fatal(err)
	}
	if first.Compressed != len(first.Chunks) || len(first.Chunks) < 8 {
		t.Fatalf("first: %d of %d pieces compressed, want all of at least 8", first.Compressed, len(first.Chunks))
	}
	again, err := maker.Make(t.Context(), s.root(t, files), Options{}, Method{}, blob.Digest{})
	if err != nil || again.Compressed != 0 || again.Digest != first.Digest {
		t.Fatalf("again: %d pieces compressed, %v; want none", again.Compressed, err)
	}
	opens := s.opens
	if _, err := maker.Make(t.Context(), s.root(t, files), Options{}, Method{}, first.DiffID); err != nil || s.opens != opens {
		t.Errorf("with a known DiffID %d files were read, %v; want none", s.opens-opens, err)
	}
	r := rand.New(rand.NewPCG(9, 9))
	for i := range 15 {
		edited := map[string]tree.Entry{}
		for k, v := range files {
			edited[k] = v
		}
		name := fmt.Sprintf("dir%d/sub%d/file%d", i%13, i%101, i)
		switch i % 3 {
		case 0: // other contents of another size
			data := make([]byte, r.IntN(12000))
			for j := range data {
				data[j] = byte(r.Uint32())
			}
			edited[name] = s.file(data)
		case 1: // a new file
			edited[name+"new"] = s.file([]byte(name))
		case 2: // one less
			delete(edited, name)
		}
		m, err := maker.Make(t.Context(), s.root(t, edited), Options{}, Method{}, blob.Digest{})
		if err != nil {
			t.Fatal(err)
		}
		if m.Compressed < 1 || m.Compressed > 2 {
			if files[name].Size <= sliceSize {
				t.Errorf("edit %d: %d pieces compressed, want 1 or 2", i, m.Compressed)
			}
		}
	}
}

func TestPieceSizes(t *testing.T) {
	s := newStore()
	var sizes []int64
	c := &cutter{emit: func(p *piece) error {
		sizes = append(sizes, p.size)
		return nil
	}}
	w := &walker{nodes: s.nodes, emit: c.add}
	if err := w.walk(s.root(t, s.mixed(5000, 4))); err != nil {
		t.Fatal(err)
	}
	if err := c.end(); err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, n := range sizes {
		sum += n
		if n > maxPiece {
			t.Errorf("a piece of %d bytes, want at most %d", n, maxPiece)
		}
	}
	if mean := sum / int64(len(sizes)); mean < pieceSize/3 || mean > 3*pieceSize {
		t.Errorf("%d pieces of %d bytes on average, want about %d", len(sizes), mean, pieceSize)
	}
}

func TestMissingFile(t *testing.T) {
	s := newStore()
	e := s.file([]byte("here"))
	root := s.root(t, map[string]tree.Entry{"dir/lost": e})
	delete(s.files, e.Content)
	_, err := NewMaker(s.Files(), s, 2).Make(t.Context(), root, Options{}, Method{}, blob.Digest{})
	var f *FileError
	if !errors.As(err, &f) || f.Path != "dir/lost" || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want a FileError of dir/lost", err)
	}
	s.files[e.Content] = []byte("h")
	if _, err = NewMaker(s.Files(), s, 2).Make(t.Context(), root, Options{}, Method{}, blob.Digest{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is too short: got %v", err)
	}
	if err := (Stream{Files: s.Files()}).Write(t.Context(), io.Discard, root); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is too short, streamed: got %v", err)
	}
}

func TestCancel(t *testing.T) {
	s := newStore()
	root := s.root(t, s.mixed(600, 5))
	ctx, cancel := context.WithCancel(t.Context())
	files := s.Files()
	files.Open = func(e tree.Entry) (io.ReadCloser, error) {
		cancel()
		return s.open(e)
	}
	m := NewMaker(files, s, 2)
	if _, err := m.Make(ctx, root, Options{}, Method{}, blob.Digest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	if len(m.tokens) != 0 {
		t.Errorf("%d tokens are still out", len(m.tokens))
	}
}

func TestRecompress(t *testing.T) {
	s := newStore()
	want := s.stream(t, s.root(t, s.mixed(300, 6)), Options{})
	diff := blob.Digest(sha256.Sum256(want))
	maker := NewMaker(s.Files(), s, 2)
	m, err := maker.Recompress(t.Context(), bytes.NewReader(want), Method{Compression: Zstd}, diff)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewReader(bytes.NewReader(s.blob(m)))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; want the stream as it was", len(got), err)
	}
	if _, err := maker.Recompress(t.Context(), bytes.NewReader(want[512:]), Method{}, diff); err == nil {
		t.Error("another stream than the DiffID's was taken")
	}
}

func TestMethodCheck(t *testing.T) {
	for _, m := range []Method{
		{Compression: Gzip, Level: 10, Leveled: true},
		{Compression: Gzip, Level: -1, Leveled: true},
		{Compression: Zstd, Level: 23, Leveled: true},
	} {
		if err := m.Check(); err == nil {
			t.Errorf("%s level %d was taken", m.Compression, m.Level)
		}
	}
}
