package layer

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/kiln-build/kiln/cache/tree"
)

// The bounds of Linux for a path and for one name.
const (
	maxPath = 4096
	maxName = 255
	// maxFollow bounds the symbolic links that one path goes through, as Linux does.
	maxFollow = 40
)

// unpackTree is the tree that a stream makes, while it makes it.
type unpackTree struct {
	root  *unpackNode
	left  int // entries that may still come
	names int // bytes of names, targets and xattrs so far
	limit int
}

// unpackNode is a place in the tree. Hard links share one entry.
type unpackNode struct {
	entry    *tree.Entry
	children map[string]*unpackNode
	implicit bool // a directory that has no entry in the stream
}

func newUnpackTree(maxEntries int) *unpackTree {
	return &unpackTree{root: newImplicit(), left: maxEntries, limit: maxEntries}
}

func newImplicit() *unpackNode {
	return &unpackNode{entry: &tree.Entry{Kind: tree.Dir, Mode: 0o755}, implicit: true}
}

func (n *unpackNode) isDir() bool { return n != nil && n.entry.Kind == tree.Dir }

// resolve gives the path, clean and relative to the root ("" is the root), at
// which an entry called name is to stand: symbolic links in its parents are
// followed, its last name is not.
func (t *unpackTree) resolve(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("the name has %d bytes, and paths at most %d", len(name), maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("the name holds a NUL")
	}
	name = cleanPath(name)
	dir, base := splitPath(name)
	if len(base) > maxName {
		return "", fmt.Errorf("a name has %d bytes, and names at most %d", len(base), maxName)
	}
	dir, err := t.follow(dir)
	if err != nil {
		return "", err
	}
	return joinPath(dir, base), nil
}

// follow resolves the symbolic links in path, all of its names counted, inside
// the root. What does not exist is taken for directories.
func (t *unpackTree) follow(path string) (string, error) {
	links := 0
	var done []string            // resolved names
	var at []*unpackNode         // the nodes at them; nil beyond what exists
	here := func() *unpackNode { // the node at done
		if len(at) == 0 {
			return t.root
		}
		return at[len(at)-1]
	}
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			if len(done) > 0 {
				done, at = done[:len(done)-1], at[:len(at)-1]
			}
			continue
		}
		if len(name) > maxName {
			return "", fmt.Errorf("a name has %d bytes, and names at most %d", len(name), maxName)
		}
		var next *unpackNode
		if h := here(); h != nil {
			next = h.children[name]
		}
		if next != nil && next.entry.Kind == tree.Symlink {
			target := next.entry.Target
			if links++; links > maxFollow || len(target)+len(rest) > maxPath {
				return "", fmt.Errorf("its parent %q: %w", path, syscall.ELOOP)
			}
			if strings.HasPrefix(target, "/") {
				done, at = done[:0], at[:0]
			}
			rest = target + "/" + rest
			continue
		}
		done, at = append(done, name), append(at, next)
	}
	return strings.Join(done, "/"), nil
}

// charge counts what is about to be held in memory.
func (t *unpackTree) charge(entries, bytes int) error {
	if t.left -= entries; t.left < 0 {
		return &LimitError{"entries", int64(t.limit)}
	}
	if t.names += bytes; t.names > maxNames {
		return &LimitError{"bytes of names and attributes", maxNames}
	}
	return nil
}

// dir gives the directory at path, which was resolved, making it and its parents
// where they are not.
func (t *unpackTree) dir(path string) (*unpackNode, error) {
	n := t.root
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next := n.children[name]
		switch {
		case next == nil || next.entry.Kind == tree.Whiteout:
			if err := t.charge(1, len(name)); err != nil {
				return nil, err
			}
			dir := newImplicit()
			// A directory of the layer where the layer hides the one below: what
			// was below stays hidden.
			dir.entry.Opaque = next != nil
			dir.entry.Name = name
			n.add(name, dir)
			next = dir
		case !next.isDir():
			return nil, fmt.Errorf("its parent %q is no directory: %w", path, syscall.ENOTDIR)
		}
		n = next
	}
	return n, nil
}

func (n *unpackNode) add(name string, child *unpackNode) {
	if n.children == nil {
		n.children = make(map[string]*unpackNode)
	}
	n.children[name] = child
}

