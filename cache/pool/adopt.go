package pool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// Adopt makes the existing file dir/name, which has e's content and metadata
// already, the pool's: it is linked into the pool, or, where the pool has e's
// file, replaced by a link to that. The caller has hashed the content; the
// metadata is compared with e's here, except for xattrs. Nobody may write to
// the file any more.
func (p *Pool) Adopt(e tree.Entry, dir *os.File, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("taking %s into the pool: %w", name, err)
	}
	return p.AdoptStat(e, &st, int(dir.Fd()), name)
}

// AdoptStat is Adopt for whoever has the file's stat and a descriptor at hand.
func (p *Pool) AdoptStat(e tree.Entry, st *unix.Stat_t, dirfd int, name string) error {
	if err := p.adopt(e, st, dirfd, name); err != nil {
		return fmt.Errorf("taking %s into the pool: %w", name, tmpfile.Explain(err))
	}
	return nil
}

func (p *Pool) adopt(e tree.Entry, st *unix.Stat_t, dirfd int, name string) error {
	if err := p.compare(e, st); err != nil {
		return err
	}
	id := IDOf(e)
	pooldir, poolname, in, err := p.place(&id)
	if err != nil {
		return err
	}
	defer in.RUnlock()
	defer p.guard.Use((*[32]byte)(&id)).RUnlock()
	p.guard.SetDirty()
	for {
		var old unix.Stat_t
		err = unix.Linkat(dirfd, name, pooldir, poolname, 0)
		if err == nil {
			p.guard.Grow(st.Blocks * 512)
		}
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		err = unix.Fstatat(pooldir, poolname, &old, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return err
		case old.Mode&unix.S_IFMT == unix.S_IFREG && old.Size == e.Size:
			if old.Dev == st.Dev && old.Ino == st.Ino {
				return nil
			}
			return p.replace(&id, e, pooldir, poolname, dirfd, name)
		}
		// A damaged file (see has) makes way.
		if err := unix.Unlinkat(pooldir, poolname, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
}

// compare checks that a file is what e says of it.
func (p *Pool) compare(e tree.Entry, st *unix.Stat_t) error {
	switch {
	case e.Kind != tree.File || st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("not a regular file")
	case st.Size != e.Size:
		return fmt.Errorf("it has %d bytes where %d were expected", st.Size, e.Size)
	case st.Mode&0o7777 != e.Mode&0o7777:
		return fmt.Errorf("its mode is %o where %o was expected", st.Mode&0o7777, e.Mode&0o7777)
	case (st.Uid != e.UID || st.Gid != e.GID) && !p.opt.SingleID:
		return fmt.Errorf("its owner is %d:%d where %d:%d was expected", st.Uid, st.Gid, e.UID, e.GID)
	case st.Mtim != timespec(e.MTime):
		return fmt.Errorf("its time is %d where %d was expected", st.Mtim.Nano(), e.MTime)
	}
	return nil
}

// replace puts a link to the pool's file in place of dirfd/name.
func (p *Pool) replace(id *FileID, e tree.Entry, pooldir int, poolname string, dirfd int, name string) error {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	temp := ".kiln-" + hex.EncodeToString(b[:])
	err := unix.Linkat(pooldir, poolname, dirfd, temp, 0)
	if errors.Is(err, unix.EMLINK) {
		err = p.linkAlternate(id, e, pooldir, poolname, dirfd, temp)
	}
	if err != nil {
		return err
	}
	if err := unix.Renameat(dirfd, temp, dirfd, name); err != nil {
		_ = unix.Unlinkat(dirfd, temp, 0)
		return err
	}
	// A rename onto another name of the same inode does nothing, and leaves the
	// temporary name: so it is with an alternate that name was a link to.
	if err := unix.Unlinkat(dirfd, temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// Copy makes to's file out of from's, whose content it shares and whose
// metadata or tag it does not. A from that is not here wraps fs.ErrNotExist.
func (p *Pool) Copy(ctx context.Context, from, to tree.Entry) error {
	if from.Kind != tree.File || to.Kind != tree.File || from.Content != to.Content || from.Size != to.Size {
		return fmt.Errorf("copying %s to %s in the pool: they are not of one content", from.Name, to.Name)
	}
	id := IDOf(to)
	if p.has(&id, to.Size) {
		return nil
	}
	src, err := p.Open(from)
	if err != nil {
		return fmt.Errorf("copying to %s: %w", to.Name, err)
	}
	defer src.Close()
	err = p.add(&id, to, func(f *tmpfile.File) error { return copyFile(ctx, f.File, src, to.Size) })
	if err != nil {
		return fmt.Errorf("copying %s to %s in the pool: %w", from.Name, to.Name, err)
	}
	return nil
}

// copyFile copies size bytes from src to dst, which is empty: by sharing extents
// where the file system can, else by copying what is data and leaving holes.
func copyFile(ctx context.Context, dst, src *os.File, size int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	if st.Size != size {
		return fmt.Errorf("the source has %d bytes where %d were expected", st.Size, size)
	}
	if size == 0 || unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	for off := int64(0); off < size; {
		start, end := off, size
		// Less than the size in blocks is what makes a file worth asking.
		if st.Blocks*512 < size {
			var err error
			if start, err = unix.Seek(int(src.Fd()), off, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
				break
			} else if err != nil {
				return fmt.Errorf("looking for data: %w", err)
			}
			if end, err = unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE); err != nil {
				return fmt.Errorf("looking for holes: %w", err)
			}
		}
		if err := copyRange(ctx, dst, src, start, end); err != nil {
			return err
		}
		off = end
	}
	return dst.Truncate(size)
}

// copyRange copies the bytes from start to end.
func copyRange(ctx context.Context, dst, src *os.File, start, end int64) error {
	const step = 64 << 20 // between looks at ctx
	for in, out := start, start; in < end; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(min(end-in, step)), 0)
		if err != nil || n == 0 {
			if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EIO) {
				return err
			}
			return copyPlain(dst, src, in, end)
		}
	}
	return nil
}

func copyPlain(dst, src *os.File, start, end int64) error {
	n, err := io.Copy(io.NewOffsetWriter(dst, start), io.NewSectionReader(src, start, end-start))
	if err != nil {
		return err
	}
	if n != end-start {
		return io.ErrUnexpectedEOF
	}
	return nil
}
