package dirfd

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

func open(t *testing.T, dir string) int {
	t.Helper()
	fd, err := Dir(unix.AT_FDCWD, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestNames lists a directory that takes several reads, with long names in it.
func TestNames(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 1000 {
		name := fmt.Sprintf("%04d%s", i, strings.Repeat("n", 200))
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		want = append(want, name)
	}
	if err := os.Mkdir(filepath.Join(dir, "z"), 0o700); err != nil {
		t.Fatal(err)
	}
	names, err := Names(open(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range names {
		got = append(got, n.Name)
	}
	if !slices.Equal(got, append(want, "z")) {
		t.Errorf("got %d names, want %d in order", len(got), len(want)+1)
	}
	if k := names[len(names)-1].Kind; k != unix.DT_DIR && k != unix.DT_UNKNOWN {
		t.Errorf("a directory has kind %d", k)
	}
}

func TestFileIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	fd := open(t, dir)
	if f, err := File(fd, "l"); err == nil {
		unix.Close(f)
		t.Error("a link was opened as the file that it leads to")
	}
	if f, err := Dir(fd, "l"); err == nil {
		unix.Close(f)
		t.Error("a link was opened as a directory")
	}
	if got, err := Readlink(fd, "l"); err != nil || got != "/etc/passwd" {
		t.Errorf("the link leads to %q, %v", got, err)
	}
	long := strings.Repeat("x/", 1500)
	if err := os.Symlink(long, filepath.Join(dir, "long")); err != nil {
		t.Fatal(err)
	}
	if got, err := Readlink(fd, "long"); err != nil || got != long {
		t.Errorf("a link of %d bytes was read as %d, %v", len(long), len(got), err)
	}
}

// TestSum sums files around the size of a buffer, with sizes that were expected
// rightly and wrongly.
func TestSum(t *testing.T) {
	dir := t.TempDir()
	fd := open(t, dir)
	for _, size := range []int{0, 1, 5000, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1_000_000} {
		data := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		if err := os.WriteFile(filepath.Join(dir, "f"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, hint := range []int{size, 0, size - 1, size + 1, 256 << 10} {
			f, err := FileUnnoted(fd, "f")
			if err != nil {
				t.Fatal(err)
			}
			got, n, err := Sum(f, int64(hint))
			unix.Close(f)
			if err != nil || got != sha256.Sum256(data) || n != int64(size) {
				t.Errorf("the sum of %d bytes where %d are expected is %s of %d bytes, %v", size, hint, got, n, err)
			}
		}
	}
}

// TestXattrs reads attributes whose list and values outgrow the first buffer, by
// descriptor and by name.
func TestXattrs(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var want []tree.Xattr
	for i := range 20 {
		x := tree.Xattr{Name: fmt.Sprintf("user.name%02d", i), Value: strings.Repeat("v", i*10)}
		if err := unix.Setxattr(file, x.Name, []byte(x.Value), 0); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			want = append(want, x)
		}
	}
	even := func(attr string) bool { return (attr[len(attr)-1]-'0')%2 == 0 }
	fd := open(t, dir)
	f, err := File(fd, "f")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(f)
	for how, read := range map[string]func() ([]tree.Xattr, error){
		"descriptor": func() ([]tree.Xattr, error) { return Xattrs(f, "", even) },
		"name":       func() ([]tree.Xattr, error) { return Xattrs(fd, "f", even) },
	} {
		if got, err := read(); err != nil || !slices.Equal(got, want) {
			t.Errorf("by %s: %v, %v; want %v", how, got, err, want)
		}
	}
}
