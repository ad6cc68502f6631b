package local

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/worker/internal/dirfd"
	"golang.org/x/sys/unix"
)

// maxFollowed bounds how many paths follow turns up, so that links that multiply
// (wildcards over links to wildcards) end in an error and not in a full memory.
const maxFollowed = 100_000

// followLinks gives the paths that must be read for paths to be read through
// their links: the paths themselves, every link on their way, and what the links
// lead to. Links are taken as inside a root file system that the folder is. A
// nil result is no restriction: one of the paths is the folder itself.
func followLinks(root *Folder, paths []string) ([]string, error) {
	f := follower{root: root, seen: make(map[string]bool)}
	for _, p := range paths {
		if err := f.add(p); err != nil {
			return nil, fmt.Errorf("following the links of %q: %w", p, err)
		}
	}
	out := make([]string, 0, len(f.seen))
	for p := range f.seen {
		out = append(out, p)
	}
	slices.Sort(out)
	return dedupe(out), nil
}

type follower struct {
	root *Folder
	seen map[string]bool
}

func (f *follower) add(p string) error {
	rest := strings.TrimPrefix(path.Join("/", p), "/")
	if len(f.seen) > maxFollowed {
		return fmt.Errorf("more than %d paths", maxFollowed)
	}
	at := "."
	for {
		name, below, _ := strings.Cut(rest, "/")
		at = path.Join(at, name)
		targets, err := f.targets(at)
		if err != nil {
			return err
		}
		if (below == "" || targets != nil) && f.seen[at] {
			return nil
		}
		if targets != nil {
			f.seen[at] = true
			for _, t := range targets {
				if err := f.add(path.Join(t, below)); err != nil {
					return err
				}
			}
			return nil
		}
		if below == "" {
			f.seen[at] = true
			return nil
		}
		rest = below
	}
}

// targets gives where the link at p leads, or, for a p whose last name has
// wildcards, where the links that match lead. It is nil where there is no link.
func (f *follower) targets(p string) ([]string, error) {
	dir, base := path.Split(p)
	if dir == "" {
		dir = "."
	}
	if !hasWildcard(base) {
		t, err := f.target(p)
		if t == "" || err != nil {
			return nil, err
		}
		return []string{t}, nil
	}
	fd, err := f.root.openBeneath(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		if notThere(err) {
			return nil, nil
		}
		return nil, err
	}
	defer unix.Close(fd)
	names, err := dirfd.Names(fd)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range names {
		if ok, err := path.Match(base, n.Name); err != nil || !ok {
			continue
		}
		t, err := f.target(path.Join(dir, n.Name))
		if err != nil {
			return nil, err
		}
		if t != "" {
			out = append(out, t)
		}
	}
	return out, nil
}

// target gives where the link at p leads, as a path in the folder; empty is no link.
func (f *follower) target(p string) (string, error) {
	fd, err := f.root.openBeneath(p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		if notThere(err) {
			return "", nil
		}
		return "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	link, err := dirfd.Readlink(fd, "")
	if err != nil {
		return "", err
	}
	if !path.IsAbs(link) {
		link = path.Join("/", path.Dir(p), link)
	}
	return path.Clean(link), nil
}

// hasWildcard reports whether path.Match would treat name as a pattern.
func hasWildcard(name string) bool {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// dedupe drops what is below a path before it in the list. A list with the
// folder itself in it restricts nothing, and is nil.
func dedupe(in []string) []string {
	out := make([]string, 0, len(in))
	last := ""
	for _, p := range in {
		if p == "." {
			return nil
		}
		if last != "" && strings.HasPrefix(p, last+"/") {
			continue
		}
		out = append(out, p)
		last = p
	}
	return out
}
