package caller

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
)

// incoming is a file whose content is on its way.
type incoming struct {
	stat *types.Stat
	file *os.File // nil until the first bytes are here: a client sends few files at once
	size int64
}

func (in *incoming) abort() {
	if in.file != nil {
		in.file.Close()
	}
}

// data takes a piece of a file; an empty one ends it.
func (r *receiver) data(id uint32, piece []byte) error {
	in, ok := r.pending[id]
	if !ok {
		return fmt.Errorf("the client sent file %d, which it was not asked for", id)
	}
	if in.file == nil {
		err := r.replace(in.stat.Path, func() (err error) {
			in.file, err = r.root.OpenFile(in.stat.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			return err
		})
		if err != nil {
			return err
		}
	}
	if in.size += int64(len(piece)); in.size > in.stat.Size {
		return changed(in)
	}
	if len(piece) > 0 {
		_, err := in.file.Write(piece)
		return err
	}
	if in.size != in.stat.Size {
		return changed(in)
	}
	delete(r.pending, id)
	err := describe(in.file, in.stat)
	return errors.Join(err, in.file.Close())
}

// changed says that a file is not as long as it was said to be. A client sends
// nothing of a file that it cannot open.
func changed(in *incoming) error {
	return fmt.Errorf("%s changed at the client while it was sent, or cannot be read there: %d bytes of %d came", in.stat.Path, in.size, in.stat.Size)
}

// describe gives an open file or folder the mode, attributes and time of the list.
func describe(f *os.File, st *types.Stat) error {
	if err := f.Chmod(os.FileMode(st.Mode)); err != nil {
		return err
	}
	fd := int(f.Fd())
	for k, v := range st.Xattrs {
		// What the file system or the user may not have is left out, as by cp.
		if err := unix.Fsetxattr(fd, k, v, 0); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("setting the attribute %s: %w", k, err)
		}
	}
	at := unix.NsecToTimespec(st.ModTime)
	// The file by its descriptor: an empty path and AT_EMPTY_PATH.
	if err := unix.UtimesNanoAt(fd, "", []unix.Timespec{at, at}, unix.AT_EMPTY_PATH); err == nil {
		return nil
	}
	tv := []unix.Timeval{unix.NsecToTimeval(st.ModTime), unix.NsecToTimeval(st.ModTime)}
	return unix.Futimes(fd, tv)
}

// describe gives a folder its mode and time.
func (r *receiver) describe(st *types.Stat) error {
	f, err := r.openDir(st.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	return describe(f, st)
}

// openDir opens a folder of the mirror. What else may have got its name is not opened:
// a pipe would keep the daemon waiting for somebody who writes to it, and a device
// would run a driver.
func (r *receiver) openDir(name string) (*os.File, error) {
	return r.root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
}

// inParent calls fn with the open folder of a path, and the name in it.
func (r *receiver) inParent(name string, fn func(dir int, base string) error) error {
	f, err := r.openDir(path.Dir(name))
	if err != nil {
		return err
	}
	defer f.Close()
	return fn(int(f.Fd()), path.Base(name))
}

// setLinkTime sets the time of a symbolic link itself.
func (r *receiver) setLinkTime(st *types.Stat) error {
	return r.inParent(st.Path, func(dir int, base string) error {
		at := unix.NsecToTimespec(st.ModTime)
		return unix.UtimesNanoAt(dir, base, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// makeNode makes a pipe or a device.
func (r *receiver) makeNode(st *types.Stat) error {
	mode := os.FileMode(st.Mode)
	kind, dev := uint32(unix.S_IFIFO), uint64(0)
	if mode&fs.ModeDevice != 0 {
		kind, dev = unix.S_IFBLK, unix.Mkdev(uint32(st.Devmajor), uint32(st.Devminor))
		if mode&fs.ModeCharDevice != 0 {
			kind = unix.S_IFCHR
		}
	}
	return r.inParent(st.Path, func(dir int, base string) error {
		if err := unix.Mknodat(dir, base, kind|uint32(mode.Perm()), int(dev)); err != nil {
			return err
		}
		if err := unix.Fchmodat(dir, base, uint32(mode.Perm()), 0); err != nil {
			return err
		}
		at := unix.NsecToTimespec(st.ModTime)
		return unix.UtimesNanoAt(dir, base, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
	})
}
