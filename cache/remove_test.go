package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// nest makes folders inside each other, with a file in each, as a process does that
// goes down as it makes them.
func nest(t testing.TB, dir string, levels int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range levels {
		if err == nil {
			err = unix.Mknodat(fd, "file", unix.S_IFREG|0o600, 0)
		}
		if err == nil {
			err = unix.Mkdirat(fd, "d", 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
		above := fd
		fd, err = unix.Openat(above, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(above)
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

// limitFiles lets this process have no more descriptors than n until the end.
func limitFiles(t testing.TB, n uint64) (end func()) {
	t.Helper()
	var was unix.Rlimit
	err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &was)
	if err == nil {
		err = unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: was.Max}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &was, nil); err != nil {
			t.Error(err)
		}
	}
}

// TestDiskUsageOfDeepFolders measures what is deeper than a process may have descriptors.
func TestDiskUsageOfDeepFolders(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "top")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	nest(t, dir, usageDepth+2000)
	defer limitFiles(t, usageDepth+500)()
	if _, err := diskUsage(dir); err != nil {
		t.Errorf("measuring it: %v", err)
	}
	if err := RemoveAll(dir); err != nil {
		t.Errorf("removing it: %v", err)
	}
}

// TestRemoveAll removes what is deeper than a process may have descriptors.
func TestRemoveAll(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"empty", "few", "limit", "many", "wide"} {
		if err := os.Mkdir(at(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	nest(t, at("few"), 3)
	nest(t, at("limit"), removalDepth)
	nest(t, at("many"), 2000)
	for i := range 2500 { // more names than are read at once, and some of them deep
		if err := os.Mkdir(at(fmt.Sprintf("wide/%d", i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	nest(t, at("wide/7"), 200)
	nest(t, at("wide/1007"), 200)
	if err := os.WriteFile(at("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("kept", at("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at("kept"), 0o700); err != nil {
		t.Fatal(err)
	}
	defer limitFiles(t, 500)()
	for _, name := range []string{"empty", "few", "limit", "many", "wide", "file", "link", "nothing", "no/such"} {
		if err := RemoveAll(at(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(at(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "kept" {
		t.Errorf("left are %v (%v), want the folder that a link led to", left, err)
	}
}

// TestRemoveAllInUse has a folder that cannot be removed: the rest goes, and the error
// says which it is.
func TestRemoveAllInUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "top")
	busy := filepath.Join(dir, "a", "busy")
	if err := os.MkdirAll(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	nest(t, dir, 100)
	if err := unix.Mount("tmpfs", busy, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("mounting needs privilege: ", err)
	}
	err := RemoveAll(dir)
	if err := unix.Unmount(busy, 0); err != nil {
		t.Fatal(err)
	}
	var failed *fs.PathError
	if !errors.As(err, &failed) || failed.Path != "busy" || !errors.Is(err, unix.EBUSY) {
		t.Errorf("removing a folder with a mount in it gives %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "a" {
		t.Errorf("left are %v (%v), want what leads to the mount", left, err)
	}
	if err := RemoveAll(dir); err != nil {
		t.Error(err)
	}
}
