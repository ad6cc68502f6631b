package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/worker/internal/dirfd"
	"golang.org/x/sys/unix"
)

// Adopt makes a layer of upper, the upper folder of an overlay over the state
// below, that nothing has mounted any more: its files go into the pool, and the
// folder, moved, becomes the layer's own. What overlayfs left there and changes
// nothing is taken out, as BuildKit's differ does: directories that were copied
// up and are as they were below, files that are the same down to their times,
// whiteouts of what is not below. The root directory's own times are those of
// the state below, because mounts come and go in it.
func (f *Folders) Adopt(ctx context.Context, upper string, below tree.Entry) (cache.Layer, error) {
	fd, err := dirfd.Dir(unix.AT_FDCWD, upper)
	if err != nil {
		return cache.Layer{}, &fs.PathError{Op: "open", Path: upper, Err: err}
	}
	dir := os.NewFile(uintptr(fd), upper)
	defer dir.Close()
	a := &adopter{ctx: ctx, folders: f}
	root, err := a.root(dir, below)
	if err != nil {
		return cache.Layer{}, fmt.Errorf("taking over what the step wrote: %w", err)
	}
	l := cache.Layer{ID: cache.TreeLayerID(root), Root: root, Size: a.size.Load()}
	path := f.path(root)
	switch err := os.Rename(upper, path); {
	case err == nil:
	case errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY):
		// The same files with the same times are there already.
		if err := cache.RemoveAll(upper); err != nil {
			return l, err
		}
	default:
		return l, err
	}
	return l, nil
}

// adopter is one walk over an upper folder.
type adopter struct {
	ctx     context.Context
	folders *Folders
	size    atomic.Int64
	// linked holds the digests of files with several names, which are hashed once.
	linked sync.Map // inode → func() (blob.Digest, error)
}

// adopted is what became of one name of an upper folder.
type adopted struct {
	entry  tree.Entry
	keep   bool
	isDir  bool
	failed error
}

// timed says whether a directory has a time that the step gave it. One that it got because
// something came or went in it is no change of its own: a step that made a file for
// a while, and nothing else, has changed nothing.
func timed(st *unix.Stat_t) bool { return st.Mtim != st.Ctim }

func (a *adopter) root(dir *os.File, below tree.Entry) (tree.Entry, error) {
	fd := int(dir.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return tree.Entry{}, err
	}
	e := EntryOf("", &st)
	if below.Kind == tree.Dir {
		e.MTime = below.MTime
	}
	if err := a.dir(dir, "", &e, below); err != nil {
		return e, err
	}
	e.Opaque = false
	return e, futimes(fd, e.MTime)
}

// dir takes over an open directory, whose path is rel and whose entry is e,
// to which it adds xattrs, opaqueness and children. below is what the state
// below has at that path; its Kind is None where that is nothing.
func (a *adopter) dir(dir *os.File, rel string, e *tree.Entry, below tree.Entry) error {
	fd := int(dir.Fd())
	if a.ctx.Err() != nil {
		return context.Cause(a.ctx)
	}
	if err := a.dirXattrs(fd, e); err != nil {
		return fmt.Errorf("reading the attributes of %q: %w", rel, err)
	}
	if below.Kind != tree.Dir && e.Opaque {
		if err := unix.Fremovexattr(fd, a.folders.opaque); err != nil {
			return fmt.Errorf("making %q not opaque: %w", rel, err)
		}
		e.Opaque = false
	}
	inside := below
	if e.Opaque || below.Kind != tree.Dir {
		inside = tree.Entry{}
	}
	names, err := dirfd.Names(fd)
	if err != nil {
		return fmt.Errorf("reading %q: %w", rel, err)
	}
	items := make([]adopted, len(names))
	if err := a.each(names, items, func(i int) error { return a.name(dir, rel, names[i], &items[i], inside) }); err != nil {
		return err
	}
	entries := make([]tree.Entry, 0, len(items))
	for i := range items {
		if items[i].keep {
			entries = append(entries, items[i].entry)
			continue
		}
		flags := 0
		if items[i].isDir {
			flags = unix.AT_REMOVEDIR
		}
		if err := unix.Unlinkat(fd, names[i].Name, flags); err != nil {
			return fmt.Errorf("taking %q out: %w", path.Join(rel, names[i].Name), err)
		}
	}
	if e.Children, err = tree.PutDir(a.folders.cache, entries); err != nil {
		return err
	}
	if len(entries) < len(items) {
		return futimes(fd, e.MTime)
	}
	return nil
}

