package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/worker/internal/dirfd"
	"github.com/kiln-build/kiln/worker/layer"
	"golang.org/x/sys/unix"
)

// Files are those of one mount of a container. Links in paths stay inside of the
// mount. They are to be closed.
type Files struct{ root *os.File }

// Close ends it.
func (f *Files) Close() error { return f.root.Close() }

// maxContainerRead bounds what is read of a file at once.
const maxContainerRead = 32 << 20

// errNotRegular is for what has no content to read: a device of a container is one
// of the host's as well, and a pipe may have nobody at its other end.
var errNotRegular = errors.New("not a regular file")

// find opens what is at a path as a place, which runs no driver and waits for nobody.
func (f *Files) find(name string, flags uint64) (int, error) {
	name = path.Join("/", name)
	if name == "/" { // which may be a file
		return unix.FcntlInt(f.root.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	how := unix.OpenHow{Flags: flags | unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	return dirfd.Openat2(int(f.root.Fd()), strings.TrimPrefix(name, "/"), &how)
}

// open opens a path that find has found for reading.
func open(fd int, flags int) (*os.File, error) {
	opened, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(opened), "file"), nil
}

// ReadFile reads a file.
func (f *Files) ReadFile(ctx context.Context, name string) ([]byte, error) {
	return f.ReadRange(ctx, name, 0, maxContainerRead+1)
}

// ReadRange reads at most n bytes of a file from an offset.
func (f *Files) ReadRange(_ context.Context, name string, offset, n int64) ([]byte, error) {
	failed := func(err error) error { return &fs.PathError{Op: "read", Path: name, Err: err} }
	if offset < 0 || n < 0 {
		return nil, fmt.Errorf("invalid range for %s", name)
	}
	fd, err := f.find(name, 0)
	if err != nil {
		return nil, failed(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, failed(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, failed(errNotRegular)
	}
	file, err := open(fd, 0)
	if err != nil {
		return nil, failed(err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.NewSectionReader(file, offset, min(n, maxContainerRead+1)))
	if err != nil {
		return nil, failed(err)
	}
	if len(data) > maxContainerRead {
		return nil, failed(fmt.Errorf("the file is larger than %d bytes", maxContainerRead))
	}
	return data, nil
}

// Stat describes what is at a path.
func (f *Files) Stat(_ context.Context, name string) (fs.FileInfo, error) {
	fd, err := f.find(name, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	defer unix.Close(fd)
	e, err := describe(path.Base(name), fd)
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return e.Info(), nil
}

// ReadDir lists a folder.
func (f *Files) ReadDir(_ context.Context, name string) ([]fs.DirEntry, error) {
	failed := func(err error) error { return &fs.PathError{Op: "readdir", Path: name, Err: err} }
	fd, err := f.find(name, unix.O_DIRECTORY)
	if err != nil {
		return nil, failed(err)
	}
	defer unix.Close(fd)
	dir, err := open(fd, unix.O_DIRECTORY)
	if err != nil {
		return nil, failed(err)
	}
	defer dir.Close()
	names, err := dirfd.Names(int(dir.Fd()))
	if err != nil {
		return nil, failed(err)
	}
	entries := make([]fs.DirEntry, 0, len(names))
	for _, n := range names {
		at, err := unix.Openat(int(dir.Fd()), n.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue // a process removes it at this moment
		}
		if err != nil {
			return nil, failed(err)
		}
		e, err := describe(n.Name, at)
		unix.Close(at)
		if err != nil {
			return nil, failed(err)
		}
		entries = append(entries, fs.FileInfoToDirEntry(e.Info()))
	}
	return entries, nil
}

// describe makes an entry of what is open.
func describe(name string, fd int) (tree.Entry, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return tree.Entry{}, err
	}
	e := layer.EntryOf(name, &st)
	if e.Kind == tree.Symlink {
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(fd, "", buf[:])
		if err != nil {
			return e, err
		}
		e.Target = string(buf[:n])
	}
	return e, nil
}
