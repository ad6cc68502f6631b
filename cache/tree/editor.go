package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// Editor changes a tree. It reads what it is asked about and writes the nodes
// that changed, and no others. It is not safe for concurrent use.
type Editor struct {
	n    Nodes
	root *place
}

// place is an entry that an Editor has looked at or made.
type place struct {
	n Nodes
	// meta is the entry; of a directory with kids its Children are those before
	// the edits.
	meta Entry
	// kids are entries that were looked at or made; nil is one that was removed.
	kids map[string]*place
	// stale: kids differ from meta.Children. fresh: the directory above does not
	// have this meta yet.
	stale, fresh bool
}

// Edit begins to change the tree root.
func Edit(n Nodes, root Entry) *Editor { return &Editor{n: n, root: &place{n: n, meta: root}} }

func (p *place) entry() Entry { return p.meta }

// child implements view.
func (p *place) child(name string) (view, error) {
	k, err := p.kid(name)
	if k == nil {
		return nil, err
	}
	return k, err
}

// kid gives the entry called name, or nil where there is none.
func (p *place) kid(name string) (*place, error) {
	if k, ok := p.kids[name]; ok {
		return k, nil
	}
	r, ok, err := find(p.n, p.meta.Children, name)
	if err != nil || !ok {
		return nil, err
	}
	e, err := r.entry()
	if err != nil {
		return nil, err
	}
	k := &place{n: p.n, meta: e}
	p.put(name, k)
	return k, nil
}

func (p *place) put(name string, k *place) {
	if p.kids == nil {
		p.kids = make(map[string]*place)
	}
	p.kids[name] = k
}

// settle writes what changed below p, and brings meta up to date.
func (p *place) settle() error {
	if !p.stale {
		return nil
	}
	changes := make([]change, 0, len(p.kids))
	for name, k := range p.kids {
		if k == nil {
			changes = append(changes, change{name: name})
			continue
		}
		if err := k.settle(); err != nil {
			return err
		}
		if k.fresh {
			changes = append(changes, change{name: name, rec: newRecord(&k.meta)})
		}
	}
	ref, err := rewrite(p.n, p.meta.Children, changes)
	if err != nil {
		return fmt.Errorf("rewriting directory %q: %w", p.meta.Name, err)
	}
	p.meta.Children, p.kids, p.stale, p.fresh = ref, nil, false, true
	return nil
}

// find gives the place at a checked path.
func (ed *Editor) find(op, path string) (*place, error) {
	p := ed.root
	for rest, more := path, !isRoot(path); more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		if p.meta.Kind != Dir {
			return nil, &fs.PathError{Op: op, Path: path, Err: syscall.ENOTDIR}
		}
		k, err := p.kid(name)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", op, path, err)
		}
		if k == nil {
			return nil, &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
		}
		p = k
	}
	return p, nil
}

// touch gives the directory at a checked path, and notes that it will change.
func (ed *Editor) touch(op, path string) (*place, error) {
	p, err := ed.find(op, path)
	if err != nil {
		return nil, err
	}
	if p.meta.Kind != Dir {
		return nil, &fs.PathError{Op: op, Path: path, Err: syscall.ENOTDIR}
	}
	at := ed.root
	at.stale = true
	for rest, more := path, !isRoot(path); more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		at = at.kids[name]
		at.stale = true
	}
	return p, nil
}

// Stat gives the entry at path, following no links. A directory's Children are
// those before the edits. Errors are those of Lookup.
func (ed *Editor) Stat(path string) (Entry, error) {
	if err := CheckPath(path); err != nil {
		return Entry{}, err
	}
	p, err := ed.find("stat", path)
	if err != nil {
		return Entry{}, err
	}
	return p.meta, nil
}

// Get gives the entry at path as it is now. It writes the nodes of what changed
// below path, which Stat does not.
func (ed *Editor) Get(path string) (Entry, error) {
	if err := CheckPath(path); err != nil {
		return Entry{}, err
	}
	p, err := ed.find("get", path)
	if err != nil {
		return Entry{}, err
	}
	err = p.settle()
	return p.meta, err
}

// Resolve is Resolve on the tree as it is now. A directory's Children are those
// before the edits.
func (ed *Editor) Resolve(path string, followLast bool) (Resolved, error) {
	return resolve(ed.root, path, followLast)
}

// Set puts e at path, in place of what is there; e's Name is not looked at. The
// directory that path is in must be there. A directory e comes with its
// Children, so that Set grafts a tree into another.
func (ed *Editor) Set(path string, e Entry) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	if why := e.flaw(); why != "" {
		return fmt.Errorf("tree: entry %q: %s: %w", path, why, ErrBadEntry)
	}
	if isRoot(path) {
		if e.Kind != Dir {
			return fmt.Errorf("tree: the root must be a directory: %w", ErrBadEntry)
		}
		e.Name = ""
		ed.root = &place{n: ed.n, meta: e}
		return nil
	}
	dir, name := split(path)
	d, err := ed.touch("set", dir)
	if err != nil {
		return err
	}
	e.Name = strings.Clone(name)
	d.put(e.Name, &place{n: ed.n, meta: e, fresh: true})
	return nil
}

// SetMeta gives the directory at path e's metadata. What is in it stays.
func (ed *Editor) SetMeta(path string, e Entry) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	if e.Kind != Dir {
		return fmt.Errorf("tree: entry %q: metadata of kind %d for a directory: %w", path, e.Kind, ErrBadEntry)
	}
	e.Children = Ref{}
	if why := e.flaw(); why != "" {
		return fmt.Errorf("tree: entry %q: %s: %w", path, why, ErrBadEntry)
	}
	p, err := ed.find("set metadata", path)
	if err != nil {
		return err
	}
	if p.meta.Kind != Dir {
		return &fs.PathError{Op: "set metadata", Path: path, Err: syscall.ENOTDIR}
	}
	if !isRoot(path) {
		dir, _ := split(path)
		if _, err := ed.touch("set metadata", dir); err != nil {
			return err
		}
	}
	e.Name, e.Children = p.meta.Name, p.meta.Children
	p.meta, p.fresh = e, true
	return nil
}

// MkdirAll makes the directories of path that are missing, with the metadata of
// like. Those that are there stay as they are.
func (ed *Editor) MkdirAll(path string, like Entry) error {
	if err := CheckPath(path); err != nil || isRoot(path) {
		return err
	}
	like.Kind, like.Children = Dir, Ref{}
	for i := 0; i < len(path); {
		end := len(path)
		if k := strings.IndexByte(path[i:], '/'); k >= 0 {
			end = i + k
		}
		p, err := ed.find("mkdir", path[:end])
		switch {
		case err == nil && p.meta.Kind != Dir:
			return &fs.PathError{Op: "mkdir", Path: path[:end], Err: syscall.ENOTDIR}
		case errors.Is(err, fs.ErrNotExist):
			err = ed.Set(path[:end], like)
		}
		if err != nil {
			return err
		}
		i = end + 1
	}
	return nil
}

// Remove removes the entry at path, and all below it.
func (ed *Editor) Remove(path string) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	if isRoot(path) {
		return fmt.Errorf("tree: the root cannot be removed: %w", ErrBadPath)
	}
	if _, err := ed.find("remove", path); err != nil {
		return err
	}
	dir, name := split(path)
	d, err := ed.touch("remove", dir)
	if err != nil {
		return err
	}
	d.put(strings.Clone(name), nil)
	return nil
}

// Root writes what changed and gives the tree. The Editor can be used on.
func (ed *Editor) Root() (Entry, error) {
	err := ed.root.settle()
	return ed.root.meta, err
}
