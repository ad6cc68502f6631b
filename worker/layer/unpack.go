package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
)

// UnpackOptions are the settings of Unpack; the zero value unpacks a layer.
type UnpackOptions struct {
	// Archive takes the stream for a plain tar, as ADD does: names that begin with
	// .wh. mean nothing, and an entry for the root sets the root's metadata (in a
	// layer it means nothing, as in containerd).
	Archive bool
	// Owner gives the owner of an entry instead of the one in the stream; nil keeps that.
	Owner func(path string, uid, gid uint32) (newUID, newGID uint32)
	// TagBase is the path at which the tree is to stand, for the tags of its files.
	TagBase string
	// Implicit is called for each directory that the stream goes through and has no
	// entry for, "" for the root; they get mode 0755, owner 0:0, time 0. May be nil.
	Implicit func(path string)
	// MaxSize bounds the sum of the files' sizes in bytes; 0 leaves it to the disk.
	MaxSize int64
	// MaxEntries bounds the number of files and directories; 0 is 2 million, which
	// takes a gigabyte of memory and is several times the largest layers known.
	MaxEntries int
}

const (
	defaultMaxEntries = 2_000_000
	// maxNames bounds the bytes of names, targets and xattrs that are held in memory.
	maxNames = 256 << 20
	// maxXattrValue is Linux's own bound, XATTR_SIZE_MAX.
	maxXattrValue = 64 << 10
)

// LimitError says that a stream holds more than it may.
type LimitError struct {
	What  string // "entries", "bytes of files"
	Limit int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("the archive holds more than %d %s; it was not unpacked", e.Limit, e.What)
}

// EntryError says what is wrong with an entry of a stream.
type EntryError struct {
	Name string // as the stream has it
	Err  error
}

func (e *EntryError) Error() string { return fmt.Sprintf("archive entry %q: %v", e.Name, e.Err) }
func (e *EntryError) Unwrap() error { return e.Err }

// Unpack reads a layer's uncompressed tar stream to its end: its files go into
// the pool while it streams by, and its tree, in layer form, into the cache. size
// is the sum of the files' sizes.
//
// The tree is what containerd would have made of the stream in an empty folder:
// later entries replace earlier ones, names are taken relative to the root and
// ".." goes no higher than it, and a parent that is a symbolic link of the same
// layer is followed inside the root. Nothing is ever written at a path that the
// stream names, so that a hostile one can make a strange tree and nothing else.
// It differs in two points. A whiteout hides what is in the layers below and
// nothing of its own layer, in whichever order the two come, as the OCI
// specification has it; and a device 0:0, which overlayfs takes for a whiteout,
// is one.
func Unpack(ctx context.Context, c *cache.Cache, r io.Reader, o UnpackOptions) (root tree.Entry, size int64, err error) {
	if o.MaxEntries == 0 {
		o.MaxEntries = defaultMaxEntries
	}
	group, ctx := errgroup.WithContext(ctx)
	w, err := newFileWriter(ctx, c, o.MaxSize)
	if err != nil {
		return tree.Entry{}, 0, err
	}
	u := &unpacker{opt: o, tree: newUnpackTree(o.MaxEntries), files: w}
	// More would only queue for the same disk.
	for range min(max(runtime.GOMAXPROCS(0), 2), 8) {
		group.Go(w.work)
	}
	group.Go(func() error {
		defer w.finish()
		return u.read(ctx, r)
	})
	if err := group.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			err = cause
		}
		return tree.Entry{}, 0, fmt.Errorf("unpacking: %w", err)
	}
	root, err = u.tree.store(c, o.Implicit)
	if err != nil {
		return tree.Entry{}, 0, fmt.Errorf("unpacking: %w", err)
	}
	return root, w.size, nil
}

// unpacker takes one stream apart. It is used by one goroutine.
type unpacker struct {
	opt   UnpackOptions
	tree  *unpackTree
	files *fileWriter
}

func (u *unpacker) read(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		if n%64 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the archive after %d entries: %w", n, err)
		}
		if err := u.entry(ctx, h, tr); err != nil {
			var limit *LimitError
			if errors.As(err, &limit) || ctx.Err() != nil {
				return err
			}
			return &EntryError{h.Name, err}
		}
	}
	// What follows the end of the archive belongs to the stream, and to its digest.
	if err := drain(ctx, r); err != nil {
		return fmt.Errorf("reading past the end of the archive: %w", err)
	}
	return nil
}

