package layer

import (
	"archive/tar"
	"fmt"
	"strings"

	"github.com/kiln-build/kiln/cache/tree"
)

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

// item is what the walk gives for each tar entry: its header, and the file whose
// contents follow where there are any.
type item struct {
	path   string
	header []byte     // valid during the call only
	file   tree.Entry // of kind File where Size bytes of it follow
}

// walker goes through a tree in the order of the stream.
type walker struct {
	nodes  tree.Nodes
	opts   Options
	prefix string // stands before every name, "" or ending in a slash
	emit   func(item) error

	buf   []byte
	links *links
}

func (w *walker) walk(root tree.Entry) error {
	if root.Kind != tree.Dir {
		return fmt.Errorf("writing a layer: its root is no directory")
	}
	w.links = newLinks(w.nodes, root.Children, w.prefix)
	if root.Opaque {
		if err := w.marker(w.prefix + opaqueName); err != nil {
			return err
		}
	}
	return w.dir(root.Children, w.prefix)
}

// dir writes what is in a directory; path is empty or ends in a slash.
func (w *walker) dir(r tree.Ref, path string) error {
	for e, err := range tree.ReadDir(w.nodes, r) {
		if err != nil {
			return fmt.Errorf("reading the directory %q of a layer: %w", path, err)
		}
		if err := w.entry(path, e); err != nil {
			return err
		}
	}
	return nil
}

// marker writes a whiteout: an empty file without owner, mode and time.
func (w *walker) marker(path string) error {
	return w.write(header{name: path, kind: tar.TypeReg}, path, tree.Entry{})
}

func (w *walker) entry(dir string, e tree.Entry) error {
	path := dir + e.Name
	if err := tree.CheckLength(path[len(w.prefix):]); err != nil {
		return fmt.Errorf("writing a layer: %w", err)
	}
	if e.Kind == tree.Whiteout {
		return w.marker(dir + whiteoutPrefix + e.Name)
	}
	if strings.HasPrefix(e.Name, whiteoutPrefix) {
		return fmt.Errorf("writing %q to a layer: names that begin with %q stand for removed files in an image, no file can have one", path, whiteoutPrefix)
	}
	h := header{
		name: path, mode: e.Mode, uid: e.UID, gid: e.GID,
		mtime: w.opts.mtime(e.MTime), xattrs: e.Xattrs,
	}
	switch e.Kind {
	case tree.File:
		return w.file(h, path, e)
	case tree.Dir:
		return w.subdir(h, path, e)
	case tree.Symlink:
		h.kind, h.link = tar.TypeSymlink, e.Target
	case tree.Fifo:
		h.kind = tar.TypeFifo
	case tree.CharDev:
		h.kind, h.dev = tar.TypeChar, e.Dev
	case tree.BlockDev:
		h.kind, h.dev = tar.TypeBlock, e.Dev
	case tree.Socket:
		return nil // a socket is nothing without the process that listens on it
	default:
		return fmt.Errorf("writing %q to a layer: entry of unknown kind %d", path, e.Kind)
	}
	return w.write(h, path, tree.Entry{})
}

func (w *walker) file(h header, path string, e tree.Entry) error {
	h.kind = tar.TypeReg
	first, err := w.links.firstOf(&e, path)
	if err != nil {
		return err
	}
	if first != path {
		h.kind, h.link = tar.TypeLink, first
		return w.write(h, path, tree.Entry{})
	}
	h.size = e.Size
	if e.Size == 0 {
		e = tree.Entry{}
	}
	return w.write(h, path, e)
}

func (w *walker) subdir(h header, path string, e tree.Entry) error {
	h.kind, h.name = tar.TypeDir, path+"/"
	if err := w.write(h, path, tree.Entry{}); err != nil {
		return err
	}
	if e.Opaque {
		if err := w.marker(path + "/" + opaqueName); err != nil {
			return err
		}
	}
	return w.dir(e.Children, path+"/")
}

func (w *walker) write(h header, path string, file tree.Entry) error {
	var err error
	if w.buf, err = h.append(w.buf[:0]); err != nil {
		return err
	}
	return w.emit(item{path: path, header: w.buf, file: file})
}
