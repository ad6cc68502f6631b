package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/pool"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/worker/executor/userns"
	"github.com/kiln-build/kiln/worker/internal/dirfd"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

// Folders makes and finds the folders of layers. It is safe for concurrent use.
type Folders struct {
	cache *cache.Cache
	pool  *pool.Pool
	// opaque is the xattr that makes a directory opaque to overlayfs as this
	// process may mount it.
	opaque  string
	flights singleflight.Group
	// slots bounds the goroutines that fill folders, beside those that asked.
	slots chan struct{}
}

// NewFolders gives the folders of a state folder.
func NewFolders(c *cache.Cache) *Folders {
	return &Folders{
		cache: c, pool: c.Pool(), opaque: opaqueXattr(),
		slots: make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
	}
}

// opaqueXattr finds out which xattr overlayfs will heed: without privilege over
// the initial user namespace, trusted.* cannot be set and userxattr is mounted with.
func opaqueXattr() string {
	if InUserNamespace() {
		return overlayUser + "opaque"
	}
	return overlayTrusted + "opaque"
}

// singleID reports whether this process has one user id at its disposal: a user
// namespace without subordinate ids. Trees hold owners all the same; on disk
// everything is that one user's, as in the pool (pool.Options.SingleID).
var singleID = sync.OnceValue(func() bool {
	count, _ := userns.IDs()
	return count == 1
})

// refused passes an error on unless it is the kernel's no to an owner or xattr
// that this process has no right to give and may do without.
func refused(err error) error {
	if singleID() && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOVERFLOW)) {
		return nil
	}
	return err
}

// InUserNamespace reports whether this process is in a user namespace that is
// not the machine's first, where overlayfs must be mounted with userxattr, and
// devices cannot be made.
var InUserNamespace = sync.OnceValue(func() bool {
	_, nested := userns.IDs()
	return nested
})

// Have gives the path of a layer's folder if it is there.
func (f *Folders) Have(l cache.Layer) (string, bool) {
	if l.Root.Kind != tree.Dir {
		return "", false
	}
	path := f.path(l.Root)
	_, err := os.Lstat(path)
	return path, err == nil
}

// Folder gives the path of a layer's folder, which is made if it is not there.
// The layer must have been unpacked. Whoever mounts it mounts it read-only or as
// a lower layer: its files are the pool's.
func (f *Folders) Folder(ctx context.Context, l cache.Layer) (string, error) {
	if l.Root.Kind != tree.Dir {
		return "", &cache.NotUnpackedError{Layer: l.ID}
	}
	path, ok := f.Have(l)
	if ok {
		return path, nil
	}
	done := f.flights.DoChan(path, func() (any, error) {
		// Whoever else waits for it must not lose it with the first one's build.
		return nil, f.make(context.WithoutCancel(ctx), path, l)
	})
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case r := <-done:
		if r.Err != nil {
			return "", fmt.Errorf("making the folder of layer %.12s: %w", l.ID, r.Err)
		}
		return path, nil
	}
}

// path gives where the folder of a layer's tree is, if it is.
func (f *Folders) path(root tree.Entry) string {
	return f.cache.Path("layers", cache.LayerFolder(root))
}

func (f *Folders) make(ctx context.Context, path string, l cache.Layer) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	tmp, err := os.MkdirTemp(f.cache.Path("tmp"), "folder-")
	if err != nil {
		return err
	}
	defer cache.RemoveAll(tmp)
	root := filepath.Join(tmp, "fs")
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	fd, err := dirfd.Dir(unix.AT_FDCWD, root)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := &filler{ctx: ctx, folders: f, file: func(fd int, e tree.Entry) error {
		id := pool.IDOf(e)
		return f.pool.LinkID(&id, e, fd, e.Name)
	}}
	if err := b.dir(fd, "", l.Root); err != nil {
		return gone(l.ID, err)
	}
	if err := os.Rename(root, path); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// Copy makes what is in the state root in the empty folder dir, with copies of
// the pool's files, for somebody who may write to them.
func (f *Folders) Copy(ctx context.Context, root tree.Entry, dir string) error {
	fd, err := dirfd.Dir(unix.AT_FDCWD, dir)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	b := &filler{ctx: ctx, folders: f, file: func(fd int, e tree.Entry) error { return f.copyFile(fd, e) }}
	return b.dir(fd, "", root)
}

// copyFile makes a copy of a file of the pool in the directory fd.
func (f *Folders) copyFile(fd int, e tree.Entry) error {
	src, err := f.pool.Open(e)
	if err != nil {
		return err
	}
	defer src.Close()
	out, err := unix.Openat(fd, e.Name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(out), e.Name)
	defer dst.Close()
	if _, err := dst.ReadFrom(src); err != nil {
		return err
	}
	return fdMeta(out, e)
}

// filler fills one folder.
type filler struct {
	ctx     context.Context
	folders *Folders
	// file makes a regular file in the directory fd.
	file func(fd int, e tree.Entry) error
}

