package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

func stateFolder(t testing.TB) *cache.Cache {
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
	lease := c.Lease()
	t.Cleanup(lease.Release)
	return c
}

// upper fills a folder with all that an upper folder may hold.
func fillUpper(t testing.TB, dir string) {
	t.Helper()
	check := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	at := func(p string) string { return filepath.Join(dir, p) }
	check(os.MkdirAll(at("d/deep/er"), 0o755), os.MkdirAll(at("opaque"), 0o755), os.Mkdir(at("empty"), 0o700))
	check(os.WriteFile(at("d/f"), []byte("content"), 0o644), os.WriteFile(at("d/deep/er/g"), nil, 0o600))
	check(os.Link(at("d/f"), at("d/deep/hard")), os.Symlink("../f", at("d/deep/link")))
	check(os.WriteFile(at("suid"), []byte("#!"), 0o755), unix.Chmod(at("suid"), 0o4755), os.Lchown(at("d/deep/link"), 5, 6))
	check(os.Chown(at("empty"), 7, 8), unix.Chmod(at("empty"), 0o2700))
	check(unix.Mkfifo(at("fifo"), 0o620), unix.Mknod(at("sock"), unix.S_IFSOCK|0o755, 0))
	check(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mknod(at("loop"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 0))))
	check(unix.Mknod(at("d/gone"), unix.S_IFCHR, 0))
	check(unix.Setxattr(at("opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	check(unix.Setxattr(at("d/f"), "trusted.overlay.origin", []byte("junk"), 0))
	check(unix.Setxattr(at("d/f"), "user.note", []byte("n\x00n"), 0), unix.Setxattr(at("d"), "user.dir", []byte("v"), 0))
	// cap_net_bind_service+ep, as setcap writes it.
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	check(unix.Setxattr(at("suid"), "security.capability", capability, 0))
	sparse, err := os.Create(at("sparse"))
	check(err)
	check(sparse.Truncate(8 << 20))
	_, err = sparse.WriteAt([]byte("end"), 6<<20)
	check(err, sparse.Close())
	long := strings.Repeat("é", 120)
	check(os.WriteFile(at(long), []byte(long), 0o644))
	for i, p := range []string{"d/f", "suid", "fifo", "d/deep/er", "d/deep", "d", "empty", "opaque"} {
		when := time.Unix(1_600_000_000+int64(i), 123456789)
		check(os.Chtimes(at(p), when, when))
	}
}

// under is a state with what fillUpper's whiteout and opaque directory hide.
func under(t testing.TB, n tree.Nodes) tree.Entry {
	t.Helper()
	var b tree.Builder
	for _, p := range []string{"d/gone", "opaque/hidden"} {
		if err := b.Set(p, tree.Entry{Kind: tree.Fifo, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Root(n)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// inventory describes what is on disk, everything that a process could see.
func inventory(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	links := make(map[uint64]int)
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprintf(&b, "%s mode=%o owner=%d:%d dev=%d", rel, st.Mode, st.Uid, st.Gid, st.Rdev)
		if rel != "." && !(st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0) {
			fmt.Fprintf(&b, " time=%d", fi.ModTime().UnixNano())
		}
		switch fi.Mode().Type() {
		case 0:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if links[st.Ino] == 0 {
				links[st.Ino] = len(links) + 1
			}
			fmt.Fprintf(&b, " size=%d blocks>%v inode=%d content=%x", st.Size, st.Blocks*512 >= st.Size, links[st.Ino], bytes.TrimLeft(data, "\x00")[:min(8, len(bytes.TrimLeft(data, "\x00")))])
		case os.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " target=%s", target)
		}
		if fi.Mode().Type()&os.ModeSymlink == 0 {
			buf := make([]byte, 4096)
			n, err := unix.Llistxattr(p, buf)
			if err != nil {
				return err
			}
			for _, x := range strings.Split(strings.Trim(string(buf[:n]), "\x00"), "\x00") {
				if x == "" {
					continue
				}
				v := make([]byte, 256)
				m, err := unix.Lgetxattr(p, x, v)
				if err != nil {
					return err
				}
				fmt.Fprintf(&b, " %s=%x", x, v[:m])
			}
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestRoundTrip makes a layer of an upper folder, and the folder again of the
// layer: they are the same, but for overlayfs's notes.
func TestRoundTrip(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	c := stateFolder(t)
	f := NewFolders(c)
	upper := filepath.Join(c.Path("tmp"), "upper")
	if err := os.Mkdir(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	fillUpper(t, upper)
	want := strings.ReplaceAll(inventory(t, upper), " trusted.overlay.origin=6a756e6b", "")
	l, err := f.Adopt(context.Background(), upper, under(t, c))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PutLayer(l); err != nil {
		t.Fatal(err)
	}
	path, ok := f.Have(l)
	if !ok {
		t.Fatal("the upper folder did not become the layer's")
	}
	if got := inventory(t, path); got != want {
		t.Errorf("the adopted folder is\n%s\nwant\n%s", got, want)
	}
	if l.Size != 7+7+2+8<<20+240 {
		t.Errorf("the layer's size is %d", l.Size)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	// Many at once make it once.
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if p, err := f.Folder(context.Background(), l); err != nil || p != path {
				t.Errorf("the folder is %q, %v; want %q", p, err, path)
			}
		})
	}
	group.Wait()
	if got := inventory(t, path); got != want {
		t.Errorf("the folder that was made again is\n%s\nwant\n%s", got, want)
	}
	// The same upper folder again is the same layer, and leaves nothing behind.
	again := filepath.Join(c.Path("tmp"), "again")
	if err := os.Mkdir(again, 0o755); err != nil {
		t.Fatal(err)
	}
	fillUpper(t, again)
	l2, err := f.Adopt(context.Background(), again, under(t, c))
	if err != nil {
		t.Fatal(err)
	}
	if l2.ID != l.ID {
		t.Error("the same files made another layer")
	}
	left, err := os.ReadDir(c.Path("tmp"))
	if err != nil || len(left) != 0 && left[0].Name() != filepath.Base(again) {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

func TestFolderOfWhatIsGone(t *testing.T) {
	c := stateFolder(t)
	f := NewFolders(c)
	var b tree.Builder
	if err := b.Set("d/f", tree.Entry{Kind: tree.File, Size: 3}); err != nil {
		t.Fatal(err)
	}
	root, err := b.Root(c)
	if err != nil {
		t.Fatal(err)
	}
	l := cache.Layer{ID: cache.TreeLayerID(root), Root: root}
	_, err = f.Folder(context.Background(), l)
	var gone *cache.GoneError
	if !errors.As(err, &gone) || gone.Layer != l.ID {
		t.Errorf("a folder whose file is not in the pool gives %v, want a GoneError", err)
	}
	if left, _ := os.ReadDir(c.Path("tmp")); len(left) != 0 {
		t.Errorf("left in tmp: %v", left)
	}
	if left, _ := os.ReadDir(c.Path("layers")); len(left) != 0 {
		t.Errorf("left in layers: %v", left)
	}
	if _, err := f.Folder(context.Background(), cache.Layer{ID: l.ID}); !errors.As(err, new(*cache.NotUnpackedError)) {
		t.Errorf("a folder of a layer that is not unpacked gives %v", err)
	}
}

// TestCopyIsApart writes to a copy of a tree: the pool must not change.
func TestCopyIsApart(t *testing.T) {
	c := stateFolder(t)
	f := NewFolders(c)
	upper := filepath.Join(c.Path("tmp"), "upper")
	if err := os.MkdirAll(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(upper, "f"), []byte("pool"), 0o640); err != nil {
		t.Fatal(err)
	}
	l, err := f.Adopt(context.Background(), upper, tree.Entry{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := f.Copy(context.Background(), l.Root, dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("mine"), 0o640); err != nil {
		t.Fatal(err)
	}
	path, _ := f.Have(l)
	if got, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(got) != "pool" {
		t.Errorf("the pool's file holds %q, %v; want pool", got, err)
	}
}

func TestTagOf(t *testing.T) {
	for _, p := range [][2]string{{"/a/b", "a/b"}} {
		if TagOf(p[0]) != TagOf(p[1]) {
			t.Errorf("%q and %q have different tags", p[0], p[1])
		}
	}
	if TagOf("a/b") == TagOf("a/c") || TagOf("") == TagOf("a") {
		t.Error("different paths share a tag")
	}
}

// many20k makes an upper folder of 20,000 files.
func many20k(b *testing.B, c *cache.Cache) string {
	b.Helper()
	upper := filepath.Join(c.Path("tmp"), fmt.Sprint("upper", b.N))
	for i := range 20_000 {
		d := filepath.Join(upper, fmt.Sprintf("d%02d/e%03d", i/1000, i/10%100))
		if i%10 == 0 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("f%d", i)), fmt.Append(nil, i), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return upper
}

func BenchmarkAdopt20k(b *testing.B) {
	for range b.N {
		b.StopTimer()
		c := stateFolder(b)
		f := NewFolders(c)
		upper := many20k(b, c)
		b.StartTimer()
		if _, err := f.Adopt(context.Background(), upper, tree.Entry{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFolder20k(b *testing.B) {
	c := stateFolder(b)
	f := NewFolders(c)
	l, err := f.Adopt(context.Background(), many20k(b, c), tree.Entry{})
	if err != nil {
		b.Fatal(err)
	}
	path, _ := f.Have(l)
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		if err := os.RemoveAll(path); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := f.Folder(context.Background(), l); err != nil {
			b.Fatal(err)
		}
	}
}
