package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/kiln-build/kiln/cache/tree"
)

// links tells which files of a tree are hard links to which. Most trees have none,
// and may have a great many files: until a file is met for the second time, all that
// is kept of one is a number. Then the tree is gone through twice more, and from
// there on the paths are known of those files that have several. The paths of all files
// would be the most that the export of a large folder holds.
type links struct {
	nodes tree.Nodes
	root  tree.Ref
	path  string // of the root, "" or ending in a slash

	// met are the files met so far, each by eight bytes of its inode: two files that
	// have them in common cost the two walks, and nothing else.
	met map[uint64]struct{}
	// first are the paths at which files of several names come first; nil as long
	// as met is in use.
	first map[inode]string
}

// inode names the file that an entry stands for: half a hash of all that makes it
// one, so that it stays small.
type inode [16]byte

func newLinks(n tree.Nodes, root tree.Ref, path string) *links {
	return &links{nodes: n, root: root, path: path, met: make(map[uint64]struct{})}
}

// firstOf gives the path at which the file of an entry comes first in the tree, path
// itself or an earlier one. It is asked of every file, in the order of the tree.
func (l *links) firstOf(e *tree.Entry, path string) (string, error) {
	id := inodeOf(e)
	if l.first == nil {
		if !addTo(l.met, id) {
			return path, nil
		}
		if err := l.find(); err != nil {
			return "", err
		}
	}
	if first, ok := l.first[id]; ok {
		return first, nil
	}
	return path, nil
}

// find makes first.
func (l *links) find() error {
	clear(l.met)
	several := make(map[uint64]struct{})
	err := l.each(l.root, l.path, func(id inode, _ string) {
		if addTo(l.met, id) {
			addTo(several, id)
		}
	})
	if err != nil {
		return err
	}
	l.met, l.first = nil, make(map[inode]string)
	return l.each(l.root, l.path, func(id inode, path string) {
		if _, ok := several[id.short()]; !ok {
			return
		}
		if _, ok := l.first[id]; !ok {
			l.first[id] = path
		}
	})
}

// each calls fn for the files below a directory, in the order of the stream.
func (l *links) each(dir tree.Ref, path string, fn func(id inode, path string)) error {
	for e, err := range tree.ReadDir(l.nodes, dir) {
		if err != nil {
			return fmt.Errorf("reading the directory %q of a layer: %w", path, err)
		}
		switch e.Kind {
		case tree.File:
			fn(inodeOf(&e), path+e.Name)
		case tree.Dir:
			sub := path + e.Name
			if err := tree.CheckLength(sub[len(l.path):]); err != nil {
				return fmt.Errorf("writing a layer: %w", err)
			}
			if err := l.each(e.Children, sub+"/", fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// addTo adds a file to a set, and reports whether it was there.
func addTo(set map[uint64]struct{}, id inode) bool {
	_, was := set[id.short()]
	set[id.short()] = struct{}{}
	return was
}

func (id inode) short() uint64 { return binary.LittleEndian.Uint64(id[:]) }

// inodeOf names the file of an entry: equal entries of one tree are hard links,
// tags included.
func inodeOf(e *tree.Entry) inode {
	var fixed [64]byte
	copy(fixed[:32], e.Content[:])
	binary.LittleEndian.PutUint32(fixed[32:], e.Mode)
	binary.LittleEndian.PutUint32(fixed[36:], e.UID)
	binary.LittleEndian.PutUint32(fixed[40:], e.GID)
	binary.LittleEndian.PutUint32(fixed[44:], uint32(len(e.Xattrs)))
	binary.LittleEndian.PutUint64(fixed[48:], uint64(e.MTime))
	binary.LittleEndian.PutUint64(fixed[56:], e.Tag)
	var id inode
	if len(e.Xattrs) == 0 {
		sum := sha256.Sum256(fixed[:])
		copy(id[:], sum[:])
		return id
	}
	b := fixed[:]
	for _, x := range e.Xattrs {
		b = binary.AppendUvarint(b, uint64(len(x.Name)))
		b = append(b, x.Name...)
		b = binary.AppendUvarint(b, uint64(len(x.Value)))
		b = append(b, x.Value...)
	}
	sum := sha256.Sum256(b)
	copy(id[:], sum[:])
	return id
}
