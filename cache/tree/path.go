package tree

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// Bounds of what a tree takes, so that hostile archives cannot make nodes or
// recursion without bound. They are Linux's own where Linux has one.
const (
	maxName    = 255     // NAME_MAX
	maxPath    = 4096    // PATH_MAX
	maxTarget  = 4095    // PATH_MAX without the final NUL
	maxXattrs  = 1 << 20 // of one entry, names and values together
	maxXattr   = 255     // XATTR_NAME_MAX
	modeMask   = 0o7777
	linkMode   = 0o777 // Linux gives every symbolic link this mode
	parentMode = 0o755
)

// ErrBadPath is wrapped by the errors for paths and names that no tree holds.
var ErrBadPath = errors.New("not a clean relative path")

// ErrBadEntry is wrapped by the errors for entries that no tree holds.
var ErrBadEntry = errors.New("not a valid entry")

// CheckName reports why name cannot stand in a directory, or nil.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("tree: name %q: %w", name, ErrBadPath)
	case len(name) > maxName:
		return fmt.Errorf("tree: name %.32q… of %d bytes is longer than %d: %w", name, len(name), maxName, ErrBadPath)
	case strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("tree: name %q holds a slash or a NUL: %w", name, ErrBadPath)
	}
	return nil
}

// CheckPath reports why p is no path of a tree, or nil. Paths are relative,
// clean and separated by slashes; "" and "." are the root.
func CheckPath(p string) error {
	if isRoot(p) {
		return nil
	}
	if len(p) > maxPath {
		return fmt.Errorf("tree: path %.32q… of %d bytes is longer than %d: %w", p, len(p), maxPath, ErrBadPath)
	}
	for rest, more := p, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		if err := CheckName(name); err != nil {
			return fmt.Errorf("path %q: %w", p, err)
		}
	}
	return nil
}

// CheckLength reports that p is longer than a path can be, or nil; the error wraps
// syscall.ENAMETOOLONG. CheckPath is for a path that somebody names. A tree may hold
// a deeper place all the same: a process can make folders in each other without ever
// naming a whole path, and a tree can be put into another. So whoever goes down a tree
// asks at every step, and neither the recursion nor the paths grow without bound.
func CheckLength(p string) error {
	if len(p) <= maxPath {
		return nil
	}
	return fmt.Errorf("the path %.64q… has %d bytes and may have %d: use shorter names, or fewer folders inside each other: %w", p, len(p), maxPath, syscall.ENAMETOOLONG)
}

// maxLevels is how many folders a path of maxPath bytes can go through. It bounds the
// recursions that need no path.
const maxLevels = maxPath / 2

// checkLevel is CheckLength where only the number of folders above is known.
func checkLevel(level int) error {
	if level <= maxLevels {
		return nil
	}
	return fmt.Errorf("more than %d folders lie inside each other, which no path can lead through: %w", maxLevels, syscall.ENAMETOOLONG)
}

func isRoot(p string) bool { return p == "" || p == "." }

// split cuts a checked path that is not the root into its directory, "" for
// the root, and its last name.
func split(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}

// join is split's inverse.
func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// inside is join for whoever goes down a tree.
func inside(dir, name string) (string, error) {
	p := join(dir, name)
	return p, CheckLength(p)
}

// Check reports why e cannot stand in a tree, or nil. The name of a tree's root
// is empty, every other name is one that CheckName allows. Fields that are not
// of e's kind do not matter: they are not stored.
func (e Entry) Check() error {
	if e.Name != "" {
		if err := CheckName(e.Name); err != nil {
			return err
		}
	}
	if why := e.flaw(); why != "" {
		return fmt.Errorf("tree: entry %q: %s: %w", e.Name, why, ErrBadEntry)
	}
	return nil
}

// flaw says what is wrong with e, its name left out.
func (e *Entry) flaw() string {
	switch {
	case e.Kind == None || e.Kind > Whiteout:
		return fmt.Sprintf("kind %d is unknown", e.Kind)
	case e.Kind == File && e.Size < 0:
		return "its size is negative"
	case e.Kind == Symlink && (e.Target == "" || len(e.Target) > maxTarget):
		return fmt.Sprintf("a link's target has 1 to %d bytes, this one %d", maxTarget, len(e.Target))
	case e.Kind == Symlink && strings.IndexByte(e.Target, 0) >= 0:
		return "its target holds a NUL"
	case e.Kind == Dir && (e.Children.ID == ID{}) != (e.Children.Addr == Addr{}):
		return "its children have one name of two"
	}
	sum := 0
	for i, x := range e.Xattrs {
		sum += len(x.Name) + len(x.Value)
		switch {
		case x.Name == "" || len(x.Name) > maxXattr || strings.IndexByte(x.Name, 0) >= 0:
			return fmt.Sprintf("%.32q is no name of an xattr", x.Name)
		case i > 0 && e.Xattrs[i-1].Name >= x.Name:
			return "its xattrs are not sorted, or one is there twice"
		case sum > maxXattrs:
			return fmt.Sprintf("its xattrs have more than %d bytes", maxXattrs)
		}
	}
	return ""
}
