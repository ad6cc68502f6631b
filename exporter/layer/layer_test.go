package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/klauspost/compress/zstd"
)

// store is a fake of the cache: nodes, files and chunks in memory.
type store struct {
	nodes *tree.MemNodes
	mu    sync.Mutex
	files map[blob.Digest][]byte
	kept  map[blob.ChunkID][]byte
	puts  int
	opens int
}

func newStore() *store {
	return &store{nodes: tree.NewMemNodes(), files: map[blob.Digest][]byte{}, kept: map[blob.ChunkID][]byte{}}
}

func (s *store) Files() Files { return Files{Nodes: s.nodes, Open: s.open} }

func (s *store) open(e tree.Entry) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens++
	b, ok := s.files[e.Content]
	if !ok {
		return nil, fmt.Errorf("file %s: %w", e.Content, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (s *store) Chunk(id blob.ChunkID) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.kept[id]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

func (s *store) PutChunk(id blob.ChunkID, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts++
	s.kept[id] = bytes.Clone(data)
	return nil
}

// file gives an entry with those contents.
func (s *store) file(data []byte) tree.Entry {
	d := blob.Digest(sha256.Sum256(data))
	s.files[d] = data
	return tree.Entry{Kind: tree.File, Mode: 0o644, Size: int64(len(data)), Content: d, MTime: 1700000000e9}
}

// root makes a tree of what entries has by path.
func (s *store) root(t testing.TB, entries map[string]tree.Entry) tree.Entry {
	t.Helper()
	var b tree.Builder
	for path, e := range entries {
		if err := b.Set(path, e); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
	}
	root, err := b.Root(s.nodes)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// blob gives the bytes of what was made.
func (s *store) blob(m Made) []byte {
	var out []byte
	for _, id := range m.Chunks {
		out = append(out, s.kept[id]...)
	}
	return out
}

// mixed gives a tree of n files of all sizes, the same for the same seed.
func (s *store) mixed(n int, seed uint64) map[string]tree.Entry {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 500)
	for i := range words {
		words[i] = fmt.Sprintf("word%x ", r.Uint32())
	}
	out := map[string]tree.Entry{}
	for i := range n {
		size := r.IntN(9000)
		if r.IntN(200) == 0 {
			size = 3<<20 + r.IntN(3<<20)
		}
		var b bytes.Buffer
		for b.Len() < size {
			b.WriteString(words[r.IntN(len(words))])
		}
		e := s.file(b.Bytes())
		e.Tag = uint64(i) + 1
		out[fmt.Sprintf("dir%d/sub%d/file%d", i%13, i%101, i)] = e
	}
	return out
}

// stream gives a tree's tar stream.
func (s *store) stream(t testing.TB, root tree.Entry, o Options) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := (Stream{Files: s.Files(), Options: o}).Write(t.Context(), &b, root); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// everything is a layer of everything that a layer can hold.
func (s *store) everything() map[string]tree.Entry {
	linked := s.file([]byte("two names"))
	linked.Tag = 7
	other := linked
	other.Tag = 8
	caps := s.file([]byte("#!/bin/true\n"))
	caps.Mode, caps.Xattrs = 0o4755, []tree.Xattr{{Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}, {Name: "user.k", Value: "v"}}
	long := strings.Repeat("long-name/", 20) + strings.Repeat("n", 120)
	return map[string]tree.Entry{
		"a":              linked,
		"b":              linked,
		"c":              other,
		"caps":           caps,
		"dir":            {Kind: tree.Dir, Mode: 0o1777, UID: 1000, GID: 70000, MTime: 1600000000e9 + 5},
		"dir/gone":       {Kind: tree.Whiteout},
		"empty":          s.file(nil),
		"fifo":           {Kind: tree.Fifo, Mode: 0o600},
		"link":           {Kind: tree.Symlink, Mode: 0o777, Target: "../etc/" + strings.Repeat("x", 150)},
		"sock":           {Kind: tree.Socket, Mode: 0o600},
		"null":           {Kind: tree.CharDev, Mode: 0o666, Dev: 1<<8 | 3},
		"disk":           {Kind: tree.BlockDev, Mode: 0o660, Dev: 8 << 8},
		"opaque":         {Kind: tree.Dir, Mode: 0o755, Opaque: true},
		"opaque/f":       s.file([]byte("only this")),
		"grüße-\xff\xfe": s.file([]byte("neither ASCII nor UTF-8")),
		long:             s.file([]byte("deep")),
		"past":           {Kind: tree.Fifo, MTime: -1},
	}
}

func TestStream(t *testing.T) {
	s := newStore()
	got := map[string]*tar.Header{}
	var order []string
	r := tar.NewReader(bytes.NewReader(s.stream(t, s.root(t, s.everything()), Options{})))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uname != "" || h.Gname != "" {
			t.Errorf("%s: owner by name %q %q, want none", h.Name, h.Uname, h.Gname)
		}
		data, err := io.ReadAll(r)
		if err != nil || int64(len(data)) != h.Size {
			t.Errorf("%s: %d bytes, %v; want %d", h.Name, len(data), err, h.Size)
		}
		got[h.Name] = h
		order = append(order, h.Name)
	}
	long := strings.Repeat("long-name/", 20) + strings.Repeat("n", 120)
	for _, w := range []struct {
		name, link string
		kind       byte
		size       int64
		mode       int64
	}{
		{"a", "", tar.TypeReg, 9, 0o644},                                          // the first of two names
		{"b", "a", tar.TypeLink, 0, 0o644},                                        // the second
		{"c", "", tar.TypeReg, 9, 0o644},                                          // another tag: another file
		{"caps", "", tar.TypeReg, 12, 0o4755},                                     // set-id and xattrs
		{"dir/", "", tar.TypeDir, 0, 0o1777},                                      // sticky
		{"dir/.wh.gone", "", tar.TypeReg, 0, 0},                                   // a whiteout
		{"empty", "", tar.TypeReg, 0, 0o644},                                      // no contents
		{"fifo", "", tar.TypeFifo, 0, 0o600},                                      //
		{"link", "../etc/" + strings.Repeat("x", 150), tar.TypeSymlink, 0, 0o777}, // a long target
		{"null", "", tar.TypeChar, 0, 0o666},                                      //
		{"disk", "", tar.TypeBlock, 0, 0o660},                                     //
		{"opaque/.wh..wh..opq", "", tar.TypeReg, 0, 0},                            // before what is in it
		{"opaque/f", "", tar.TypeReg, 9, 0o644},                                   //
		{"grüße-\xff\xfe", "", tar.TypeReg, 23, 0o644},                            // bytes, not text
		{long, "", tar.TypeReg, 4, 0o644},                                         // far over 255 bytes
	} {
		h := got[w.name]
		if h == nil {
			t.Errorf("%.40q is missing", w.name)
			continue
		}
		if h.Typeflag != w.kind || h.Linkname != w.link || h.Size != w.size || h.Mode != w.mode {
			t.Errorf("%.40q: got type %c, link %q, size %d, mode %o; want %c, %q, %d, %o",
				w.name, h.Typeflag, h.Linkname, h.Size, h.Mode, w.kind, w.link, w.size, w.mode)
		}
	}
	if got["sock"] != nil {
		t.Error("the socket is in the stream")
	}
	if h := got["dir/"]; h.ModTime.UnixNano() != 1600000000e9 || h.Uid != 1000 || h.Gid != 70000 {
		t.Errorf("dir: mtime %v, owner %d:%d; want whole seconds and 1000:70000", h.ModTime, h.Uid, h.Gid)
	}
	if h := got["past"]; h.ModTime.Unix() != -1 {
		t.Errorf("past: mtime %v, want one second before 1970", h.ModTime)
	}
	if h := got["caps"]; len(h.PAXRecords["SCHILY.xattr.security.capability"]) != 20 || h.PAXRecords["SCHILY.xattr.user.k"] != "v" {
		t.Errorf("caps: attributes %q", h.PAXRecords)
	}
	if h := got["null"]; h.Devmajor != 1 || h.Devminor != 3 {
		t.Errorf("null: device %d:%d, want 1:3", h.Devmajor, h.Devminor)
	}
	last := map[string]int{}
	for i, n := range order {
		last[n] = i
		if dir := n[:strings.LastIndexByte(strings.TrimSuffix(n, "/"), '/')+1]; dir != "" {
			if _, ok := last[dir]; !ok {
				t.Errorf("%.40q comes before its directory", n)
			}
		}
	}
}

func TestClamp(t *testing.T) {
	s := newStore()
	early, late := s.file([]byte("early")), s.file([]byte("late"))
	early.MTime, late.MTime = 5e9+1, 50e9
	r := tar.NewReader(bytes.NewReader(s.stream(t, s.root(t, map[string]tree.Entry{"early": early, "late": late}), Options{Clamp: 10, Clamped: true})))
	for _, want := range []int64{5, 10} {
		h, err := r.Next()
		if err != nil || h.ModTime.Unix() != want {
			t.Errorf("got %v, %v; want a time of %d", h, err, want)
		}
	}
}

func TestWhiteoutNamesAreRefused(t *testing.T) {
	s := newStore()
	root := s.root(t, map[string]tree.Entry{".wh.x": s.file([]byte("a trap"))})
	if err := (Stream{Files: s.Files()}).Write(t.Context(), io.Discard, root); err == nil || !strings.Contains(err.Error(), ".wh.x") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

// TestGNUTar unpacks the stream with GNU tar, as root.
func TestGNUTar(t *testing.T) {
	s := newStore()
	dir := t.TempDir()
	cmd := exec.Command("tar", "-x", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "-C", dir)
	cmd.Stdin = bytes.NewReader(s.stream(t, s.root(t, s.everything()), Options{}))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	a, errA := os.Stat(filepath.Join(dir, "a"))
	b, errB := os.Stat(filepath.Join(dir, "b"))
	c, errC := os.Stat(filepath.Join(dir, "c"))
	if err := errors.Join(errA, errB, errC); err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(a, b) || os.SameFile(a, c) {
		t.Error("a and b should be one file, and c another")
	}
	if got, err := os.ReadFile(filepath.Join(dir, "grüße-\xff\xfe")); err != nil || string(got) != "neither ASCII nor UTF-8" {
		t.Errorf("the file with an odd name: %q, %v", got, err)
	}
	if got, err := exec.Command("getcap", filepath.Join(dir, "caps")).CombinedOutput(); err == nil && !strings.Contains(string(got), "cap_") {
		t.Errorf("getcap says %q, want a capability", got)
	}
}

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
			root := s.root(t, s.mixed(800, 1))
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
		m, err := NewMaker(s.Files(), s, procs).Make(t.Context(), s.root(t, s.mixed(600, 2)), Options{}, Method{}, blob.Digest{})
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
	if err := w.walk(s.root(t, s.mixed(8000, 4))); err != nil {
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
	root := s.root(t, s.mixed(2000, 5))
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

// zeroReader is a file of zeros of any size.
type zeroReader struct{ left int64 }

func (z *zeroReader) Read(b []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), z.left))
	clear(b[:n])
	z.left -= int64(n)
	return n, nil
}