// each calls one for every item, on goroutines of their own where slots are free.
func (a *adopter) each(names []dirfd.Name, items []adopted, one func(int) error) error {
	var wg sync.WaitGroup
	for i := range items {
		// Small things are not worth a goroutine: files are, for they are hashed.
		if k := names[i].Kind; k == unix.DT_REG || k == unix.DT_DIR || k == unix.DT_UNKNOWN {
			select {
			case a.folders.slots <- struct{}{}:
				wg.Go(func() {
					defer func() { <-a.folders.slots }()
					items[i].failed = one(i)
				})
				continue
			default:
			}
		}
		if err := one(i); err != nil {
			items[i].failed = err
			break
		}
	}
	wg.Wait()
	for i := range items {
		if err := items[i].failed; err != nil {
			return err
		}
	}
	return nil
}

// name takes over one name of a directory.
func (a *adopter) name(dir *os.File, rel string, n dirfd.Name, out *adopted, below tree.Entry) error {
	fd, name := int(dir.Fd()), n.Name
	rel = path.Join(rel, name)
	if err := tree.CheckLength(rel); err != nil {
		return err
	}
	under, err := a.under(below, name)
	if err != nil {
		return err
	}
	if n.Kind == unix.DT_REG {
		return a.file(fd, rel, name, out, under)
	}
	var st unix.Stat_t
	if err := dirfd.Stat(fd, name, &st); err != nil {
		return fmt.Errorf("reading %q: %w", rel, err)
	}
	out.entry = EntryOf(name, &st)
	switch e := &out.entry; e.Kind {
	case tree.Whiteout:
		out.keep = under.Kind != tree.None
		return nil
	case tree.Dir:
		out.isDir = true
		if err := a.sub(fd, rel, e, under); err != nil {
			return err
		}
		out.keep = e.Opaque || e.Children != (tree.Ref{}) || !sameInode(*e, under) || e.MTime != under.MTime && timed(&st)
		return nil
	case tree.File:
		return a.file(fd, rel, name, out, under)
	case tree.Symlink:
		if e.Target, err = dirfd.Readlink(fd, name); err != nil {
			return fmt.Errorf("reading %q: %w", rel, err)
		}
	}
	if out.entry.Xattrs, err = dirfd.Xattrs(fd, name, KeepXattr); err != nil {
		return fmt.Errorf("reading the attributes of %q: %w", rel, err)
	}
	e := out.entry
	out.keep = e.MTime != under.MTime || e.Target != under.Target || !sameInode(e, under)
	return nil
}

// file takes over a file of a directory, in as few system calls as there can be: a
// step may leave a hundred thousand.
func (a *adopter) file(dir int, rel, name string, out *adopted, under tree.Entry) error {
	var st unix.Stat_t
	if err := a.read(dir, rel, name, &out.entry, &st); err != nil {
		return fmt.Errorf("reading %q: %w", rel, err)
	}
	e := &out.entry
	// A file with a second name stays beside it: apart they would be two files.
	if st.Nlink == 1 && e.MTime == under.MTime && e.Content == under.Content && sameInode(*e, under) {
		return nil
	}
	out.keep = true
	a.size.Add(e.Size)
	if err := a.folders.pool.AdoptStat(*e, &st, dir, name); err != nil {
		return fmt.Errorf("keeping %q: %w", rel, err)
	}
	return nil
}

// under gives what the state below has by that name.
func (a *adopter) under(below tree.Entry, name string) (tree.Entry, error) {
	if below.Kind != tree.Dir || below.Children == (tree.Ref{}) {
		return tree.Entry{}, nil
	}
	e, err := tree.Lookup(a.folders.cache, below, name)
	if errors.Is(err, fs.ErrNotExist) {
		return tree.Entry{}, nil
	}
	return e, err
}

func (a *adopter) sub(fd int, rel string, e *tree.Entry, below tree.Entry) error {
	sub, err := dirfd.Dir(fd, e.Name)
	if err != nil {
		return fmt.Errorf("opening %q: %w", rel, err)
	}
	dir := os.NewFile(uintptr(sub), e.Name)
	defer dir.Close()
	return a.dir(dir, rel, e, below)
}

