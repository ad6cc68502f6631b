// Package dirfd reads directories and what is in them relative to an open
// directory, in as few system calls as Linux allows and without the bookkeeping
// of os.File. A name is never followed where it is a symbolic link.
package dirfd

import (
	"crypto/sha256"
	"errors"
	"hash"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// Name is a name in a directory, with the kind that the directory says it has.
type Name struct {
	Name string
	Kind byte // unix.DT_*; DT_UNKNOWN where only a stat tells
}

// openTries bounds how often Openat2 looks: a rename or mount anywhere makes the kernel
// ask for another try, and whoever writes the folder may do nothing but rename.
const openTries = 1000

// Openat2 is openat2(2), tried again where the kernel asks for that.
func Openat2(fd int, name string, how *unix.OpenHow) (int, error) {
	for range openTries {
		opened, err := unix.Openat2(fd, name, how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return opened, err
		}
	}
	return -1, unix.EAGAIN
}

var direntBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// Names lists the open directory fd, from where it was last read to, sorted by name.
func Names(fd int) ([]Name, error) {
	buf := direntBuffers.Get().(*[]byte)
	defer direntBuffers.Put(buf)
	var out []Name
	for {
		n, err := unix.Getdents(fd, *buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			break
		}
		out = appendNames(out, (*buf)[:n])
	}
	slices.SortFunc(out, func(a, b Name) int { return strings.Compare(a.Name, b.Name) })
	// A directory that changes meanwhile may give a name twice.
	return slices.CompactFunc(out, func(a, b Name) bool { return a.Name == b.Name }), nil
}

// appendNames takes apart what getdents64 gave: inode (8 bytes), offset (8),
// record length (2), kind (1), name ending in a zero byte.
func appendNames(out []Name, b []byte) []Name {
	for len(b) >= 19 {
		n := int(b[16]) | int(b[17])<<8
		if n < 19 || n > len(b) {
			break
		}
		name := b[19:n]
		if end := slices.Index(name, 0); end >= 0 {
			name = name[:end]
		}
		if s := string(name); s != "." && s != ".." {
			out = append(out, Name{Name: s, Kind: b[18]})
		}
		b = b[n:]
	}
	return out
}

// KindOf gives the unix.DT_* that a stat says.
func KindOf(st *unix.Stat_t) byte { return byte(st.Mode & unix.S_IFMT >> 12) }

// Stat stats name in the directory fd.
func Stat(fd int, name string, st *unix.Stat_t) error {
	for {
		err := unix.Fstatat(fd, name, st, unix.AT_SYMLINK_NOFOLLOW)
		if err != unix.EINTR {
			return err
		}
	}
}

// Open opens name in the directory fd. O_CLOEXEC is added to flags; whether links
// are followed is the caller's to say.
func Open(fd int, name string, flags int) (int, error) {
	for {
		out, err := unix.Openat(fd, name, flags|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return out, err
		}
	}
}

// Dir opens the directory name in the directory fd for reading.
func Dir(fd int, name string) (int, error) {
	return Open(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

// File opens the file name in the directory fd for reading. That it is a regular
// file is the caller's to check; a fifo does not block.
func File(fd int, name string) (int, error) {
	return Open(fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
}

// FileUnnoted is File without the reading's being noted in the file, which costs
// about as much as the reading of a small one. It is for kiln's own files: those of
// others open as they do by File.
func FileUnnoted(fd int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	out, err := Open(fd, name, flags|unix.O_NOATIME)
	if err == unix.EPERM { // O_NOATIME is for the file's owner
		return Open(fd, name, flags)
	}
	return out, err
}

// hasher is what hashing a file needs, kept between files.
type hasher struct {
	h   hash.Hash
	buf []byte
}

var hashers = sync.Pool{New: func() any { return &hasher{h: sha256.New(), buf: make([]byte, 256<<10)} }}

// Sum gives the sha256 and the length of the open file fd, from where it was last
// read to. A file that is as long as hint and fits into a buffer is one read; that
// it ends there is known from the read's being short.
func Sum(fd int, hint int64) (sum blob.Digest, size int64, err error) {
	x := hashers.Get().(*hasher)
	defer hashers.Put(x)
	x.h.Reset()
	for {
		n, err := unix.Read(fd, x.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return sum, size, err
		}
		size += int64(n)
		x.h.Write(x.buf[:n])
		if n == 0 || size == hint && n < len(x.buf) {
			x.h.Sum(sum[:0])
			return sum, size, nil
		}
	}
}

// Readlink reads the link called name in the directory fd, or the link that fd
// itself is (opened by O_PATH) where name is empty.
func Readlink(fd int, name string) (string, error) {
	for size := 256; ; {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(fd, name, buf)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return "", err
		case n < size:
			return string(buf[:n]), nil
		default:
			size *= 2
		}
	}
}

// Xattrs gives those attributes whose name keep wants, sorted: of the open file
// fd, or, where name is not empty, of that name in the directory fd. Attributes
// that may not be read are left out.
func Xattrs(fd int, name string, keep func(attr string) bool) ([]tree.Xattr, error) {
	list := func(b []byte) (int, error) { return unix.Flistxattr(fd, b) }
	get := func(attr string, b []byte) (int, error) { return unix.Fgetxattr(fd, attr, b) }
	if name != "" {
		// There is no llistxattrat before Linux 6.13; /proc leads to the same place.
		at := ProcPath(fd, name)
		list = func(b []byte) (int, error) { return unix.Llistxattr(at, b) }
		get = func(attr string, b []byte) (int, error) { return unix.Lgetxattr(at, attr, b) }
	}
	var small [256]byte
	names, err := growing(small[:], list)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
			return nil, nil
		}
		return nil, err
	}
	if len(names) == 0 {
		return nil, nil
	}
	var out []tree.Xattr
	for attr := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if !keep(attr) {
			continue
		}
		value, err := growing(nil, func(b []byte) (int, error) { return get(attr, b) })
		if err != nil {
			continue
		}
		out = append(out, tree.Xattr{Name: attr, Value: string(value)})
	}
	slices.SortFunc(out, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// ProcPath gives a path to name in the open directory fd, for system calls that
// take paths only. The last component is theirs not to follow.
func ProcPath(fd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
}

// growing calls a system call that fills a buffer or says how large it must be.
func growing(buf []byte, call func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := call(buf)
		switch {
		case err == unix.EINTR:
		case err == unix.ERANGE || err == nil && n > len(buf):
			if n, err = call(nil); err != nil {
				return nil, err
			}
			buf = make([]byte, n+64)
		case err != nil:
			return nil, err
		default:
			return buf[:n], nil
		}
	}
}