func (z *zeroReader) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, errors.New("from the start only")
	}
	z.left -= off
	return off, nil
}

func (z *zeroReader) Close() error { return nil }

// skipWriter takes zeros without looking at them, and keeps everything else.
type skipWriter struct {
	bytes.Buffer
	skipped int64
}

func (w *skipWriter) ReadFrom(r io.Reader) (int64, error) {
	l := r.(*io.LimitedReader)
	n := l.N
	w.skipped += n
	l.N = 0
	return n, nil
}

// TestHugeFile streams a file whose size needs an extended header.
func TestHugeFile(t *testing.T) {
	const size = 8<<30 + 3
	s := newStore()
	root := s.root(t, map[string]tree.Entry{
		"huge": {Kind: tree.File, Mode: 0o600, Size: size, Content: blob.Digest{1}},
		"next": s.file([]byte("after it")),
	})
	files := s.Files()
	files.Open = func(e tree.Entry) (io.ReadCloser, error) {
		if e.Size == size {
			return &zeroReader{size}, nil
		}
		return s.open(e)
	}
	var w skipWriter
	if err := (Stream{Files: files}).Write(t.Context(), &w, root); err != nil {
		t.Fatal(err)
	}
	if w.skipped != size {
		t.Errorf("%d bytes of contents, want %d", w.skipped, int64(size))
	}
	const headers = 3 * blockSize // the extended header, its record, the header
	h, err := tar.NewReader(bytes.NewReader(w.Bytes())).Next()
	if err != nil || h.Size != size {
		t.Fatalf("got %+v, %v; want a size of %d", h, err, int64(size))
	}
	tr := tar.NewReader(bytes.NewReader(w.Bytes()[headers+padding(size):]))
	if h, err = tr.Next(); err != nil || h.Name != "next" {
		t.Fatalf("got %+v, %v; want the next file", h, err)
	}
	if data, err := io.ReadAll(tr); err != nil || string(data) != "after it" {
		t.Errorf("got %q, %v", data, err)
	}
}