// put sets what is at path. A directory where there is one keeps its children;
// everything else makes what was there go.
func (t *unpackTree) put(path string, e tree.Entry) (*unpackNode, error) {
	bytes := len(e.Name) + len(e.Target)
	for _, x := range e.Xattrs {
		bytes += len(x.Name) + len(x.Value)
	}
	if err := t.charge(1, bytes); err != nil {
		return nil, err
	}
	if err := e.Check(); err != nil && path != "" {
		return nil, err
	}
	if path == "" {
		t.root.entry, t.root.implicit = &e, false
		return t.root, nil
	}
	dir, base := splitPath(path)
	parent, err := t.dir(dir)
	if err != nil {
		return nil, err
	}
	old := parent.children[base]
	if e.Kind == tree.Dir && old != nil {
		e.Opaque = old.entry.Opaque || old.entry.Kind == tree.Whiteout
		if old.isDir() {
			old.entry, old.implicit = &e, false
			return old, nil
		}
	}
	n := &unpackNode{entry: &e}
	parent.add(base, n)
	return n, nil
}

// hide makes path a whiteout. What the layer itself has there stays.
func (t *unpackTree) hide(path string) error {
	dir, base := splitPath(path)
	parent, err := t.dir(dir)
	if err != nil {
		return err
	}
	if old := parent.children[base]; old != nil {
		if old.isDir() {
			old.entry.Opaque = true
		}
		return nil
	}
	_, err = t.put(path, tree.Entry{Name: base, Kind: tree.Whiteout})
	return err
}

// opaque makes the directory at path hide what is below it.
func (t *unpackTree) opaque(path string) error {
	n, err := t.dir(path)
	if err != nil {
		return err
	}
	n.entry.Opaque = true
	return nil
}

// link makes path another name of what is at target. Hard links may only lead to
// what the layer itself holds: a link to a file of a layer below would change a
// file that other layers share.
func (t *unpackTree) link(path, target string) error {
	if len(target) > maxPath {
		return fmt.Errorf("the link's target has %d bytes, and paths at most %d", len(target), maxPath)
	}
	to, base := splitPath(target)
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("hard link to %q, which is a directory", target)
	}
	to, err := t.follow(to)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	to = joinPath(to, base)
	n := t.find(to)
	switch {
	case n == nil || n.entry.Kind == tree.Whiteout:
		return fmt.Errorf("hard link to %q, which is not in the same archive", target)
	case n.isDir():
		return fmt.Errorf("hard link to %q, which is a directory", target)
	case to == path:
		return fmt.Errorf("hard link to itself")
	}
	dir, base := splitPath(path)
	if base == "" {
		return errors.New("the root can only be a directory")
	}
	if err := t.charge(1, len(base)); err != nil {
		return err
	}
	parent, err := t.dir(dir)
	if err != nil {
		return err
	}
	parent.add(base, &unpackNode{entry: n.entry})
	return nil
}

// find gives the node at a resolved path, or nil.
func (t *unpackTree) find(path string) *unpackNode {
	n := t.root
	for rest := path; rest != "" && n != nil; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		n = n.children[name]
	}
	return n
}

// store puts the tree's nodes into the cache and gives its root.
func (t *unpackTree) store(nodes tree.Nodes, implicit func(string)) (tree.Entry, error) {
	var b tree.Builder
	// The deepest path is half of maxPath names long, so recursion is bounded.
	var walk func(path string, n *unpackNode) error
	walk = func(path string, n *unpackNode) error {
		if n.implicit && implicit != nil {
			implicit(path)
		}
		e := *n.entry
		_, e.Name = splitPath(path)
		if err := b.Set(path, e); err != nil {
			return err
		}
		for name, child := range n.children {
			if err := walk(joinPath(path, name), child); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk("", t.root); err != nil {
		return tree.Entry{}, err
	}
	return b.Root(nodes)
}

// cleanPath gives name relative to the root: without ".", empty names and a
// leading slash, and with ".." worked out, which goes no higher than the root.
func cleanPath(name string) string {
	parts := strings.Split(name, "/")
	out := parts[:0]
	for _, p := range parts {
		switch p {
		case "", ".":
		case "..":
			out = out[:max(len(out)-1, 0)]
		default:
			out = append(out, p)
		}
	}
	return strings.Join(out, "/")
}

// splitPath cuts a clean path into its directory and its last name.
func splitPath(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// joinPath puts a clean directory and a name together.
func joinPath(dir, name string) string {
	switch {
	case dir == "":
		return name
	case name == "":
		return dir
	}
	return dir + "/" + name
}
