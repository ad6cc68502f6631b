package local

import (
	"errors"
	"fmt"
	"os"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter/attest"
	"golang.org/x/sys/unix"
)

// statements writes the statements about a platform's files beside them: into the
// folder dir, "" for the output folder itself.
func (w *writer) statements(dir string, files []attest.File, mtime int64) error {
	for _, f := range files {
		path := f.Name
		if dir != "" {
			path = dir + "/" + f.Name
		}
		if w.keep != nil {
			w.keep[path] = true
		}
		if w.owner != nil {
			w.owner[path] = w.platform
		}
		if err := w.statement(path, f.Data, mtime); err != nil {
			return fmt.Errorf("writing %q: %w", path, err)
		}
	}
	return nil
}

func (w *writer) statement(path string, data []byte, mtime int64) error {
	fd, base, err := w.openParent(path)
	if err != nil {
		return err
	}
	d := &folder{fd: fd}
	defer unix.Close(fd)
	return w.place(d, base, func(dirfd int, name string) error {
		fd, err := unix.Openat(dirfd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		_, err = f.Write(data)
		if err == nil {
			err = w.setMeta(fd, dirfd, name, tree.Entry{Mode: 0o600, MTime: mtime})
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return errors.Join(err, unix.Unlinkat(dirfd, name, 0))
		}
		return nil
	})
}