// drain reads r to its end. That may be far: a terabyte of zeros is small when it is packed.
func drain(ctx context.Context, r io.Reader) error {
	for ctx.Err() == nil {
		if _, err := io.CopyN(io.Discard, r, 1<<20); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// entry takes one entry of the stream.
func (u *unpacker) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := u.tree.resolve(h.Name)
	if err != nil {
		return err
	}
	if !u.opt.Archive {
		if path == "" {
			return nil
		}
		if done, err := u.whiteout(path); done || err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeLink {
		return u.tree.link(path, h.Linkname)
	}
	e, err := u.header(h, path)
	if err != nil {
		return err
	}
	if e.Kind == tree.File {
		e.Tag = TagOf(joinPath(u.opt.TagBase, path))
	}
	n, err := u.tree.put(path, e)
	if err != nil || e.Kind != tree.File {
		return err
	}
	return u.files.write(ctx, n.entry, r)
}

// whiteout takes an entry whose name has a meaning of its own.
func (u *unpacker) whiteout(path string) (done bool, err error) {
	dir, base := splitPath(path)
	hidden, ok := strings.CutPrefix(base, ".wh.")
	switch {
	case !ok:
		return false, nil
	case base == ".wh..wh..opq":
		return true, u.tree.opaque(dir)
	case strings.HasPrefix(hidden, ".wh."):
		return true, nil // aufs's own notes: .wh..wh.plnk and the like
	case hidden == "" || hidden == "." || hidden == "..":
		return true, errors.New("not the name of a whiteout")
	}
	return true, u.tree.hide(joinPath(dir, hidden))
}

// header makes the entry that a header describes; its Name is the path's last name.
func (u *unpacker) header(h *tar.Header, path string) (tree.Entry, error) {
	_, name := splitPath(path)
	e := tree.Entry{Name: name, Mode: uint32(h.Mode) & 0o7777, MTime: unixTime(h.ModTime)}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > math.MaxUint32-1 || int64(h.Gid) > math.MaxUint32-1 {
		return e, fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	e.UID, e.GID = uint32(h.Uid), uint32(h.Gid)
	if u.opt.Owner != nil {
		e.UID, e.GID = u.opt.Owner(path, e.UID, e.GID)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		e.Kind, e.Size = tree.File, h.Size
	case tar.TypeDir:
		e.Kind = tree.Dir
	case tar.TypeSymlink:
		e.Kind, e.Target, e.Mode = tree.Symlink, h.Linkname, 0o777
	case tar.TypeFifo:
		e.Kind = tree.Fifo
	case tar.TypeChar, tar.TypeBlock:
		return u.device(e, h)
	default:
		return e, fmt.Errorf("entries of type %q are not supported", h.Typeflag)
	}
	if path == "" && e.Kind != tree.Dir {
		return e, errors.New("the root can only be a directory")
	}
	var err error
	e.Xattrs, err = xattrs(h, e.Kind)
	return e, err
}

func (u *unpacker) device(e tree.Entry, h *tar.Header) (tree.Entry, error) {
	if h.Devmajor < 0 || h.Devmajor > 1<<12-1 || h.Devminor < 0 || h.Devminor > 1<<20-1 {
		return e, fmt.Errorf("device number %d:%d is out of range", h.Devmajor, h.Devminor)
	}
	e.Kind = tree.BlockDev
	if h.Typeflag == tar.TypeChar {
		e.Kind = tree.CharDev
	}
	e.Dev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	if e.Kind == tree.CharDev && e.Dev == 0 {
		if u.opt.Archive {
			return e, errors.New("a character device 0:0 cannot stand in an overlay")
		}
		return tree.Entry{Name: e.Name, Kind: tree.Whiteout}, nil
	}
	var err error
	e.Xattrs, err = xattrs(h, e.Kind)
	return e, err
}

// unixTime gives a time in nanoseconds, and 0 for one that a file system could
// not hold, as containerd does.
func unixTime(t time.Time) int64 {
	if s := t.Unix(); s < 0 || s > math.MaxInt64/int64(time.Second)-1 {
		return 0
	}
	return t.UnixNano()
}

const paxXattr = "SCHILY.xattr."

// xattrs gives the extended attributes of a header that trees hold, sorted.
func xattrs(h *tar.Header, kind tree.Kind) ([]tree.Xattr, error) {
	var xs []tree.Xattr
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !KeepXattr(name) {
			continue
		}
		// Linux has user attributes on files and directories only.
		if kind != tree.File && kind != tree.Dir && strings.HasPrefix(name, "user.") {
			continue
		}
		if name == "" || len(name) > 255 || len(value) > maxXattrValue {
			return nil, fmt.Errorf("extended attribute %.64q with a value of %d bytes is more than Linux can hold", name, len(value))
		}
		xs = append(xs, tree.Xattr{Name: name, Value: value})
	}
	slices.SortFunc(xs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return xs, nil
}
