package tree

import (
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// maxLinks is how many symbolic links one resolution follows. Linux follows 40;
// 255 is what image builders have allowed, and costs nothing.
const maxLinks = 255

// Resolved is how far a path led.
type Resolved struct {
	// Path is clean, relative, and has no symbolic link in it, but for the last
	// name where that was not to be followed.
	Path string
	// Entry is what is at Path.
	Entry Entry
	// Rest is empty where everything is there. Otherwise it is the clean path
	// that is missing below Path, which is then the deepest place that exists.
	Rest string
}

// Resolve finds path as a process would whose root directory is root: links are
// followed and lead nowhere outside. The path may be absolute, and need not be
// clean. A link that is the path's last name is followed if followLast says so.
//
// Where part of the path is missing the error wraps fs.ErrNotExist and the
// Resolved says which part; ".." in that part goes up lexically, so that a
// caller can make it. Where something that is no directory is in the way the
// error wraps syscall.ENOTDIR, Path is that thing and Rest what was wanted
// below it. Too many links are syscall.ELOOP.
func Resolve(n Nodes, root Entry, path string, followLast bool) (Resolved, error) {
	return resolve(&treeView{n: n, e: root}, path, followLast)
}

// view is a place in a tree, in the store or in an Editor.
type view interface {
	entry() Entry
	// child gives the place that name leads to, or nil where there is none.
	child(name string) (view, error)
}

type treeView struct {
	n Nodes
	e Entry
}

func (v *treeView) entry() Entry { return v.e }

func (v *treeView) child(name string) (view, error) {
	r, ok, err := find(v.n, v.e.Children, name)
	if err != nil || !ok {
		return nil, err
	}
	e, err := r.entry()
	return &treeView{n: v.n, e: e}, err
}

// trail is a resolution that is going on.
type trail struct {
	places  []view   // from the root to where it is
	names   []string // of places, the root's left out
	missing []string // what was not there, below places
}

func (t *trail) here() view { return t.places[len(t.places)-1] }

func (t *trail) up() {
	switch {
	case len(t.missing) > 0:
		t.missing = t.missing[:len(t.missing)-1]
	case len(t.names) > 0:
		t.names, t.places = t.names[:len(t.names)-1], t.places[:len(t.names)]
	}
}

// resolved gives the result, with what was still to be walked behind it.
func (t *trail) resolved(todo []string) Resolved {
	for _, name := range todo {
		if name == ".." {
			if len(t.missing) > 0 {
				t.missing = t.missing[:len(t.missing)-1]
			}
		} else {
			t.missing = append(t.missing, name)
		}
	}
	return Resolved{Path: strings.Join(t.names, "/"), Entry: t.here().entry(), Rest: strings.Join(t.missing, "/")}
}

func resolve(root view, path string, followLast bool) (Resolved, error) {
	t := trail{places: []view{root}}
	fail := func(err error, todo ...string) (Resolved, error) {
		return t.resolved(todo), &fs.PathError{Op: "resolve", Path: path, Err: err}
	}
	if strings.IndexByte(path, 0) >= 0 {
		return fail(ErrBadPath)
	}
	links := 0
	todo := components(path)
	for len(todo) > 0 {
		name := todo[0]
		if len(t.missing) == 0 && t.here().entry().Kind != Dir {
			return fail(syscall.ENOTDIR, todo...)
		}
		todo = todo[1:]
		if name == ".." {
			t.up()
			continue
		}
		if len(name) > maxName {
			return fail(syscall.ENAMETOOLONG)
		}
		if len(t.missing) > 0 {
			t.missing = append(t.missing, name)
			continue
		}
		next, err := t.here().child(name)
		if err != nil {
			return Resolved{}, fmt.Errorf("resolving %q: %w", path, err)
		}
		if next == nil {
			t.missing = append(t.missing, name)
			continue
		}
		if e := next.entry(); e.Kind == Symlink && (len(todo) > 0 || followLast) {
			if links++; links > maxLinks {
				return fail(syscall.ELOOP, append([]string{name}, todo...)...)
			}
			if strings.HasPrefix(e.Target, "/") {
				t.places, t.names = t.places[:1], t.names[:0]
			}
			todo = append(components(e.Target), todo...)
			continue
		}
		t.places, t.names = append(t.places, next), append(t.names, name)
	}
	if len(t.missing) > 0 {
		return fail(fs.ErrNotExist)
	}
	return t.resolved(nil), nil
}

// components cuts a path into its names, without the empty ones and ".".
func components(path string) []string {
	parts := strings.Split(path, "/")
	kept := parts[:0]
	for _, p := range parts {
		if p != "" && p != "." {
			kept = append(kept, p)
		}
	}
	return kept
}
