// Package pool holds the files that layers are made of: one inode for each
// distinct (content, mode, owner, mtime, xattrs, tag), see tree.Entry.
//
// A file lies at files/ab/cdef…, its FileID in hex, and has its whole metadata
// before it has that name. Layers' folders link to it, so whoever writes to a
// pool file through any of its names corrupts every layer that has it. Nothing
// does: the folders that link to the pool are mounted only as lower layers of an
// overlay, which copies a file up before it is written to, or read-only.
//
// A file system bounds the links to one inode (65,000 on ext4). Where a file has
// reached that, the pool makes an alternate, files/ab/cdef….1, and links to it.
//
// A Pool is safe for concurrent use. What is found or put under an open lease is
// kept from Sweep until the lease ends (package guard holds the rules).
package pool

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kiln-build/kiln/cache/internal/guard"
	"github.com/kiln-build/kiln/cache/internal/placement"
	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// FileID names a file of the pool: the sha256 of all that makes it one inode.
type FileID [sha256.Size]byte

func (id FileID) String() string { return hex.EncodeToString(id[:]) }

// IDOf gives the name of the file that e, of kind File, stands for.
func IDOf(e tree.Entry) FileID {
	var room [256]byte
	b := append(room[:0], "kiln file 1\x00"...)
	b = append(b, e.Content[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Size))
	b = binary.LittleEndian.AppendUint32(b, e.Mode)
	b = binary.LittleEndian.AppendUint32(b, e.UID)
	b = binary.LittleEndian.AppendUint32(b, e.GID)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.MTime))
	b = binary.LittleEndian.AppendUint64(b, e.Tag)
	for _, x := range e.Xattrs {
		b = binary.AppendUvarint(b, uint64(len(x.Name)))
		b = append(b, x.Name...)
		b = binary.AppendUvarint(b, uint64(len(x.Value)))
		b = append(b, x.Value...)
	}
	return sha256.Sum256(b)
}

// Options are the settings of a pool; the zero value works.
type Options struct {
	// SingleID says that this process has one user and one group id at its
	// disposal (a user namespace without subordinate ids): owners and xattrs that
	// the kernel refuses to set are left out of the inode. Trees hold them still.
	SingleID bool
	// Guard is shared with the other stores of a state folder; nil is one of its own.
	Guard *guard.Guard
}

// Pool is the folder of files.
type Pool struct {
	opt   Options
	guard *guard.Guard
	root  *os.File
	dirs  [256]dir
	made  atomic.Uint32 // files, see create

	mu         sync.Mutex
	alternates map[FileID]int // of files at the bound of links, the alternate in use
}

// dir is one of the 256 folders, opened when first used.
type dir struct {
	fd   atomic.Int32 // plus one; 0 is not open
	once sync.Mutex
	// use is held for reading by who uses fd, but for sweeps, and for writing while
	// Narrow exchanges it. It comes before the guard's shards.
	use sync.RWMutex
}

// Open opens the pool in the folder path, making it if need be.
func Open(path string, o Options) (*Pool, error) {
	made := os.Mkdir(path, 0o700)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return nil, fmt.Errorf("making the pool: %w", made)
	}
	root, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the pool: %w", err)
	}
	if made == nil {
		placement.Spread(root) // folders named by a hash have nothing to do with each other
	}
	if o.Guard == nil {
		o.Guard = new(guard.Guard)
	}
	return &Pool{opt: o, guard: o.Guard, root: root, alternates: map[FileID]int{}}, nil
}

// Close lets the folder go.
func (p *Pool) Close() error {
	for i := range p.dirs {
		if fd := p.dirs[i].fd.Swap(0); fd != 0 {
			_ = unix.Close(int(fd) - 1)
		}
	}
	return p.root.Close()
}

const hexDigits = "0123456789abcdef"

// place gives the folder of a file and its name in it. The folder stays what it is
// until in is unlocked; where there is an error in is nil.
func (p *Pool) place(id *FileID) (dirfd int, name string, in *sync.RWMutex, err error) {
	in = &p.dirs[id[0]].use
	in.RLock()
	dirfd, err = p.dir(id[0], true)
	if err != nil {
		in.RUnlock()
		return -1, "", nil, err
	}
	var b [2 * (sha256.Size - 1)]byte
	hex.Encode(b[:], id[1:])
	return dirfd, string(b[:]), in, nil
}

