package pool

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// holeSize is the length of zeros from which Put leaves a hole: 64 KiB, below
// which the extents that a hole adds cost about what it saves.
const holeSize = 64 << 10

// bufferSize is a multiple of holeSize, and large enough that a file of the
// usual size is one read and one write.
const bufferSize = 256 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// ContentError says that a file's bytes are not those that its entry promises.
type ContentError struct {
	Entry   tree.Entry
	Size    int64 // what there was; where it is more than Entry.Size, at least so much
	Content blob.Digest
}

func (e *ContentError) Error() string {
	if e.Size != e.Entry.Size {
		return fmt.Sprintf("the content of %s has %d bytes where %d were expected", e.Entry.Name, e.Size, e.Entry.Size)
	}
	return fmt.Sprintf("the content of %s is %s where %s was expected", e.Entry.Name, e.Content, e.Entry.Content)
}

// Put makes e's file from what r gives, verifying e.Size and e.Content; a
// difference is a *ContentError. Where the pool has the file r is not read.
func (p *Pool) Put(ctx context.Context, e tree.Entry, r io.Reader) error {
	if e.Kind != tree.File || e.Size < 0 {
		return fmt.Errorf("putting %s into the pool: not a regular file", e.Name)
	}
	id := IDOf(e)
	if p.has(&id, e.Size) {
		return nil
	}
	if err := p.add(&id, e, func(f *tmpfile.File) error { return fill(ctx, f, e, r) }); err != nil {
		return fmt.Errorf("putting %s into the pool: %w", e.Name, err)
	}
	return nil
}

