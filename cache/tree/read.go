package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"syscall"
)

// Lookup gives the entry at path, following no links. Where there is none the
// error wraps fs.ErrNotExist, where something on the way is no directory,
// syscall.ENOTDIR.
func Lookup(n Nodes, root Entry, path string) (Entry, error) {
	if isRoot(path) {
		return root, nil
	}
	if err := CheckPath(path); err != nil {
		return Entry{}, err
	}
	kind, ref := root.Kind, root.Children
	for rest, more := path, true; ; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		if kind != Dir {
			return Entry{}, &fs.PathError{Op: "lookup", Path: path, Err: syscall.ENOTDIR}
		}
		r, ok, err := find(n, ref, name)
		if err != nil {
			return Entry{}, fmt.Errorf("looking up %q: %w", path, err)
		}
		if !ok {
			return Entry{}, &fs.PathError{Op: "lookup", Path: path, Err: fs.ErrNotExist}
		}
		if !more {
			return r.entry()
		}
		kind, ref = r.kind(), r.children()
	}
}

// ReadDir gives the entries of a directory in name order. An error is the last
// thing that it gives.
func ReadDir(n Nodes, ref Ref) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		err := eachRecord(n, ref, func(r *record) error {
			e, err := r.entry()
			if err == nil && !yield(e, nil) {
				err = fs.SkipAll
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.SkipAll) {
			yield(Entry{}, err)
		}
	}
}

// eachRecord calls fn for the records of a directory in name order.
func eachRecord(n Nodes, ref Ref, fn func(*record) error) error {
	var c cursor
	if err := c.open(n, ref); err != nil {
		return err
	}
	for {
		r, ok, err := c.entry()
		if err != nil || !ok {
			return err
		}
		if err := fn(&r); err != nil {
			return err
		}
		c.skip()
	}
}

// Walk calls fn for root, whose path is "", and for everything below it: a
// directory before its entries, and those in name order. As in io/fs,
// fs.SkipDir from a directory passes over what is in it, from anything else over
// the rest of the directory that it is in; fs.SkipAll ends the walk. A path that is
// longer than one can be is an error (CheckLength).
func Walk(n Nodes, root Entry, fn func(path string, e Entry) error) error {
	err := walk(n, "", root, fn)
	if err == fs.SkipDir || err == fs.SkipAll {
		return nil
	}
	return err
}

func walk(n Nodes, path string, e Entry, fn func(path string, e Entry) error) error {
	if err := fn(path, e); err != nil || e.Kind != Dir {
		return err
	}
	return eachRecord(n, e.Children, func(r *record) error {
		e, err := r.entry()
		if err != nil {
			return fmt.Errorf("reading %q: %w", path, err)
		}
		at, err := inside(path, e.Name)
		if err != nil {
			return err
		}
		if err = walk(n, at, e, fn); err == fs.SkipDir && e.Kind == Dir {
			err = nil
		}
		return err
	})
}
