package tmpfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFiles(t *testing.T) {
	for _, row := range []struct {
		name   string
		create func(int) (*File, error)
	}{
		{"as the file system can", Create},
		{"with a name", createNamed}, // what file systems without O_TMPFILE get
	} {
		dir := t.TempDir()
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		fd := int(d.Fd())
		make := func(data string) *File {
			t.Helper()
			f, err := row.create(fd)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(data); err != nil {
				t.Fatal(err)
			}
			return f
		}
		f := make("first")
		if err := f.Link(fd, "f"); err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		f = make("second")
		if err := f.Link(fd, "f"); !IsExist(err) {
			t.Errorf("%s: got %v, want fs.ErrExist", row.name, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "first" {
			t.Errorf("%s: got %q, %v", row.name, b, err)
		}
		f = make("never linked")
		if f.temp != "" && !IsTemp(f.temp) {
			t.Errorf("%q is not known as temporary", f.temp)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
			t.Errorf("%s: the folder holds %v, %v", row.name, names, err)
		}
	}
}

func TestExplain(t *testing.T) {
	if err := Explain(&fs.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}); !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if err := Explain(fs.ErrNotExist); err != fs.ErrNotExist {
		t.Errorf("got %v", err)
	}
	if err := Explain(nil); err != nil {
		t.Errorf("got %v", err)
	}
}