// dir gives the descriptor of the folder whose name is n in hex. One that is not
// there is made, or, without create, is -1.
func (p *Pool) dir(n byte, create bool) (int, error) {
	d := &p.dirs[n]
	if fd := d.fd.Load(); fd != 0 {
		return int(fd) - 1, nil
	}
	d.once.Lock()
	defer d.once.Unlock()
	if fd := d.fd.Load(); fd != 0 {
		return int(fd) - 1, nil
	}
	name := string([]byte{hexDigits[n>>4], hexDigits[n&15]})
	root := int(p.root.Fd())
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(root, name, flags, 0)
	if errors.Is(err, unix.ENOENT) {
		if !create {
			return -1, nil
		}
		if err := unix.Mkdirat(root, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, tmpfile.Explain(fmt.Errorf("making folder %s of the pool: %w", name, err))
		}
		fd, err = unix.Openat(root, name, flags, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("opening folder %s of the pool: %w", name, err)
	}
	d.fd.Store(int32(fd) + 1)
	return fd, nil
}

// Has reports whether e's file is here.
func (p *Pool) Has(e tree.Entry) bool {
	id := IDOf(e)
	return p.has(&id, e.Size)
}

func (p *Pool) has(id *FileID, size int64) bool {
	dirfd, name, in, err := p.place(id)
	if err != nil {
		return false
	}
	defer in.RUnlock()
	defer p.guard.Use((*[32]byte)(id)).RUnlock()
	var st unix.Stat_t
	err = unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	// The size is that of a file made whole; another is one that was cut short
	// behind kiln's back, and to be made again.
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == size
}

// Open reads e's file. One that is not here wraps fs.ErrNotExist.
func (p *Pool) Open(e tree.Entry) (*os.File, error) {
	fd, err := p.open(e)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), e.Name), nil
}

// ReadAt fills b with e's bytes from off on. It is for the many small files of an
// export: what an os.File does besides costs about as much as opening one. A file
// that ends before b is full is an error that wraps io.ErrUnexpectedEOF.
func (p *Pool) ReadAt(e tree.Entry, b []byte, off int64) error {
	fd, err := p.open(e)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for len(b) > 0 {
		n, err := unix.Pread(fd, b, off)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && n == 0:
			err = io.ErrUnexpectedEOF
			fallthrough
		case err != nil:
			return fmt.Errorf("reading %s of the pool: %w", e.Name, err)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func (p *Pool) open(e tree.Entry) (int, error) {
	id := IDOf(e)
	dirfd, name, in, err := p.place(&id)
	if err != nil {
		return -1, err
	}
	defer in.RUnlock()
	defer p.guard.Use((*[32]byte)(&id)).RUnlock()
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		// O_NOATIME is for the file's owner.
		fd, err = unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, missing(id, e, err)
	}
	return fd, nil
}

// missing is the error of a file that the pool was asked for.
func missing(id FileID, e tree.Entry, err error) error {
	return fmt.Errorf("file %.12s of the pool (%s): %w", id, e.Name, err)
}

// Link makes dir/name a link to e's file. One that is not here wraps fs.ErrNotExist.
func (p *Pool) Link(e tree.Entry, dir *os.File, name string) error {
	id := IDOf(e)
	return p.LinkID(&id, e, int(dir.Fd()), name)
}

// LinkID is Link for whoever has e's FileID and a descriptor at hand.
func (p *Pool) LinkID(id *FileID, e tree.Entry, dirfd int, name string) error {
	from, fname, in, err := p.place(id)
	if err != nil {
		return err
	}
	defer in.RUnlock()
	defer p.guard.Use((*[32]byte)(id)).RUnlock()
	p.guard.SetDirty()
	err = unix.Linkat(from, fname, dirfd, name, 0)
	if errors.Is(err, unix.EMLINK) {
		err = p.linkAlternate(id, e, from, fname, dirfd, name)
	}
	if err != nil {
		return fmt.Errorf("linking %s: %w", name, missing(*id, e, tmpfile.Explain(err)))
	}
	return nil
}

// linkAlternate links to a copy of a file that has as many links as it may have.
func (p *Pool) linkAlternate(id *FileID, e tree.Entry, from int, fname string, dirfd int, name string) error {
	p.mu.Lock()
	n := max(p.alternates[*id], 1)
	p.mu.Unlock()
	for ; ; n++ {
		alt := fname + "." + strconv.Itoa(n)
		err := unix.Linkat(from, alt, dirfd, name, 0)
		if errors.Is(err, unix.ENOENT) {
			if err = p.makeAlternate(e, from, fname, alt); err == nil || tmpfile.IsExist(err) {
				err = unix.Linkat(from, alt, dirfd, name, 0)
			}
		}
		if errors.Is(err, unix.EMLINK) {
			continue
		}
		p.mu.Lock()
		p.alternates[*id] = max(n, p.alternates[*id])
		p.mu.Unlock()
		return err
	}
}

func (p *Pool) makeAlternate(e tree.Entry, dirfd int, fname, alt string) error {
	fd, err := unix.Openat(dirfd, fname, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(fd), fname)
	defer src.Close()
	f, err := p.make(e, func(f *tmpfile.File) error {
		return copyFile(context.Background(), f.File, src, e.Size)
	})
	if err != nil {
		return err
	}
	defer f.Close()
	return p.name(f, e, dirfd, alt)
}

// splitName takes a file's name in its folder apart; ok is false for what is none.
func splitName(dir byte, name string) (id FileID, ok bool) {
	h, n, alternate := strings.Cut(name, ".")
	if len(h) != 2*(sha256.Size-1) {
		return id, false
	}
	if alternate {
		if v, err := strconv.Atoi(n); err != nil || v < 1 {
			return id, false
		}
	}
	id[0] = dir
	_, err := hex.Decode(id[1:], []byte(h))
	return id, err == nil
}
