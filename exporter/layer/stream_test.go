package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

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

// TestReadAhead holds the stream, whose small files are read ahead, to the pieces
// that a blob is made of, with files opened and read; and to end where one cannot
// be read, however much of the rest was.
func TestReadAhead(t *testing.T) {
	s := newStore()
	entries := s.mixed(3000, 5)
	entries["dir5/sub5/file5"] = s.file([]byte("the one that goes"))
	entries["large"] = s.file(bytes.Repeat([]byte("large "), 50_000))
	entries["larger"] = s.file(bytes.Repeat([]byte("larger "), 700_000))
	root := s.root(t, entries)
	want := blob.Digest(sha256.Sum256(s.stream(t, root, Options{})))
	files := s.Files()
	files.Read = func(e tree.Entry, b []byte, off int64) error {
		r, err := s.open(e)
		if err != nil {
			return err
		}
		if _, err = io.CopyN(io.Discard, r, off); err == nil {
			_, err = io.ReadFull(r, b)
		}
		return err
	}
	h := sha256.New()
	if err := (Stream{Files: files}).Write(t.Context(), h, root); err != nil || blob.Digest(h.Sum(nil)) != want {
		t.Errorf("read, the stream is %x, %v; want %s", h.Sum(nil), err, want)
	}
	made, err := NewMaker(files, s, 2).Make(t.Context(), root, Options{}, Method{Compression: Uncompressed}, blob.Digest{})
	if err != nil || made.DiffID != want {
		t.Errorf("the DiffID is %s, %v; want %s", made.DiffID, err, want)
	}
	read := files.Read
	files.Read = func(e tree.Entry, b []byte, off int64) error {
		if e.Content == entries["dir5/sub5/file5"].Content {
			return fs.ErrNotExist
		}
		return read(e, b, off)
	}
	err = Stream{Files: files}.Write(t.Context(), io.Discard, root)
	if f, ok := errors.AsType[*FileError](err); !ok || f.Path != "dir5/sub5/file5" || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with a file that is gone: %v", err)
	}
	full := errors.New("the disk is full")
	if err := (Stream{Files: files}).Write(t.Context(), failAfter{new(int), full}, root); !errors.Is(err, full) {
		t.Errorf("where nothing can be written: %v", err)
	}
}

// failAfter takes one write.
type failAfter struct {
	n   *int
	err error
}

func (f failAfter) Write(b []byte) (int, error) {
	if *f.n++; *f.n > 1 {
		return 0, f.err
	}
	return len(b), nil
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
