package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/kiln-build/kiln/cache/pool"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter/layer"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// inode is what entries that are hard links of each other have in common.
type inode = pool.FileID

// writer writes trees into a folder: directories and what is small in it from one
// goroutine, the contents of files from several.
type writer struct {
	files    layer.Files
	root     *folder
	uid, gid int
	epoch    *time.Time
	platform string

	first map[inode]string  // where each file of the platform was written first
	owner map[string]string // the platform that a path was written for; nil where there is one
	keep  map[string]bool   // what was written; nil where the rest may stay

	group *errgroup.Group
	links []hardLink // made when all files are there
	temps atomic.Int64
}

// folder is an open directory. It is closed, and its time is set, when the last
// file in it has been written.
type folder struct {
	fd     int
	refs   atomic.Int32
	finish func() error
}

func openRoot(path string) (*folder, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := &folder{fd: fd}
	f.refs.Store(1)
	return f, nil
}

// Close gives up a reference.
func (f *folder) Close() error {
	if f.refs.Add(-1) > 0 {
		return nil
	}
	var err error
	if f.finish != nil {
		err = f.finish()
	}
	return errors.Join(err, unix.Close(f.fd))
}

// write writes a state: what is in it, or, where it has a name, a folder of that name.
func (w *writer) write(ctx context.Context, state tree.Entry) error {
	g, gctx := errgroup.WithContext(ctx)
	// Twice the processors: half of them wait for the disk.
	g.SetLimit(2 * runtime.GOMAXPROCS(0))
	w.group, w.links = g, nil
	var err error
	if state.Name == "" {
		err = w.children(gctx, w.root, tree.Entry{}, "", state.Children)
	} else {
		err = w.entry(gctx, w.root, tree.Entry{}, state.Name, state)
	}
	// A file that could not be written is why the rest was given up.
	if gerr := g.Wait(); gerr != nil {
		return gerr
	}
	if err != nil {
		return err
	}
	for _, l := range w.links {
		if err := w.link(l); err != nil {
			return fmt.Errorf("writing %q, a link to %q: %w", l.path, l.first, err)
		}
	}
	return nil
}

