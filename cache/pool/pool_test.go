package pool

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/cache/internal/guard"
	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

func openPool(t testing.TB, o Options) (*Pool, *os.File) {
	t.Helper()
	dir := t.TempDir()
	p, err := Open(filepath.Join(dir, "files"), o)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = f.Close()
		_ = p.Close()
	})
	return p, f
}

func entry(name string, data []byte) tree.Entry {
	return tree.Entry{
		Name: name, Kind: tree.File, Mode: 0o640, UID: 1000, GID: 1001, MTime: 1_600_000_000_123_456_789,
		Size: int64(len(data)), Content: sha256.Sum256(data),
	}
}

func put(t testing.TB, p *Pool, e tree.Entry, data []byte) {
	t.Helper()
	if err := p.Put(context.Background(), e, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, p *Pool, e tree.Entry) []byte {
	t.Helper()
	f, err := p.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func TestFileHasItsMetadata(t *testing.T) {
	p, out := openPool(t, Options{})
	data := []byte("hello")
	base := entry("f", data)
	change := func(f func(*tree.Entry)) tree.Entry {
		e := base
		f(&e)
		return e
	}
	rows := []struct {
		name string
		e    tree.Entry
	}{
		{"plain", base},
		{"setuid, which a change of owner would clear", change(func(e *tree.Entry) { e.Mode = 0o6755 })},
		{"no permission at all", change(func(e *tree.Entry) { e.Mode = 0 })},
		{"before 1970", change(func(e *tree.Entry) { e.MTime = -1_500_000_000 })},
		{"at the epoch", change(func(e *tree.Entry) { e.MTime = 0 })},
		{"another tag", change(func(e *tree.Entry) { e.Tag = 7 })},
		{"capabilities, which a change of owner would clear too", change(func(e *tree.Entry) {
			e.Xattrs = []tree.Xattr{
				{Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
				{Name: "user.note", Value: "x"},
			}
		})},
	}
	seen := map[uint64]string{}
	for i, row := range rows {
		if p.Has(row.e) {
			t.Errorf("%s: here before it was put", row.name)
		}
		if _, err := p.Open(row.e); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v, want fs.ErrNotExist", row.name, err)
		}
		put(t, p, row.e, data)
		if !p.Has(row.e) || string(read(t, p, row.e)) != "hello" {
			t.Errorf("%s: not here", row.name)
		}
		name := fmt.Sprint(i)
		if err := p.Link(row.e, out, name); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(out.Name(), name)
		st := stat(t, path)
		if st.Mode != unix.S_IFREG|row.e.Mode || st.Uid != row.e.UID || st.Gid != row.e.GID || st.Size != row.e.Size || st.Mtim.Nano() != row.e.MTime {
			t.Errorf("%s: got mode %o, owner %d:%d, size %d, time %d", row.name, st.Mode, st.Uid, st.Gid, st.Size, st.Mtim.Nano())
		}
		for _, x := range row.e.Xattrs {
			b := make([]byte, 100)
			n, err := unix.Lgetxattr(path, x.Name, b)
			if err != nil || string(b[:n]) != x.Value {
				t.Errorf("%s: xattr %s is %q, %v", row.name, x.Name, b[:max(n, 0)], err)
			}
		}
		if other, ok := seen[st.Ino]; ok {
			t.Errorf("%s shares its inode with %s", row.name, other)
		}
		seen[st.Ino] = row.name
	}
	if err := p.Link(base, out, "0"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("linking over a file: got %v, want fs.ErrExist", err)
	}
	if err := p.Link(entry("none", []byte("none")), out, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("linking what is not here: got %v, want fs.ErrNotExist", err)
	}
}

func TestReadAt(t *testing.T) {
	p, _ := openPool(t, Options{})
	data := bytes.Repeat([]byte("0123456789"), 1000)
	e := entry("f", data)
	put(t, p, e, data)
	for _, row := range []struct {
		off, n int
		want   error
	}{
		{0, len(data), nil},
		{9990, 10, nil},
		{5, 0, nil},
		{0, len(data) + 1, io.ErrUnexpectedEOF}, // longer than the file
		{10_000, 1, io.ErrUnexpectedEOF},        // behind its end
	} {
		b := make([]byte, row.n)
		err := p.ReadAt(e, b, int64(row.off))
		if !errors.Is(err, row.want) || err == nil && !bytes.Equal(b, data[row.off:row.off+row.n]) {
			t.Errorf("%d bytes from %d: got %v, want %v", row.n, row.off, err, row.want)
		}
	}
	if err := p.ReadAt(entry("none", []byte("none")), make([]byte, 4), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestPutVerifies(t *testing.T) {
	p, _ := openPool(t, Options{})
	for _, row := range []struct {
		name, want, got string
	}{
		{"too short", "hello", "hell"},
		{"too long", "hello", "hello, world"},
		{"other bytes", "hello", "hallo"},
		{"nothing", "hello", ""},
		{"something where nothing was to be", "", "x"},
	} {
		e := entry("f", []byte(row.want))
		var bad *ContentError
		if err := p.Put(context.Background(), e, strings.NewReader(row.got)); !errors.As(err, &bad) {
			t.Errorf("%s: got %v, want a ContentError", row.name, err)
		}
		if p.Has(e) {
			t.Errorf("%s: it is in the pool", row.name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Put(ctx, entry("f", []byte("x")), strings.NewReader("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	broken := errors.New("the reader broke")
	if err := p.Put(context.Background(), entry("f", []byte("x")), brokenReader{broken}); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

type brokenReader struct{ error }

func (e brokenReader) Read([]byte) (int, error) { return 0, e.error }

// sparse makes bytes of which most are zero, and that are longer than a buffer.
func sparse() []byte {
	b := make([]byte, 3<<20+12345)
	copy(b[1<<20:], "in the middle")
	copy(b[2<<20+100:], bytes.Repeat([]byte("y"), 100_000))
	return b
}

func TestHoles(t *testing.T) {
	p, out := openPool(t, Options{})
	data := sparse()
	e := entry("sparse", data)
	put(t, p, e, data)
	same := e
	same.Tag = 1
	if err := p.Copy(context.Background(), e, same); err != nil {
		t.Fatal(err)
	}
	all := make([]byte, 1<<20) // zeros to the end
	z := entry("zeros", all)
	put(t, p, z, all)
	bytesOf := tree.Entry{Name: "bytes", Mode: 0o640, MTime: 12345}
	if err := p.PutBytes(&bytesOf, data); err != nil {
		t.Fatal(err)
	}
	if bytesOf.Kind != tree.File || bytesOf.Size != e.Size || bytesOf.Content != e.Content {
		t.Errorf("the entry is %+v, want the content of %+v", bytesOf, e)
	}
	for i, row := range []struct {
		e    tree.Entry
		data []byte
		most int64
	}{{e, data, 400_000}, {same, data, 400_000}, {z, all, 4096}, {bytesOf, data, 400_000}} {
		if !bytes.Equal(read(t, p, row.e), row.data) {
			t.Errorf("%d: the content differs", i)
		}
		if err := p.Link(row.e, out, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		if st := stat(t, filepath.Join(out.Name(), fmt.Sprint(i))); st.Blocks*512 > row.most || st.Size != row.e.Size {
			t.Errorf("%d: it takes %d bytes on the disk, want %d at most", i, st.Blocks*512, row.most)
		}
	}
}

func TestCopy(t *testing.T) {
	p, out := openPool(t, Options{})
	data := []byte("copied")
	from := entry("from", data)
	to := from
	to.Mode, to.UID, to.MTime, to.Name = 0o4755, 0, 5, "to"
	if err := p.Copy(context.Background(), from, to); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	put(t, p, from, data)
	for range 2 {
		if err := p.Copy(context.Background(), from, to); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Link(to, out, "to"); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, filepath.Join(out.Name(), "to")); st.Mode != unix.S_IFREG|0o4755 || st.Uid != 0 || st.Mtim.Nano() != 5 {
		t.Errorf("got mode %o, owner %d, time %d", st.Mode, st.Uid, st.Mtim.Nano())
	}
	other := entry("other", []byte("other"))
	if err := p.Copy(context.Background(), from, other); err == nil {
		t.Error("files of two contents were copied")
	}
}

// write makes a file in dir that is what e says.
func write(t *testing.T, dir *os.File, name string, e tree.Entry, data []byte) {
	t.Helper()
	path := filepath.Join(dir.Name(), name)
	ts := []unix.Timespec{timespec(e.MTime), timespec(e.MTime)}
	err := errors.Join(os.WriteFile(path, data, 0o600), os.Chown(path, int(e.UID), int(e.GID)),
		os.Chmod(path, fs.FileMode(e.Mode)), unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, 0))
	if err != nil {
		t.Fatal(err)
	}
}

func TestAdopt(t *testing.T) {
	p, out := openPool(t, Options{})
	data := []byte("adopted")
	e := entry("e", data)
	for _, name := range []string{"first", "second"} {
		write(t, out, name, e, data)
		if err := p.Adopt(e, out, name); err != nil {
			t.Fatal(err)
		}
		if err := p.Adopt(e, out, name); err != nil { // again: it is the pool's already
			t.Fatal(err)
		}
	}
	a, b := stat(t, filepath.Join(out.Name(), "first")), stat(t, filepath.Join(out.Name(), "second"))
	if a.Ino != b.Ino || a.Nlink != 3 {
		t.Errorf("inodes %d and %d, %d links", a.Ino, b.Ino, a.Nlink)
	}
	if names, err := os.ReadDir(out.Name()); err != nil || len(names) != 2 {
		t.Errorf("the folder holds %v, %v", names, err)
	}
	for _, row := range []struct {
		name   string
		change func(*tree.Entry)
	}{
		{"size", func(e *tree.Entry) { e.Size++ }},
		{"mode", func(e *tree.Entry) { e.Mode ^= 1 }},
		{"owner", func(e *tree.Entry) { e.GID++ }},
		{"time", func(e *tree.Entry) { e.MTime++ }},
		{"kind", func(e *tree.Entry) { e.Kind = tree.Symlink }},
	} {
		other := e
		row.change(&other)
		if err := p.Adopt(other, out, "first"); err == nil {
			t.Errorf("a file of another %s was adopted", row.name)
		}
	}
	if err := os.Symlink("first", filepath.Join(out.Name(), "link")); err != nil {
		t.Fatal(err)
	}
	if err := p.Adopt(e, out, "link"); err == nil {
		t.Error("a symbolic link was adopted")
	}
	if err := p.Adopt(e, out, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

// TestManyLinks links more often than ext4 lets one inode be linked.
func TestManyLinks(t *testing.T) {
	p, out := openPool(t, Options{})
	e := entry("empty", nil)
	put(t, p, e, nil)
	const n = 66_000
	for i := range n {
		if err := p.Link(e, out, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, out, "more", e, nil)
	if err := p.Adopt(e, out, "more"); err != nil {
		t.Fatal(err)
	}
	st := stat(t, filepath.Join(out.Name(), fmt.Sprint(n-1)))
	if st.Mode != unix.S_IFREG|e.Mode || st.Uid != e.UID || st.Mtim.Nano() != e.MTime {
		t.Errorf("the alternate has mode %o, owner %d, time %d", st.Mode, st.Uid, st.Mtim.Nano())
	}
	if removed, err := p.Sweep(func(FileID) bool { return false }); err != nil || removed == 0 || p.Has(e) {
		t.Errorf("swept %d names, %v", removed, err)
	}
}

func TestDamagedFileIsMadeAgain(t *testing.T) {
	p, out := openPool(t, Options{})
	data := []byte("whole")
	e := entry("e", data)
	damage := func() {
		id := IDOf(e)
		if err := os.Truncate(filepath.Join(p.root.Name(), id.String()[:2], id.String()[2:]), 2); err != nil {
			t.Fatal(err)
		}
		if p.Has(e) {
			t.Error("a file that was cut short counts as here")
		}
	}
	put(t, p, e, data)
	damage()
	put(t, p, e, data)
	if string(read(t, p, e)) != "whole" {
		t.Error("the file was not made again")
	}
	damage()
	write(t, out, "f", e, data)
	if err := p.Adopt(e, out, "f"); err != nil {
		t.Fatal(err)
	}
	if string(read(t, p, e)) != "whole" {
		t.Error("the file was not made again")
	}
}

func TestSweepAndLeases(t *testing.T) {
	var g guard.Guard
	p, _ := openPool(t, Options{Guard: &g})
	var files []tree.Entry
	for i := range 4 {
		files = append(files, entry("f", fmt.Append(nil, i)))
		put(t, p, files[i], fmt.Append(nil, i))
	}
	end := g.Begin()
	if !p.Has(files[0]) {
		t.Fatal("not here")
	}
	f, err := p.Open(files[1])
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	// One that is written before its name is known is as good as any other.
	late := entry("f", []byte("late"))
	in, err := p.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(late); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	files = append(files, late)
	keep := IDOf(files[2])
	sweep := func() []bool {
		if _, err := p.Sweep(func(id FileID) bool { return id == keep }); err != nil {
			t.Fatal(err)
		}
		var left []bool
		for _, e := range files {
			id := IDOf(e)
			_, err := os.Lstat(filepath.Join(p.root.Name(), id.String()[:2], id.String()[2:]))
			left = append(left, err == nil)
		}
		return left
	}
	if got, want := sweep(), []bool{true, true, true, false, true}; !slices.Equal(got, want) {
		t.Errorf("under the lease: got %v, want %v", got, want)
	}
	end()
	if got, want := sweep(), []bool{false, false, true, false, false}; !slices.Equal(got, want) {
		t.Errorf("after it: got %v, want %v", got, want)
	}
}

// TestSingleID takes the rights of a user without subordinate ids.
func TestSingleID(t *testing.T) {
	for _, single := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "files")
		for _, d := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
			if err := os.Chmod(d, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan error, 1)
		go asNobody(done, func() error {
			p, err := Open(dir, Options{SingleID: single})
			if err != nil {
				return err
			}
			defer p.Close()
			e := entry("f", []byte("x"))
			return p.Put(context.Background(), e, strings.NewReader("x"))
		})
		err := <-done
		if single && err != nil {
			t.Errorf("with a single id: %v", err)
		}
		if !single && !errors.Is(err, unix.EPERM) {
			t.Errorf("without: got %v, want EPERM", err)
		}
	}
}

func TestConcurrentPuts(t *testing.T) {
	p, _ := openPool(t, Options{})
	var g sync.WaitGroup
	for w := range 8 {
		g.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for range 200 {
				data := fmt.Appendf(nil, "%d", r.IntN(50))
				e := entry("f", data)
				if err := p.Put(context.Background(), e, bytes.NewReader(data)); err != nil {
					t.Error(err)
				}
				if f, err := p.Open(e); err != nil {
					t.Error(err)
				} else {
					_ = f.Close()
				}
			}
		})
	}
	g.Wait()
}

func BenchmarkPut(b *testing.B) {
	p, _ := openPool(b, Options{})
	data := make([]byte, 6000) // what files of a source tree are on average
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	e := entry("f", data)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for i := range b.N {
		e.Tag = uint64(i)
		put(b, p, e, data)
	}
}

func BenchmarkLink(b *testing.B) {
	p, out := openPool(b, Options{})
	const n = 20_000
	files := make([]tree.Entry, n)
	for i := range files {
		files[i] = entry("f", []byte("x"))
		files[i].Tag = uint64(i)
		put(b, p, files[i], []byte("x"))
	}
	names := make([]string, b.N)
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if err := p.Link(files[i%n], out, names[i]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHas(b *testing.B) {
	p, _ := openPool(b, Options{})
	e := entry("f", []byte("x"))
	put(b, p, e, []byte("x"))
	b.ReportAllocs()
	for range b.N {
		if !p.Has(e) {
			b.Fatal("not here")
		}
	}
}

func BenchmarkIDOf(b *testing.B) {
	e := entry("f", []byte("x"))
	b.ReportAllocs()
	for range b.N {
		IDOf(e)
	}
}