// states is a fake of a bucket.
type states struct {
	kept map[string][]byte
	hits int
}

func (s *states) Get(key []byte) ([]byte, bool) {
	v, ok := s.kept[string(key)]
	if ok {
		s.hits++
	}
	return v, ok
}

func (s *states) Put(key, value []byte) error {
	s.kept[string(key)] = bytes.Clone(value)
	return nil
}

// TestStatesSpareReading edits files at several places of a layer: what lies
// before is not read, and the DiffID is right all the same.
func TestStatesSpareReading(t *testing.T) {
	s := newStore()
	files := s.mixed(6000, 8)
	st := &states{kept: map[string][]byte{}}
	maker := NewMaker(s.Files(), s, 2)
	maker.States = st
	first, err := maker.Make(t.Context(), s.root(t, files), Options{}, Method{}, blob.Digest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(st.kept) != len(first.Chunks)/stateEvery || len(st.kept) < 3 {
		t.Fatalf("%d states of %d pieces", len(st.kept), len(first.Chunks))
	}
	all := s.opens
	// Paths are sorted as text: dir0 comes first, dir9 last.
	for _, e := range []struct {
		name string
		most int // files that may be read
	}{
		{"dir0/sub0/file0", all},         // nothing before it
		{"dir5/sub5/file5", all * 2 / 3}, // in the middle
		{"dir9/sub99/file1007", all / 3}, // near the end
	} {
		edited := map[string]tree.Entry{}
		for k, v := range files {
			edited[k] = v
		}
		edited[e.name] = s.file([]byte("edited " + e.name))
		root := s.root(t, edited)
		want := blob.Digest(sha256.Sum256(s.stream(t, root, Options{})))
		before := s.opens
		m, err := maker.Make(t.Context(), root, Options{}, Method{}, blob.Digest{})
		if err != nil {
			t.Fatal(err)
		}
		if m.DiffID != want {
			t.Errorf("%s: DiffID %s, want %s", e.name, m.DiffID, want)
		}
		if got := s.opens - before; got > e.most {
			t.Errorf("%s: %d files were read, want at most %d", e.name, got, e.most)
		}
	}
	if st.hits == 0 {
		t.Error("no state was found")
	}
	for k := range st.kept {
		st.kept[k] = []byte("garbage")
	}
	again, err := maker.Make(t.Context(), s.root(t, files), Options{}, Method{}, blob.Digest{})
	if err != nil || again.DiffID != first.DiffID {
		t.Errorf("with broken states: %s, %v; want %s", again.DiffID, err, first.DiffID)
	}
}

func TestRecompress(t *testing.T) {
	s := newStore()
	want := s.stream(t, s.root(t, s.mixed(500, 6)), Options{})
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