// children writes what is in the directory that d is open as and of is the entry of.
func (w *writer) children(ctx context.Context, d *folder, of tree.Entry, path string, r tree.Ref) error {
	for e, err := range tree.ReadDir(w.files.Nodes, r) {
		if err != nil {
			return fmt.Errorf("reading %q of the result: %w", path, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := tree.CheckName(e.Name); err != nil {
			return err
		}
		full := e.Name
		if path != "" {
			full = path + "/" + e.Name
		}
		if err := tree.CheckLength(full); err != nil {
			return err
		}
		if err := w.entry(ctx, d, of, full, e); err != nil {
			if e.Kind != tree.Dir { // which says itself what of it could not be written
				err = fmt.Errorf("writing %q: %w", full, err)
			}
			return err
		}
	}
	return nil
}

func (w *writer) entry(ctx context.Context, d *folder, of tree.Entry, path string, e tree.Entry) error {
	if w.keep != nil {
		w.keep[path] = true
	}
	if e.Kind == tree.Dir {
		return w.dir(ctx, d, path, e)
	}
	if w.owner != nil {
		if other, ok := w.owner[path]; ok {
			return fmt.Errorf("cannot overwrite %s from %s with that from %s when split option is disabled (platform-split=false)", path, other, w.platform)
		}
		w.owner[path] = w.platform
	}
	switch e.Kind {
	case tree.File:
		return w.file(d, of, path, e)
	case tree.Symlink:
		return w.special(d, e, func(dirfd int, name string) error { return unix.Symlinkat(e.Target, dirfd, name) })
	case tree.Fifo:
		return w.special(d, e, func(dirfd int, name string) error { return unix.Mknodat(dirfd, name, unix.S_IFIFO|0o600, 0) })
	case tree.CharDev:
		return w.special(d, e, func(dirfd int, name string) error { return unix.Mknodat(dirfd, name, unix.S_IFCHR|0o600, int(e.Dev)) })
	case tree.BlockDev:
		return w.special(d, e, func(dirfd int, name string) error { return unix.Mknodat(dirfd, name, unix.S_IFBLK|0o600, int(e.Dev)) })
	}
	return nil // a socket is nothing without the process that listens on it
}

// dir makes a directory, or takes the one that is there, and writes what is in it.
func (w *writer) dir(ctx context.Context, parent *folder, path string, e tree.Entry) error {
	err := unix.Mkdirat(parent.fd, e.Name, 0o700)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err = unix.Fstatat(parent.fd, e.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err = unix.Unlinkat(parent.fd, e.Name, 0); err == nil {
				err = unix.Mkdirat(parent.fd, e.Name, 0o700)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	fd, err := unix.Openat(parent.fd, e.Name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	parent.refs.Add(1)
	d := &folder{fd: fd}
	d.refs.Store(1)
	d.finish = func() error {
		return errors.Join(w.setMeta(fd, parent.fd, e.Name, e), parent.Close())
	}
	err = w.children(ctx, d, e, path, e.Children)
	if failed := d.Close(); failed != nil {
		err = errors.Join(err, fmt.Errorf("writing %q: %w", path, failed))
	}
	return err
}

// setMeta sets what a file or directory has beside its contents. Attributes that
// this user or the file system cannot have are left out, as BuildKit does.
func (w *writer) setMeta(fd, dirfd int, name string, e tree.Entry) error {
	if err := unix.Fchown(fd, w.uid, w.gid); err != nil {
		return fmt.Errorf("setting the owner: %w", err)
	}
	if err := unix.Fchmod(fd, e.Mode&0o7777); err != nil {
		return fmt.Errorf("setting the mode: %w", err)
	}
	for _, x := range e.Xattrs {
		_ = unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0)
	}
	return w.setTime(dirfd, name, e)
}

func (w *writer) setTime(dirfd int, name string, e tree.Entry) error {
	ns := e.MTime
	if w.epoch != nil {
		ns = w.epoch.UnixNano()
	}
	t := unix.NsecToTimespec(ns)
	if err := unix.UtimesNanoAt(dirfd, name, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting the time: %w", err)
	}
	return nil
}

// place makes something called name, by way of a temporary name where something
// else has that name.
func (w *writer) place(d *folder, name string, create func(dirfd int, name string) error) error {
	err := create(d.fd, name)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	temp := ".kiln.tmp." + strconv.Itoa(os.Getpid()) + "." + strconv.FormatInt(w.temps.Add(1), 10)
	if err := create(d.fd, temp); err != nil {
		return err
	}
	err = unix.Renameat(d.fd, temp, d.fd, name)
	if err == unix.EISDIR || err == unix.ENOTEMPTY || err == unix.EEXIST {
		if err = removeAll(d.fd, name); err == nil {
			err = unix.Renameat(d.fd, temp, d.fd, name)
		}
	}
	// Where both are one file already, renaming does nothing and leaves both.
	if uerr := unix.Unlinkat(d.fd, temp, 0); uerr != nil && uerr != unix.ENOENT {
		err = errors.Join(err, uerr)
	}
	return err
}

func (w *writer) special(d *folder, e tree.Entry, make func(dirfd int, name string) error) error {
	return w.place(d, e.Name, func(dirfd int, name string) error {
		if err := make(dirfd, name); err != nil {
			return err
		}
		if err := unix.Fchownat(dirfd, name, w.uid, w.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("setting the owner: %w", err)
		}
		if e.Kind != tree.Symlink {
			if err := unix.Fchmodat(dirfd, name, e.Mode&0o7777, 0); err != nil {
				return fmt.Errorf("setting the mode: %w", err)
			}
		}
		return w.setTime(dirfd, name, e)
	})
}

// file writes a file from another goroutine, or notes that it is a hard link to
// what is written already.
func (w *writer) file(d *folder, of tree.Entry, path string, e tree.Entry) error {
	id := pool.IDOf(e)
	if first, ok := w.first[id]; ok {
		w.links = append(w.links, hardLink{path: path, first: first, dir: of})
		return nil
	}
	w.first[id] = path
	d.refs.Add(1)
	w.group.Go(func() (err error) {
		defer func() { err = errors.Join(err, d.Close()) }()
		err = w.place(d, e.Name, func(dirfd int, name string) error { return w.create(dirfd, name, e) })
		if err != nil {
			return fmt.Errorf("writing %q: %w", path, err)
		}
		return nil
	})
	return nil
}

// create writes a new file; where that fails there is none.
func (w *writer) create(dirfd int, name string, e tree.Entry) error {
	fd, err := unix.Openat(dirfd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	err = w.fill(f, e)
	if err == nil {
		err = w.setMeta(fd, dirfd, name, e)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, unix.Unlinkat(dirfd, name, 0))
	}
	return nil
}

// fill writes the contents; the kernel copies them, or shares them where the file
// system can. Holes stay holes.
func (w *writer) fill(f *os.File, e tree.Entry) error {
	if e.Size == 0 {
		return nil
	}
	r, err := w.files.Open(e)
	if err != nil {
		return err
	}
	defer r.Close()
	if src, ok := r.(*os.File); ok && isSparse(src, e.Size) {
		return copySparse(f, src, e.Size)
	}
	n, err := io.Copy(f, io.LimitReader(r, e.Size))
	if err == nil && n < e.Size {
		err = fmt.Errorf("the file is shorter than its tree says: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// isSparse reports whether a file has fewer blocks than its size needs.
func isSparse(f *os.File, size int64) bool {
	if size < 64<<10 {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Blocks*512 < size
}

func copySparse(dst, src *os.File, size int64) error {
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		data, err := src.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole until the end
		}
		if err != nil {
			return err
		}
		hole, err := src.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err = src.Seek(data, io.SeekStart); err == nil {
			_, err = dst.Seek(data, io.SeekStart)
		}
		if err == nil {
			_, err = io.CopyN(dst, src, min(hole, size)-data)
		}
		if err != nil {
			return err
		}
		off = hole
	}
	return nil
}
