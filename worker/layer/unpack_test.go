package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
)

// entryHeader shortens the headers of tests: the type by its letter as ls has it.
func entryHeader(kind byte, name, more string) (*tar.Header, []byte) {
	h := &tar.Header{Name: name, Mode: 0o644, ModTime: time.Unix(1e9, 0)}
	switch kind {
	case '-':
		h.Typeflag, h.Size = tar.TypeReg, int64(len(more))
		return h, []byte(more)
	case 'd':
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	case 'l':
		h.Typeflag, h.Linkname = tar.TypeSymlink, more
	case 'h':
		h.Typeflag, h.Linkname = tar.TypeLink, more
	case 'p':
		h.Typeflag = tar.TypeFifo
	case 'c':
		h.Typeflag = tar.TypeChar
		fmt.Sscanf(more, "%d:%d", &h.Devmajor, &h.Devminor)
	case 'b':
		h.Typeflag = tar.TypeBlock
		fmt.Sscanf(more, "%d:%d", &h.Devmajor, &h.Devminor)
	}
	return h, nil
}

// makeTar makes a stream of lines "kind name more", with tabs between.
func makeTar(t testing.TB, lines ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, line := range lines {
		f := strings.SplitN(line+"\t\t", "\t", 4)
		h, data := entryHeader(f[0][0], f[1], f[2])
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func openCache(t testing.TB) *cache.Cache {
	t.Helper()
	c, err := cache.Open(context.Background(), t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// list gives a tree in the notation of makeTar, "W" for a whiteout, "D" for an
// opaque directory.
func list(t testing.TB, c *cache.Cache, root tree.Entry) []string {
	t.Helper()
	var out []string
	err := tree.Walk(c, root, func(path string, e tree.Entry) error {
		if path == "" {
			return nil
		}
		kind, more := "?", ""
		switch e.Kind {
		case tree.File:
			f, err := c.Pool().Open(e)
			if err != nil {
				return err
			}
			defer f.Close()
			data, err := io.ReadAll(f)
			if err != nil {
				return err
			}
			if sha256.Sum256(data) != e.Content || int64(len(data)) != e.Size {
				t.Errorf("%s: the pool's bytes are not those of the entry", path)
			}
			kind, more = "-", string(data)
		case tree.Dir:
			if kind = "d"; e.Opaque {
				kind = "D"
			}
		case tree.Symlink:
			kind, more = "l", e.Target
		case tree.Fifo:
			kind = "p"
		case tree.CharDev:
			kind, more = "c", fmt.Sprint(e.Dev)
		case tree.BlockDev:
			kind, more = "b", fmt.Sprint(e.Dev)
		case tree.Whiteout:
			kind = "W"
		}
		out = append(out, strings.TrimRight(kind+"\t"+path+"\t"+more, "\t"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var unpackTests = []struct {
	name    string
	in, out []string
	err     string // part of the error, where it is to fail
}{
	{name: "nothing"},
	{name: "every kind",
		in:  []string{"d\tetc/", "-\tetc/passwd\troot", "l\tetc/link\t/a b", "p\tfifo", "c\tnull\t1:3", "b\tdisk\t8:1"},
		out: []string{"b\tdisk\t2049", "d\tetc", "l\tetc/link\t/a b", "-\tetc/passwd\troot", "p\tfifo", "c\tnull\t259"}},
	{name: "whiteouts and an opaque directory",
		in:  []string{"d\ta", "-\ta/.wh..wh..opq", "-\ta/b\tx", "-\t.wh.gone", "-\tc/.wh.d"},
		out: []string{"D\ta", "-\ta/b\tx", "d\tc", "W\tc/d", "W\tgone"}},
	{name: "a whiteout beside what the layer itself has hides only what is below",
		in:  []string{"-\tf\tx", "-\t.wh.f", "d\td", "-\td/g\ty", "-\t.wh.d", "-\t.wh.e", "-\te/h\tz"},
		out: []string{"D\td", "-\td/g\ty", "D\te", "-\te/h\tz", "-\tf\tx"}},
	{name: "aufs's notes mean nothing", in: []string{"d\t.wh..wh.plnk", "-\t.wh..wh.aufs\tx", "-\ta\tx"}, out: []string{"-\ta\tx"}},
	{name: "a device 0:0 is a whiteout to overlayfs, and so here", in: []string{"c\tf\t0:0"}, out: []string{"W\tf"}},
	{name: "the last of several wins",
		in:  []string{"-\ta\t1", "-\ta\t2", "d\tb", "-\tb/c\tx", "-\tb\tfile", "l\td\tx", "d\td", "-\td/e\ty"},
		out: []string{"-\ta\t2", "-\tb\tfile", "d\td", "-\td/e\ty"}},
	{name: "a directory that comes again keeps what is in it", in: []string{"d\ta", "-\ta/b\tx", "d\ta"}, out: []string{"d\ta", "-\ta/b\tx"}},
	{name: "names are taken inside the root",
		in:  []string{"-\t/etc/a\tx", "-\t../../etc/b\ty", "-\t./etc/./c\tz", "-\tetc/x/../d\tw", "d\t./"},
		out: []string{"d\tetc", "-\tetc/a\tx", "-\tetc/b\ty", "-\tetc/c\tz", "-\tetc/d\tw"}},
	{name: "a parent that is a link is followed inside the root",
		in:  []string{"l\ta\t/etc", "-\ta/passwd\tx", "l\tb\t../../../../tmp", "-\tb/f\ty", "l\tc\tb/../usr", "-\tc/g\tz"},
		out: []string{"l\ta\t/etc", "l\tb\t../../../../tmp", "l\tc\tb/../usr", "d\tetc", "-\tetc/passwd\tx", "d\ttmp", "-\ttmp/f\ty", "d\tusr", "-\tusr/g\tz"}},
	{name: "links to links",
		in:  []string{"l\ta\tb", "l\tb\t/c", "-\ta/f\tx"},
		out: []string{"l\ta\tb", "l\tb\t/c", "d\tc", "-\tc/f\tx"}},
	{name: "links in a circle", in: []string{"l\ta\tb", "l\tb\ta", "-\ta/f\tx"}, err: "a/f"},
	{name: "a parent that is a file", in: []string{"-\ta\tx", "-\ta/f\ty"}, err: "no directory"},
	{name: "a link is replaced, and not followed, as the last name",
		in: []string{"l\ta\t/etc/passwd", "-\ta\tx"}, out: []string{"-\ta\tx"}},
	{name: "hard links", in: []string{"-\ta\tx", "h\tb\ta", "h\td/c\t/b", "l\ts\ta", "h\tt\ts"},
		out: []string{"-\ta\tx", "-\tb\tx", "d\td", "-\td/c\tx", "l\ts\ta", "l\tt\ta"}},
	{name: "a hard link through a linked parent", in: []string{"l\tl\td", "-\td/a\tx", "h\tb\tl/a"}, out: []string{"-\tb\tx", "d\td", "-\td/a\tx", "l\tl\td"}},
	{name: "a hard link to what is not there", in: []string{"h\ta\tetc/shadow"}, err: "not in the same archive"},
	{name: "a hard link outside the root", in: []string{"h\ta\t../../../../etc/shadow"}, err: "not in the same archive"},
	{name: "a hard link to a directory", in: []string{"d\td", "h\ta\td"}, err: "which is a directory"},
	{name: "a hard link to the root", in: []string{"h\ta\t.."}, err: "which is a directory"},
	{name: "a hard link to itself", in: []string{"-\ta\tx", "h\ta\ta"}, err: "itself"},
	{name: "a whiteout of nothing", in: []string{"-\ta/.wh."}, err: "not the name of a whiteout"},
	{name: "a whiteout of the parent", in: []string{"-\ta/.wh..."}, err: "not the name of a whiteout"},
	{name: "a name that is too long", in: []string{"-\t" + strings.Repeat("n", 256) + "\tx"}, err: "255"},
	{name: "a path that is too long", in: []string{"-\t" + strings.Repeat("n/", 2100) + "f\tx"}, err: "4096"},
	{name: "long and odd names",
		in:  []string{"-\t" + strings.Repeat("ü", 120) + "/" + strings.Repeat("y", 255) + "\tx", "-\tnew\nline\tx", "-\tsp ace\tx"},
		out: []string{"-\tnew\nline\tx", "-\tsp ace\tx", "d\t" + strings.Repeat("ü", 120), "-\t" + strings.Repeat("ü", 120) + "/" + strings.Repeat("y", 255) + "\tx"}},
}

func TestUnpack(t *testing.T) {
	c := openCache(t)
	for _, test := range unpackTests {
		t.Run(test.name, func(t *testing.T) {
			root, _, err := Unpack(t.Context(), c, bytes.NewReader(makeTar(t, test.in...)), UnpackOptions{})
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got the error %v, want one about %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := list(t, c, root); strings.Join(got, "\n") != strings.Join(test.out, "\n") {
				t.Errorf("got\n%q\nwant\n%q", got, test.out)
			}
			if err := tree.Verify(c, root); err != nil {
				t.Error(err)
			}
		})
	}
}

// capability is CAP_NET_RAW, effective and permitted, as the kernel has it.
const capability = "\x01\x00\x00\x02\x00\x20" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestUnpackMetadata(t *testing.T) {
	c := openCache(t)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	large := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeReg, Name: "su", Mode: 0o4755, Uid: 0, Gid: 42, Size: 1, ModTime: time.Unix(5, 7), Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.b": "2", "SCHILY.xattr.user.a": "1",
				"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "label"}},
		{Typeflag: tar.TypeReg, Name: "large", Mode: 0o2640, Uid: 3_000_000_000, Gid: 7, Size: int64(len(large)), ModTime: time.Unix(-5, 0)},
		{Typeflag: tar.TypeLink, Name: "same", Linkname: "large"},
		{Typeflag: tar.TypeReg, Name: "large too", Mode: 0o600, Size: int64(len(large)), Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}},
		{Typeflag: tar.TypeDir, Name: "dir", Mode: 0o1777, ModTime: time.Unix(1, 0)},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(large[:h.Size]); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.Close()
	var implicit []string
	root, size, err := Unpack(t.Context(), c, &buf, UnpackOptions{Implicit: func(p string) { implicit = append(implicit, p) }})
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(1 + 2*len(large)); size != want {
		t.Errorf("got the size %d, want %d", size, want)
	}
	if len(implicit) != 1 || implicit[0] != "" {
		t.Errorf("got the implicit directories %q, want the root alone", implicit)
	}
	get := func(path string) tree.Entry {
		e, err := tree.Lookup(c, root, path)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == tree.File && !c.Pool().Has(e) {
			t.Errorf("%s is not in the pool", path)
		}
		return e
	}
	su := get("su")
	want := []tree.Xattr{{Name: "security.capability", Value: capability}, {Name: "user.a", Value: "1"}, {Name: "user.b", Value: "2"}}
	if su.Mode != 0o4755 || su.GID != 42 || su.MTime != 5_000_000_007 || fmt.Sprint(su.Xattrs) != fmt.Sprint(want) || su.Tag != TagOf("/su") {
		t.Errorf("su is %+v", su)
	}
	l, same := get("large"), get("same")
	if l.Mode != 0o2640 || l.UID != 3_000_000_000 || l.MTime != 0 || l.Tag != TagOf("large") {
		t.Errorf("large is %+v", l)
	}
	if same.Name = l.Name; !same.Equal(l) {
		t.Errorf("the hard link %+v differs from %+v", same, l)
	}
	if e := get("dir"); e.Mode != 0o1777 || e.MTime != 1e9 {
		t.Errorf("dir is %+v", e)
	}
	get("large too")
	if left, _ := os.ReadDir(c.Path("tmp")); len(left) != 0 {
		t.Errorf("left in the temporary folder: %v", left)
	}
}

func TestUnpackArchive(t *testing.T) {
	c := openCache(t)
	in := makeTar(t, "d\t./", "-\ta\tx", "-\t.wh.b\ty", "-\td/.wh..wh..opq\tz")
	var implicit []string
	root, _, err := Unpack(t.Context(), c, bytes.NewReader(in), UnpackOptions{
		Archive:  true,
		TagBase:  "opt/app",
		Owner:    func(string, uint32, uint32) (uint32, uint32) { return 5, 6 },
		Implicit: func(p string) { implicit = append(implicit, p) },
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"-\t.wh.b\ty", "-\ta\tx", "d\td", "-\td/.wh..wh..opq\tz"}
	if got := list(t, c, root); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}
	if len(implicit) != 1 || implicit[0] != "d" || root.MTime != 1e18 {
		t.Errorf("implicit directories %q, root %+v; want d, and the root from the stream", implicit, root)
	}
	a, err := tree.Lookup(c, root, "a")
	if err != nil || a.UID != 5 || a.GID != 6 || a.Tag != TagOf("/opt/app/a") {
		t.Errorf("a is %+v, %v", a, err)
	}
}

// endless gives zeros for ever.
type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestUnpackBombs(t *testing.T) {
	c := openCache(t)
	header := func(size int64) io.Reader {
		var buf bytes.Buffer
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "bomb", Size: size}
		if err := tar.NewWriter(&buf).WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		return io.MultiReader(&buf, endless{})
	}
	var limit *LimitError
	_, _, err := Unpack(t.Context(), c, header(1<<30), UnpackOptions{MaxSize: 1 << 20})
	if !errors.As(err, &limit) || limit.Limit != 1<<20 {
		t.Errorf("a gigabyte where a megabyte may be: %v", err)
	}
	_, _, err = Unpack(t.Context(), c, header(1<<60), UnpackOptions{})
	if err == nil || !strings.Contains(err.Error(), "free") {
		t.Errorf("an exabyte: %v", err)
	}
	var lines []string
	for i := range 50 {
		lines = append(lines, fmt.Sprintf("-\td%d/e/f/g\tx", i))
	}
	_, _, err = Unpack(t.Context(), c, bytes.NewReader(makeTar(t, lines...)), UnpackOptions{MaxEntries: 100})
	if !errors.As(err, &limit) || limit.What != "entries" {
		t.Errorf("200 entries where 100 may be, most of them implicit: %v", err)
	}
}

func TestUnpackBrokenStreams(t *testing.T) {
	c := openCache(t)
	whole := makeTar(t, "-\tsmall\tx", "-\tlarge\t"+strings.Repeat("y", 200_000))
	for _, n := range []int{1, 511, 1100, 2000, 100_000} {
		if _, _, err := Unpack(t.Context(), c, bytes.NewReader(whole[:n]), UnpackOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the build was cancelled")
	cancel(why)
	if _, _, err := Unpack(ctx, c, bytes.NewReader(whole), UnpackOptions{}); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	if left, _ := os.ReadDir(c.Path("tmp")); len(left) != 0 {
		t.Errorf("left in the temporary folder: %v", left)
	}
}

func TestUnpackReadsToTheEnd(t *testing.T) {
	c := openCache(t)
	in := append(makeTar(t, "-\ta\tx"), make([]byte, 10_000)...)
	r := bytes.NewReader(in)
	if _, _, err := Unpack(t.Context(), c, r, UnpackOptions{}); err != nil || r.Len() != 0 {
		t.Errorf("%d bytes left, %v", r.Len(), err)
	}
}

// A stream that goes on behind its archive is read until it ends, or its build does.
func TestUnpackIsCancelledBehindTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the build was cancelled")
	read := 0
	tail := readerFunc(func(p []byte) (int, error) {
		if read += len(p); read > 100<<20 {
			return 0, io.EOF
		}
		if read > 10<<20 {
			cancel(why)
		}
		return len(p), nil
	})
	stream := io.MultiReader(bytes.NewReader(makeTar(t, "-\ta\tx")), tail)
	if _, _, err := Unpack(ctx, openCache(t), stream, UnpackOptions{}); !errors.Is(err, why) {
		t.Errorf("got %v after %d bytes", err, read)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func FuzzUnpack(f *testing.F) {
	for _, test := range unpackTests {
		f.Add(makeTar(f, test.in...), false)
	}
	c := openCache(f)
	f.Fuzz(func(t *testing.T, in []byte, archive bool) {
		o := UnpackOptions{Archive: archive, MaxSize: 16 << 20, MaxEntries: 10_000}
		root, size, err := Unpack(t.Context(), c, bytes.NewReader(in), o)
		if err != nil {
			return
		}
		if size > o.MaxSize {
			t.Errorf("%d bytes where %d may be", size, o.MaxSize)
		}
		if err := tree.Verify(c, root); err != nil {
			t.Error(err)
		}
		err = tree.Walk(c, root, func(path string, e tree.Entry) error {
			if err := tree.CheckPath(path); err != nil {
				return err
			}
			if e.Kind == tree.File && !c.Pool().Has(e) {
				return fmt.Errorf("%s is not in the pool", path)
			}
			if archive && (e.Kind == tree.Whiteout || e.Opaque) {
				return fmt.Errorf("%s: a whiteout in an archive", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		again, _, err := Unpack(t.Context(), c, bytes.NewReader(in), o)
		if err != nil || !again.Equal(root) {
			t.Errorf("the second time gave %v, %v; the first time %v", again, err, root)
		}
	})
}

func BenchmarkUnpack(b *testing.B) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range 5000 {
		data := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 2000+i%4000)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("dir%d/file%d", i/100, i), Mode: 0o644, Size: int64(len(data))}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	w.Close()
	b.SetBytes(int64(buf.Len()))
	for b.Loop() {
		b.StopTimer()
		c := openCache(b)
		b.StartTimer()
		if _, _, err := Unpack(context.Background(), c, bytes.NewReader(buf.Bytes()), UnpackOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