// dir makes what is in the directory e, whose path is rel, in the open and empty
// directory fd, gives it e's metadata, and goes on to the directories in it.
// What happens inside those no longer touches fd's own times.
func (b *filler) dir(fd int, rel string, e tree.Entry) error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	var subs []tree.Entry
	for c, err := range tree.ReadDir(b.folders.cache, e.Children) {
		if err != nil {
			return fmt.Errorf("reading directory %q: %w", rel, err)
		}
		if c.Kind == tree.Dir {
			subs = append(subs, c)
			err = unix.Mkdirat(fd, c.Name, 0o700)
		} else {
			err = b.make(fd, c)
		}
		if err != nil {
			return fmt.Errorf("making %q: %w", filepath.Join(rel, c.Name), err)
		}
	}
	if err := b.dirMeta(fd, e); err != nil {
		return fmt.Errorf("making %q: %w", rel, err)
	}
	errs := make([]error, len(subs))
	var wg sync.WaitGroup
	for i, sub := range subs {
		select {
		case b.folders.slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-b.folders.slots }()
				errs[i] = b.sub(fd, rel, sub)
			})
			continue
		default:
		}
		if err := b.sub(fd, rel, sub); err != nil {
			errs[i] = err
			break
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (b *filler) sub(fd int, rel string, e tree.Entry) error {
	rel = filepath.Join(rel, e.Name)
	if err := tree.CheckLength(rel); err != nil {
		return err
	}
	sub, err := dirfd.Dir(fd, e.Name)
	if err != nil {
		return fmt.Errorf("opening %q: %w", rel, err)
	}
	defer unix.Close(sub)
	return b.dir(sub, rel, e)
}

// make makes anything that is not a directory.
func (b *filler) make(fd int, e tree.Entry) error {
	var err error
	switch e.Kind {
	case tree.File:
		return b.file(fd, e)
	case tree.Whiteout:
		return unix.Mknodat(fd, e.Name, unix.S_IFCHR, 0)
	case tree.Symlink:
		err = unix.Symlinkat(e.Target, fd, e.Name)
	case tree.Fifo:
		err = unix.Mknodat(fd, e.Name, unix.S_IFIFO|0o600, 0)
	case tree.Socket:
		err = unix.Mknodat(fd, e.Name, unix.S_IFSOCK|0o600, 0)
	case tree.CharDev:
		err = unix.Mknodat(fd, e.Name, unix.S_IFCHR|0o600, int(e.Dev))
	case tree.BlockDev:
		err = unix.Mknodat(fd, e.Name, unix.S_IFBLK|0o600, int(e.Dev))
	default:
		err = fmt.Errorf("an entry of unknown kind %d", e.Kind)
	}
	if (e.Kind == tree.CharDev || e.Kind == tree.BlockDev) && errors.Is(err, unix.EPERM) && InUserNamespace() {
		// Steps have devices of their own in /dev; those of an image are left out,
		// as other builders do without root.
		return nil
	}
	if err != nil {
		return err
	}
	return b.nodeMeta(fd, e)
}

// nodeMeta gives a link or special file its metadata. The file is new and in a
// folder that nobody else knows yet, so names serve.
func (b *filler) nodeMeta(fd int, e tree.Entry) error {
	if e.UID != 0 || e.GID != 0 {
		if err := refused(unix.Fchownat(fd, e.Name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW)); err != nil {
			return err
		}
	}
	if e.Kind != tree.Symlink {
		// After chown, which clears the set-id bits.
		if err := unix.Fchmodat(fd, e.Name, e.Mode, 0); err != nil {
			return err
		}
	}
	for _, x := range e.Xattrs {
		if err := refused(unix.Lsetxattr(dirfd.ProcPath(fd, e.Name), x.Name, []byte(x.Value), 0)); err != nil {
			return fmt.Errorf("setting %s: %w", x.Name, err)
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dirfd.ProcPath(fd, e.Name), times(e.MTime), unix.AT_SYMLINK_NOFOLLOW)
}

// dirMeta gives the open directory fd the metadata of e.
func (b *filler) dirMeta(fd int, e tree.Entry) error {
	if e.Opaque {
		if err := unix.Fsetxattr(fd, b.folders.opaque, []byte("y"), 0); err != nil {
			return fmt.Errorf("making it opaque: %w", err)
		}
	}
	return fdMeta(fd, e)
}

// fdMeta gives the open file or directory fd, which is 0:0's, the metadata of e.
func fdMeta(fd int, e tree.Entry) error {
	if e.UID != 0 || e.GID != 0 {
		if err := refused(unix.Fchown(fd, int(e.UID), int(e.GID))); err != nil {
			return err
		}
	}
	// After chown, which clears the set-id bits.
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return err
	}
	for _, x := range e.Xattrs {
		if err := refused(unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0)); err != nil {
			return fmt.Errorf("setting %s: %w", x.Name, err)
		}
	}
	return futimes(fd, e.MTime)
}

// gone tells a file or node that the cache promised and has not from other errors.
func gone(id cache.LayerID, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &cache.GoneError{Layer: id, Err: err}
	}
	return err
}

// SetMeta gives the directory at path the metadata of e. The path is the
// caller's own: links on it are followed.
func SetMeta(path string, e tree.Entry) error {
	fd, err := dirfd.Open(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if err := fdMeta(fd, e); err != nil {
		return fmt.Errorf("setting the metadata of %s: %w", path, err)
	}
	return nil
}

func times(ns int64) []unix.Timespec {
	t := unix.NsecToTimespec(ns)
	return []unix.Timespec{t, t}
}

// futimes sets an open directory's times: utimensat with an empty path.
func futimes(fd int, ns int64) error {
	return unix.UtimesNanoAt(fd, "", times(ns), unix.AT_EMPTY_PATH)
}