// PutBytes makes the file of e with the content data, whose digest and size it sets.
func (p *Pool) PutBytes(e *tree.Entry, data []byte) error {
	e.Kind, e.Size, e.Content = tree.File, int64(len(data)), sha256.Sum256(data)
	id := IDOf(*e)
	if p.has(&id, e.Size) {
		return nil
	}
	err := p.add(&id, *e, func(f *tmpfile.File) error {
		hole, err := writeSparse(f.File, data, 0)
		if err == nil && hole {
			err = f.Truncate(e.Size)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("putting %s into the pool: %w", e.Name, err)
	}
	return nil
}

// add makes the file called id by write, and gives it its name.
func (p *Pool) add(id *FileID, e tree.Entry, write func(*tmpfile.File) error) error {
	f, err := p.make(e, write)
	if err != nil {
		return err
	}
	defer f.Close()
	return p.keep(f, id, e)
}

// keep gives a file that is whole its place.
func (p *Pool) keep(f *tmpfile.File, id *FileID, e tree.Entry) error {
	dirfd, name, in, err := p.place(id)
	if err != nil {
		return err
	}
	defer in.RUnlock()
	defer p.guard.Use((*[32]byte)(id)).RUnlock()
	return p.name(f, e, dirfd, name)
}

// Incoming is a file that is written before its content, and so its name in the
// pool, is known. It is for one goroutine. Close removes it unless Commit succeeded.
type Incoming struct {
	*tmpfile.File
	pool *Pool
}

// Create makes an empty file that is none of the pool's yet.
func (p *Pool) Create() (*Incoming, error) {
	f, err := p.create()
	if err != nil {
		return nil, fmt.Errorf("making a file of the pool: %w", err)
	}
	return &Incoming{f, p}, nil
}

// Commit makes the file e's, of which it has the content, as its writer vouches.
func (in *Incoming) Commit(e tree.Entry) error {
	id := IDOf(e)
	err := in.pool.setMeta(int(in.Fd()), e)
	if err == nil {
		err = in.pool.keep(in.File, &id, e)
	}
	if err != nil {
		return fmt.Errorf("putting %s into the pool: %w", e.Name, tmpfile.Explain(err))
	}
	return nil
}

// together is how many files are made near one folder before the next one's turn:
// inodes beside each other are written to the disk together.
const together = 64

// create makes a file near one of the folders, one after the other (see placement.Spread).
func (p *Pool) create() (*tmpfile.File, error) {
	n := byte(p.made.Add(1) / together)
	d := &p.dirs[n]
	d.use.RLock()
	defer d.use.RUnlock()
	near, err := p.dir(n, true)
	if err != nil {
		return nil, err
	}
	return tmpfile.CreateNear(near, int(p.root.Fd()))
}

// make makes a file without a name by write, and gives it e's metadata.
func (p *Pool) make(e tree.Entry, write func(*tmpfile.File) error) (*tmpfile.File, error) {
	f, err := p.create()
	if err != nil {
		return nil, err
	}
	if err = write(f); err == nil {
		err = p.setMeta(int(f.Fd()), e)
	}
	if err != nil {
		_ = f.Close()
		return nil, tmpfile.Explain(err)
	}
	return f, nil
}

// name gives a file its name. One that another made meanwhile is as good.
func (p *Pool) name(f *tmpfile.File, e tree.Entry, dirfd int, name string) error {
	p.guard.SetDirty()
	err := f.Link(dirfd, name)
	if err == nil {
		p.guard.Grow((e.Size + 4095) &^ 4095)
	}
	if !tmpfile.IsExist(err) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil &&
		st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == e.Size {
		return nil
	}
	// What has the name is damaged (has said so): this one takes its place.
	if err := unix.Unlinkat(dirfd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := f.Link(dirfd, name); err != nil && !tmpfile.IsExist(err) {
		return err
	}
	return nil
}

// fill writes r's bytes to f, verifies them, and leaves holes for long runs of zeros.
func fill(ctx context.Context, f *tmpfile.File, e tree.Entry, r io.Reader) error {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	h := sha256.New()
	var n int64
	sparse := false
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		// One byte more than is left shows a file that is too long.
		room := buf[:min(int64(len(buf)), e.Size-n+1)]
		k, err := io.ReadFull(r, room)
		if n+int64(k) > e.Size {
			return &ContentError{Entry: e, Size: n + int64(k)}
		}
		h.Write(room[:k])
		hole, werr := writeSparse(f.File, room[:k], n)
		if werr != nil {
			return werr
		}
		sparse = sparse || hole
		n += int64(k)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
	}
	var got blob.Digest
	h.Sum(got[:0])
	if n != e.Size || got != e.Content {
		return &ContentError{Entry: e, Size: n, Content: got}
	}
	if sparse {
		return f.Truncate(n)
	}
	return nil
}

// writeSparse writes b at off, except for the blocks of zeros in it.
func writeSparse(f *os.File, b []byte, off int64) (hole bool, err error) {
	for len(b) > 0 {
		// Runs of blocks of one sort go together.
		k, zero := 0, false
		for k < len(b) {
			block := b[k:min(k+holeSize, len(b))]
			z := len(block) == holeSize && allZero(block)
			if k > 0 && z != zero {
				break
			}
			zero = z
			k += len(block)
		}
		if zero {
			hole = true
		} else if _, err := f.WriteAt(b[:k], off); err != nil {
			return hole, err
		}
		b, off = b[k:], off+int64(k)
	}
	return hole, nil
}

func allZero(b []byte) bool {
	for len(b) >= 32 {
		if binary.LittleEndian.Uint64(b)|binary.LittleEndian.Uint64(b[8:])|
			binary.LittleEndian.Uint64(b[16:])|binary.LittleEndian.Uint64(b[24:]) != 0 {
			return false
		}
		b = b[32:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// setMeta gives a file the owner, xattrs, mode and time of e. The order matters:
// a change of owner clears set-id bits and capabilities.
func (p *Pool) setMeta(fd int, e tree.Entry) error {
	if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil && !p.tolerates(err) {
		return fmt.Errorf("setting the owner to %d:%d: %w", e.UID, e.GID, err)
	}
	for _, x := range e.Xattrs {
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil && !p.tolerates(err) {
			return fmt.Errorf("setting xattr %q: %w", x.Name, err)
		}
	}
	if err := unix.Fchmod(fd, e.Mode&0o7777); err != nil {
		return fmt.Errorf("setting mode %o: %w", e.Mode, err)
	}
	return setTime(fd, e.MTime)
}

// tolerates reports whether the kernel's refusal is that of a single id.
func (p *Pool) tolerates(err error) bool {
	return p.opt.SingleID && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP))
}

// setTime is futimens(3), which package unix has no form of.
func setTime(fd int, mtime int64) error {
	ts := [2]unix.Timespec{timespec(mtime), timespec(mtime)}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("setting the time: %w", errno)
	}
	return nil
}

// timespec is unix.NsecToTimespec with nanoseconds that are never negative.
func timespec(ns int64) unix.Timespec {
	sec, nsec := ns/1e9, ns%1e9
	if nsec < 0 {
		sec, nsec = sec-1, nsec+1e9
	}
	return unix.Timespec{Sec: sec, Nsec: nsec}
}
