package local

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// hardLink is a second name of a file.
type hardLink struct {
	path, first string
	dir         tree.Entry // the directory of path, whose time the new name changes
}

func (w *writer) link(l hardLink) error {
	from, base, err := w.openParent(l.first)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, name, err := w.openParent(l.path)
	if err != nil {
		return err
	}
	d := &folder{fd: to}
	defer unix.Close(to)
	err = w.place(d, name, func(dirfd int, name string) error { return unix.Linkat(from, base, dirfd, name, 0) })
	if err != nil || l.dir.Name == "" {
		return err // the folder itself keeps the time that it has
	}
	return w.setTime(to, ".", l.dir)
}

// openParent opens the directory that path, below the output folder, is in.
func (w *writer) openParent(path string) (fd int, base string, err error) {
	dir, base := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, base = path[:i], path[i+1:]
	}
	fd, err = unix.Openat2(w.root.fd, dir, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, "", &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, base, nil
}

// removeAll removes a name and all below it, following no link.
func removeAll(dirfd int, name string) error {
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	names, fd, err := list(dirfd, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, n := range names {
		if err := removeAll(fd, n); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR); err != nil {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// list opens a directory and gives the names in it.
func list(dirfd int, name string) (names []string, fd int, err error) {
	fd, err = unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		f := os.NewFile(uintptr(dup), name)
		names, err = f.Readdirnames(-1)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("reading the folder %q: %w", name, err)
	}
	return names, fd, nil
}

// removeOthers removes what is in the folder and was not written.
func (w *writer) removeOthers() error { return w.removeIn(w.root.fd, ".", "") }

func (w *writer) removeIn(dirfd int, name, path string) error {
	names, fd, err := list(dirfd, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, n := range names {
		full := n
		if path != "" {
			full = path + "/" + n
		}
		if !w.keep[full] {
			if err := removeAll(fd, n); err != nil {
				return err
			}
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: full, Err: err}
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := w.removeIn(fd, n, full); err != nil {
				return err
			}
		}
	}
	return nil
}
