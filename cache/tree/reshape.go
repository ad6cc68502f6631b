package tree

import "fmt"

// Verdict is what Filter does with an entry.
type Verdict int

const (
	// Drop leaves the entry out, and all below it.
	Drop Verdict = iota
	// Keep keeps the entry, and all below it as it is.
	Keep
	// Enter keeps the directory, and asks about what is in it.
	Enter
	// Probe asks about what is in the directory, and keeps it if any of that is kept.
	Probe
)

// Filter gives the part of a tree that judge lets through. It is not asked about
// the root. Enter and Probe are Keep and Drop for what is no directory.
func Filter(n Nodes, root Entry, judge func(path string, e Entry) Verdict) (Entry, error) {
	return filter(n, "", root, judge)
}

func filter(n Nodes, path string, dir Entry, judge func(path string, e Entry) Verdict) (Entry, error) {
	if dir.Kind != Dir || dir.Children == (Ref{}) {
		return dir, nil
	}
	return remake(n, path, dir, func(path string, e Entry) (Entry, error) {
		v := judge(path, e)
		if v == Keep || v == Enter && e.Kind != Dir {
			return e, nil
		}
		if v == Drop || e.Kind != Dir {
			return Entry{}, nil
		}
		e, err := filter(n, path, e, judge)
		if v == Probe && e.Children == (Ref{}) {
			e = Entry{}
		}
		return e, err
	})
}

// Map gives the tree whose every entry, the root among them, is what fn makes of
// it. A directory is given before what is in it, and what fn answers for it
// takes its Children from what becomes of them, unless fn changed those. The
// answer for what is no directory may be of any kind but None, that for a
// directory must be one. Names do not change.
func Map(n Nodes, root Entry, fn func(path string, e Entry) (Entry, error)) (Entry, error) {
	return mapped(n, "", root, fn)
}

func mapped(n Nodes, path string, e Entry, fn func(path string, e Entry) (Entry, error)) (Entry, error) {
	to, err := fn(path, e)
	if err != nil {
		return Entry{}, err
	}
	to.Name = e.Name
	if why := to.flaw(); why != "" || (e.Kind == Dir) != (to.Kind == Dir) {
		return Entry{}, fmt.Errorf("tree: entry %q was mapped to kind %d: %s: %w", path, to.Kind, why, ErrBadEntry)
	}
	if e.Kind != Dir || e.Children == (Ref{}) || to.Children != e.Children {
		return to, nil
	}
	return remake(n, path, to, func(path string, e Entry) (Entry, error) { return mapped(n, path, e, fn) })
}

// remake gives dir with each of its entries replaced by what fn makes of it; one
// of kind None is left out.
func remake(n Nodes, path string, dir Entry, fn func(path string, e Entry) (Entry, error)) (Entry, error) {
	w := newWriter(n)
	defer w.free()
	err := eachRecord(n, dir.Children, func(r *record) error {
		e, err := r.entry()
		if err != nil {
			return fmt.Errorf("reading %q: %w", path, err)
		}
		at, err := inside(path, e.Name)
		if err != nil {
			return err
		}
		to, err := fn(at, e)
		if err != nil || to.Kind == None {
			return err
		}
		if e.Equal(to) {
			return w.entry(r)
		}
		made := newRecord(&to)
		return w.entry(&made)
	})
	if err != nil {
		return Entry{}, err
	}
	dir.Children, err = w.finish()
	return dir, err
}
