package fileop

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"
)

// Match is a thing that a copy takes from its source.
type Match struct {
	// Name is the path by which it matched, absolute; its last element is what
	// the copy is called in a directory. It may end in "/" or "/.".
	Name string
	// Path is where that leads in the source, clean and relative.
	Path string
	// Entry is what is there, without what include and exclude patterns leave out.
	Entry tree.Entry
	// implied are directories, by path below Path, that the patterns leave out
	// themselves, and that are there for what is in them.
	implied map[string]bool
}

// Select gives what a copy takes from the source state root. A path that is not
// there is a *NotFoundError, unless it is a wildcard that may match nothing.
func Select(n tree.Nodes, root tree.Entry, c *pb.FileActionCopy) ([]Match, error) {
	src := cleanPath(c.Src)
	if c.AllowWildcard {
		// What a trailing "/." changes it changes for plain paths alone.
		src = path.Clean(src)
	}
	var matches []Match
	var err error
	if c.AllowWildcard && hasWildcard(src) {
		if matches, err = glob(n, root, src, c.FollowSymlink); err != nil {
			return nil, err
		}
		if len(matches) == 0 && !c.AllowEmptyWildcard {
			return nil, &NotFoundError{Path: src}
		}
	} else {
		m, err := at(n, root, src, c.FollowSymlink)
		if err != nil {
			return nil, err
		}
		matches = []Match{m}
	}
	if len(c.IncludePatterns) == 0 && len(c.ExcludePatterns) == 0 {
		return matches, nil
	}
	for i := range matches {
		if err := matches[i].filter(n, c); err != nil {
			return nil, err
		}
	}
	return matches, required(n, matches, c.RequiredPaths)
}

// at finds name; the links on its way are followed, the last one if follow says so.
func at(n tree.Nodes, root tree.Entry, name string, follow bool) (Match, error) {
	r, err := tree.Resolve(n, root, name, follow)
	if notThere(err) {
		return Match{}, &NotFoundError{Path: path.Join("/", name)}
	}
	if err != nil {
		return Match{}, err
	}
	return Match{Name: name, Path: r.Path, Entry: r.Entry}, nil
}

// glob finds what matches a pattern. The part before the first wildcard is a
// path whose links are followed; what matches the rest is not looked into.
func glob(n tree.Nodes, root tree.Entry, pattern string, follow bool) ([]Match, error) {
	parts := strings.Split(strings.TrimPrefix(path.Clean(pattern), "/"), "/")
	fixed := 0
	for fixed < len(parts) && !hasWildcard(parts[fixed]) {
		fixed++
	}
	prefix := "/" + strings.Join(parts[:fixed], "/")
	start, err := at(n, root, prefix, follow)
	if err != nil {
		return nil, err
	}
	for _, p := range parts[fixed:] {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("the pattern %q: %w", pattern, err)
		}
	}
	// The names are those below the place that the prefix leads to, whatever it
	// is called there.
	found, err := globDir(n, start.Entry, parts[fixed:], path.Join("/", start.Path))
	if err != nil || !follow {
		return found, err
	}
	for i, m := range found {
		if m.Entry.Kind == tree.Symlink {
			if found[i], err = at(n, root, m.Name, true); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// globDir matches the names in dir with the first of the patterns, and goes on
// in those that are directories with the rest of them.
func globDir(n tree.Nodes, dir tree.Entry, patterns []string, name string) ([]Match, error) {
	if dir.Kind != tree.Dir {
		return nil, nil
	}
	var out []Match
	for e, err := range tree.ReadDir(n, dir.Children) {
		if err != nil {
			return nil, err
		}
		if ok, _ := path.Match(patterns[0], e.Name); !ok {
			continue
		}
		sub := path.Join(name, e.Name)
		if len(patterns) == 1 {
			out = append(out, Match{Name: sub, Path: strings.TrimPrefix(sub, "/"), Entry: e})
			continue
		}
		more, err := globDir(n, e, patterns[1:], sub)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// filter leaves out of a directory what the patterns say. Patterns are relative
// to the directory itself, which is always there.
func (m *Match) filter(n tree.Nodes, c *pb.FileActionCopy) error {
	if m.Entry.Kind != tree.Dir {
		return nil
	}
	j := judge{infos: map[string][2]patternmatcher.MatchInfo{"": {}}, implied: make(map[string]bool)}
	var err error
	if len(c.IncludePatterns) > 0 {
		if j.include, err = patternmatcher.New(c.IncludePatterns); err != nil {
			return fmt.Errorf("invalid includepatterns %q: %w", c.IncludePatterns, err)
		}
	}
	if len(c.ExcludePatterns) > 0 {
		if j.exclude, err = patternmatcher.New(c.ExcludePatterns); err != nil {
			return fmt.Errorf("invalid excludepatterns %q: %w", c.ExcludePatterns, err)
		}
	}
	m.Entry, err = tree.Filter(n, m.Entry, j.verdict)
	if err == nil {
		err = j.err
	}
	m.implied = j.implied
	return err
}

// judge applies patterns to a tree.
type judge struct {
	include, exclude *patternmatcher.PatternMatcher
	// infos is what the patterns said of the directories on the way.
	infos   map[string][2]patternmatcher.MatchInfo
	implied map[string]bool
	err     error
}

func (j *judge) verdict(p string, e tree.Entry) tree.Verdict {
	if p == "" {
		return tree.Enter
	}
	parent := path.Dir(p)
	if parent == "." {
		parent = ""
	}
	in, isDir, taken, barred := j.infos[parent], e.Kind == tree.Dir, true, false
	var out [2]patternmatcher.MatchInfo
	var err error
	if j.include != nil {
		if taken, out[0], err = j.include.MatchesUsingParentResults(p, in[0]); err != nil {
			j.err = err
			return tree.Drop
		}
	}
	if j.exclude != nil {
		if barred, out[1], err = j.exclude.MatchesUsingParentResults(p, in[1]); err != nil {
			j.err = err
			return tree.Drop
		}
	}
	switch {
	case !isDir && taken && !barred:
		return tree.Keep
	case !isDir:
		return tree.Drop
	case barred && !j.exclude.Exclusions():
		return tree.Drop
	}
	j.infos[p] = out
	if taken && !barred {
		return tree.Enter
	}
	j.implied[p] = true
	return tree.Probe
}

// required checks that something is left of every path that must be there.
func required(n tree.Nodes, matches []Match, paths []string) error {
	for _, want := range paths {
		found := false
		for _, m := range matches {
			err := tree.Walk(n, m.Entry, func(p string, _ tree.Entry) error {
				if strings.HasPrefix(path.Join("/", m.Name, p), want) && (p != "" || m.Entry.Children != (tree.Ref{})) {
					found = true
					return fs.SkipAll
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if !found {
			return &NotFoundError{Path: want}
		}
	}
	return nil
}

// cleanPath makes a path absolute and clean, and keeps a "/" or "/." at its end,
// which change what a copy does.
func cleanPath(s string) string {
	out := path.Join("/", s)
	switch {
	case strings.HasSuffix(s, "/."):
		if out != "/" {
			out += "/"
		}
		out += "."
	case strings.HasSuffix(s, "/") && out != "/":
		out += "/"
	}
	return out
}

// hasWildcard reports whether path.Match would treat p as a pattern.
func hasWildcard(p string) bool {
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

func notThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