// read makes the entry of a file, and takes overlayfs's own attributes off it: its
// inode is to be the pool's.
func (a *adopter) read(dir int, rel, name string, e *tree.Entry, st *unix.Stat_t) error {
	file, err := dirfd.FileUnnoted(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if err := unix.Fstat(file, st); err != nil {
		return err
	}
	if *e = EntryOf(name, st); e.Kind != tree.File {
		return errors.New("it turned out to be no regular file")
	}
	own := false
	e.Xattrs, err = dirfd.Xattrs(file, "", func(attr string) bool {
		own = own || isOverlayXattr(attr)
		return KeepXattr(attr)
	})
	if err != nil {
		return err
	}
	if own {
		if err := stripOverlayXattrs(file); err != nil {
			return err
		}
	}
	if st.Nlink == 1 {
		e.Tag = TagOf(rel)
		e.Content, err = sum(file, e.Size)
		return err
	}
	// All names of one file share a tag, and it need not be told which is first:
	// while the file is in the pool no other has its inode number.
	e.Tag = TagOf("inode:" + strconv.FormatUint(st.Ino, 36))
	once, _ := a.linked.LoadOrStore(st.Ino, sync.OnceValues(func() (blob.Digest, error) { return sum(file, e.Size) }))
	e.Content, err = once.(func() (blob.Digest, error))()
	return err
}

func sum(fd int, size int64) (blob.Digest, error) {
	d, n, err := dirfd.Sum(fd, size)
	if err == nil && n != size {
		err = fmt.Errorf("its size went from %d to %d", size, n)
	}
	return d, err
}

// dirXattrs adds to e the attributes of the directory fd that trees hold, and
// whether it is opaque.
func (a *adopter) dirXattrs(fd int, e *tree.Entry) error {
	redirected := false
	all, err := dirfd.Xattrs(fd, "", func(attr string) bool {
		redirected = redirected || strings.HasSuffix(attr, ".overlay.redirect")
		return KeepXattr(attr) || attr == a.folders.opaque
	})
	if err != nil {
		return err
	}
	if redirected {
		// kiln mounts with redirect_dir=off; a folder with one is no layer by itself.
		return errors.New("the directory was renamed by overlayfs's redirect_dir, which has no form in an image")
	}
	for _, x := range all {
		if x.Name != a.folders.opaque {
			e.Xattrs = append(e.Xattrs, x)
			continue
		}
		e.Opaque = x.Value == "y"
	}
	return nil
}

// sameInode reports whether two entries agree in kind, mode, owner and xattrs.
func sameInode(a, b tree.Entry) bool {
	if a.Kind != b.Kind || a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Dev != b.Dev || len(a.Xattrs) != len(b.Xattrs) {
		return false
	}
	for i := range a.Xattrs {
		if a.Xattrs[i] != b.Xattrs[i] {
			return false
		}
	}
	return true
}

func isOverlayXattr(attr string) bool {
	return strings.HasPrefix(attr, overlayTrusted) || strings.HasPrefix(attr, overlayUser)
}

func stripOverlayXattrs(fd int) error {
	own, err := dirfd.Xattrs(fd, "", isOverlayXattr)
	if err != nil {
		return err
	}
	for _, x := range own {
		if err := unix.Fremovexattr(fd, x.Name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("removing %s: %w", x.Name, err)
		}
	}
	return nil
}

// EntryOf makes an entry of a name of an upper folder, as far as its stat says.
func EntryOf(name string, st *unix.Stat_t) tree.Entry {
	e := tree.Entry{
		Name: name, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, MTime: st.Mtim.Nano(),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Kind, e.Size = tree.File, st.Size
	case unix.S_IFDIR:
		e.Kind = tree.Dir
	case unix.S_IFLNK:
		e.Kind, e.Mode = tree.Symlink, 0o777
	case unix.S_IFIFO:
		e.Kind = tree.Fifo
	case unix.S_IFSOCK:
		e.Kind = tree.Socket
	case unix.S_IFBLK:
		e.Kind, e.Dev = tree.BlockDev, st.Rdev
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			return tree.Entry{Name: name, Kind: tree.Whiteout}
		}
		e.Kind, e.Dev = tree.CharDev, st.Rdev
	}
	return e
}
