package layer

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// longName is as long as a name can be: 16 of them make a path of 4,095 bytes.
var longName = strings.Repeat("n", 255)

// nest makes folders inside each other without naming a path to them.
func nest(t testing.TB, dir string, levels int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range levels {
		if err == nil {
			err = unix.Mkdirat(fd, longName, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		above := fd
		fd, err = unix.Openat(above, longName, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(above)
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

// TestAdoptTooDeep takes over what a step left that is as deep as a path can be, and
// what is deeper. The second is an error, and what the step left can be removed.
func TestAdoptTooDeep(t *testing.T) {
	for _, test := range []struct {
		levels int
		ok     bool
	}{{16, true}, {17, false}, {40, false}} {
		c := stateFolder(t)
		upper := filepath.Join(c.Path("tmp"), "upper")
		if err := os.Mkdir(upper, 0o755); err != nil {
			t.Fatal(err)
		}
		nest(t, upper, test.levels)
		_, err := NewFolders(c).Adopt(context.Background(), upper, tree.Entry{})
		if (err == nil) != test.ok || err != nil && (!errors.Is(err, unix.ENAMETOOLONG) || !strings.Contains(err.Error(), "fewer folders")) {
			t.Errorf("%d levels: %v, want that to be good: %v", test.levels, err, test.ok)
		}
		if err := cache.RemoveAll(upper); err != nil {
			t.Errorf("%d levels cannot be removed: %v", test.levels, err)
		}
		if _, err := os.Lstat(upper); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the folder of %d levels is there: %v", test.levels, err)
		}
	}
}

// TestFolderTooDeep makes the folder of a tree that was put together of others.
func TestFolderTooDeep(t *testing.T) {
	for levels, ok := range map[int]bool{16: true, 17: false, 40: false} {
		c := stateFolder(t)
		root := tree.Entry{Kind: tree.Dir, Mode: 0o755}
		for range levels {
			root.Name = longName
			ref, err := tree.PutDir(c, []tree.Entry{root})
			if err != nil {
				t.Fatal(err)
			}
			root = tree.Entry{Kind: tree.Dir, Mode: 0o755, Children: ref}
		}
		f := NewFolders(c)
		_, err := f.Folder(context.Background(), cache.Layer{ID: cache.TreeLayerID(root), Root: root})
		if (err == nil) != ok || err != nil && !errors.Is(err, unix.ENAMETOOLONG) {
			t.Errorf("a folder of %d levels: %v, want that to be good: %v", levels, err, ok)
		}
		if err := f.Copy(context.Background(), root, t.TempDir()); (err == nil) != ok || err != nil && !errors.Is(err, unix.ENAMETOOLONG) {
			t.Errorf("a copy of %d levels: %v, want that to be good: %v", levels, err, ok)
		}
		if left, err := os.ReadDir(c.Path("tmp")); err != nil || len(left) != 0 {
			t.Errorf("left in tmp: %v, %v", left, err)
		}
	}
}
