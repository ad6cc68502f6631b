// Package tmpfile makes files that appear under their name only when they are
// whole: without a name (O_TMPFILE) where the file system can, else under a
// temporary one. Nothing is synced; see docs/formats.md, Epochs.
package tmpfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is a file being made. Close removes it unless Link succeeded.
type File struct {
	*os.File
	dirfd int
	temp  string // its temporary name in dirfd; empty for one without a name
}

// unnamed is cleared once a file system said that it knows no O_TMPFILE.
var unnamed atomic.Bool

func init() { unnamed.Store(true) }

// Create makes a file in the directory dirfd, readable and writable by its owner.
func Create(dirfd int) (*File, error) { return CreateNear(dirfd, dirfd) }

// CreateNear is Create where the file system is to find room for the file near
// the directory near, which need not stay open. A file that has to have a
// temporary name has it in dirfd.
func CreateNear(near, dirfd int) (*File, error) {
	if unnamed.Load() {
		fd, err := unix.Openat(near, ".", unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
		switch {
		case err == nil:
			return &File{File: os.NewFile(uintptr(fd), "unnamed file"), dirfd: dirfd}, nil
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR):
			unnamed.Store(false)
		default:
			return nil, Explain(&os.PathError{Op: "open", Path: "unnamed file", Err: err})
		}
	}
	return createNamed(dirfd)
}

func createNamed(dirfd int) (*File, error) {
	for {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return nil, err
		}
		name := ".tmp-" + hex.EncodeToString(b[:])
		fd, err := unix.Openat(dirfd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return nil, Explain(&os.PathError{Op: "open", Path: name, Err: err})
		}
		return &File{File: os.NewFile(uintptr(fd), name), dirfd: dirfd, temp: name}, nil
	}
}

// Link gives the file its name in the directory dirfd. One that exists is left
// as it is, and the error wraps fs.ErrExist.
func (f *File) Link(dirfd int, name string) error {
	var err error
	if f.temp != "" {
		err = unix.Linkat(f.dirfd, f.temp, dirfd, name, 0)
	} else {
		fd := int(f.Fd())
		err = unix.Linkat(fd, "", dirfd, name, unix.AT_EMPTY_PATH)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
			// Older kernels want CAP_DAC_READ_SEARCH for an empty path.
			err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), dirfd, name, unix.AT_SYMLINK_FOLLOW)
		}
	}
	if err != nil {
		return Explain(&os.LinkError{Op: "link", Old: f.Name(), New: name, Err: err})
	}
	return nil
}

// Close closes the file, and removes its temporary name if it has one.
func (f *File) Close() error {
	if f.temp != "" {
		_ = unix.Unlinkat(f.dirfd, f.temp, 0)
		f.temp = ""
	}
	return f.File.Close()
}

// RemoveStale removes the file name in the directory dirfd if it is one that a
// process left half made: one with a temporary name that was last changed more
// than a day ago.
func RemoveStale(dirfd int, name string) {
	var st unix.Stat_t
	var now unix.Timespec
	if IsTemp(name) && unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.ClockGettime(unix.CLOCK_REALTIME, &now) == nil && now.Sec-st.Ctim.Sec > 24*60*60 {
		_ = unix.Unlinkat(dirfd, name, 0)
	}
}

// IsTemp reports whether name is one that Create gives for a while.
func IsTemp(name string) bool { return len(name) == 5+16 && name[:5] == ".tmp-" }

// ErrFull is wrapped by errors of writing to a full disk.
var ErrFull = errors.New("the disk of the state folder is full: make room on it, or run kiln prune")

// Explain adds what to do to errors that say the disk is full.
func Explain(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w (%w)", ErrFull, err)
	}
	return err
}

// IsExist reports whether err says that the name is taken.
func IsExist(err error) bool { return errors.Is(err, fs.ErrExist) }
