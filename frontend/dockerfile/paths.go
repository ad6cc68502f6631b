package dockerfile

import (
	"path"
	"slices"
)

// paths is a set of absolute paths that are read of a file system.
type paths map[string]struct{}

func (p paths) add(name string) { p[path.Join("/", name)] = struct{}{} }

// follow lists the set for a local source's "followpaths", sorted. Nil is
// everything: nothing was said, or the root is in the set.
func (p paths) follow() []string {
	if _, all := p["/"]; all {
		return nil
	}
	var out []string
	for name := range p {
		out = append(out, path.Join(".", name))
	}
	slices.Sort(out)
	return out
}
