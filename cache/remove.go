package cache

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removalDepth is how many folders inside each other RemoveAll has open at a time. Few
// trees are deeper, so that it hardly ever moves a folder.
const removalDepth = 64

// RemoveAll removes path and all that is in it, as os.RemoveAll does, however deep
// that is. A step can make folders in each other until the disk has no more inodes,
// and os.RemoveAll has all of them open at once: no descriptors, and then no memory,
// would be left to anybody else. What lies deeper than removalDepth is moved up into
// path first, which nobody may use meanwhile.
func RemoveAll(path string) error {
	path = filepath.Clean(path)
	parent, err := os.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	r := &remover{}
	if err := r.remove(parent, filepath.Base(path), 0); err != nil {
		return fmt.Errorf("removing %s: %w", path, err)
	}
	return nil
}

// remover removes one folder.
type remover struct {
	top *os.File // the folder itself, which deep ones are moved into
}

// remove removes what is called name in a folder that level folders lead to.
func (r *remover) remove(in *os.File, name string, level int) error {
	failed := unix.Unlinkat(int(in.Fd()), name, 0)
	if failed == nil || failed == unix.ENOENT {
		return nil
	}
	fd, err := unix.Openat(int(in.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "unlinkat", Path: name, Err: failed}
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	switch level {
	case 0:
		r.top = dir
	case removalDepth:
		err := unix.Renameat(int(in.Fd()), name, int(r.top.Fd()), rand.Text())
		return os.NewSyscallError("renameat", err)
	}
	for {
		// Removing while reading may make a file system pass over names, and folders
		// are moved into the top one: it is empty when the kernel says so.
		gone, err := r.empty(dir, level+1)
		left := unix.Unlinkat(int(in.Fd()), name, unix.AT_REMOVEDIR)
		switch {
		case left == nil || left == unix.ENOENT:
			return nil
		case gone == 0 && err != nil:
			return err
		case gone == 0:
			return &fs.PathError{Op: "unlinkat", Path: name, Err: left}
		}
	}
}

// empty removes what is in a folder, as far as it can, and gives how many names went.
func (r *remover) empty(dir *os.File, level int) (gone int, err error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	for {
		// By parts: a folder may hold more names than memory does.
		names, more := dir.Readdirnames(1024)
		for _, name := range names {
			if failed := r.remove(dir, name, level); failed == nil {
				gone++
			} else if err == nil {
				err = failed
			}
		}
		if more == io.EOF {
			return gone, err
		}
		if more != nil {
			return gone, more
		}
	}
}
