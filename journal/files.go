package journal

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/explain"
)

// maxFiles is how many files a reason names.
const maxFiles = 10

// compareSources compares two sources that steps read as their input k.
func (c *comparison) compareSources(s *Step, n *run, k int) []explain.Reason {
	in, was := &c.report.Steps[s.Inputs[k].Step], &n.past.report.Steps[n.step.Inputs[k].Step]
	x, err := was.op()
	if err != nil {
		return nil
	}
	y, err := in.op()
	if err != nil {
		return nil
	}
	oldScheme, oldRef, _ := strings.Cut(x.GetSource().GetIdentifier(), "://")
	scheme, ref, _ := strings.Cut(y.GetSource().GetIdentifier(), "://")
	image := func(s string) bool { return s == "docker-image" || s == "oci-layout" }
	switch {
	case scheme == "local" && oldScheme == "local":
		return c.folderFiles(s, n, k, ref)
	case image(scheme) && image(oldScheme):
		old, oldDigest, _ := strings.Cut(oldRef, "@")
		name, digest, _ := strings.Cut(ref, "@")
		if old != name {
			return []explain.Reason{{Kind: explain.BaseImage, Name: name, Change: "another", Old: oldRef, New: ref}}
		}
		if digest == oldDigest {
			oldDigest, digest = was.Pin, in.Pin // another manifest of one index
		}
		return []explain.Reason{{Kind: explain.BaseImage, Name: name, Change: "moved", Old: oldDigest, New: digest}}
	case scheme != oldScheme || in.Name != was.Name:
		// Addresses may have passwords in them; the names of steps do not.
		return []explain.Reason{{Kind: explain.Source, Name: in.Name, Change: "another", Old: was.Name, New: in.Name}}
	}
	return []explain.Reason{{Kind: explain.Source, Name: in.Name, Change: "moved", Old: was.Pin, New: in.Pin}}
}

// folderFiles compares the local folders that two steps read, as far as they do.
func (c *comparison) folderFiles(s *Step, n *run, k int, folder string) []explain.Reason {
	in, was := &c.report.Steps[s.Inputs[k].Step], &n.past.report.Steps[n.step.Inputs[k].Step]
	if in.Pin == was.Pin {
		return nil
	}
	r := explain.Reason{Kind: explain.Files, Name: folder}
	old, ok1 := c.folder(was)
	now, ok2 := c.folder(in)
	if ok1 && ok2 {
		files, _, err := c.files(s, n, k, old, now)
		if err == nil && len(files) == 0 {
			return nil
		}
		cut(&r, files)
	}
	return []explain.Reason{r}
}

// cut gives a reason the first files, and counts the rest.
func cut(r *explain.Reason, files []explain.File) {
	r.Files = files[:min(maxFiles, len(files))]
	r.More = len(files) - len(r.Files)
}

// folder gives the tree of a local folder.
func (c *comparison) folder(s *Step) (tree.Entry, bool) {
	if s.root.Kind == tree.Dir {
		return s.root, true
	}
	if c.x.Kept == nil {
		return tree.Entry{}, false
	}
	return c.x.Kept(keptName(s.Pin))
}

// chainFiles compares what two steps read of other steps, where both outputs are
// known still and they read a part of it only.
func (c *comparison) chainFiles(s *Step, n *run, k int) []explain.Reason {
	if c.x.State == nil {
		return nil
	}
	in := &c.report.Steps[s.Inputs[k].Step]
	now, ok := c.output(c.report, s.Inputs[k])
	if !ok {
		return nil
	}
	was, ok := c.output(n.past.report, n.step.Inputs[k])
	if !ok {
		return nil
	}
	oldState, err := c.x.State(was)
	if err != nil {
		return nil
	}
	state, err := c.x.State(now)
	if err != nil {
		return nil
	}
	files, all, err := c.files(s, n, k, oldState, state)
	if err != nil || all || len(files) == 0 {
		return nil
	}
	r := explain.Reason{Kind: explain.Files, Name: in.Name}
	cut(&r, files)
	return []explain.Reason{r}
}

// sameOutput says whether two outputs are known, and are the same.
func (c *comparison) sameOutput(a Edge, old *Report, b Edge) bool {
	now, ok := c.output(c.report, a)
	if !ok {
		return false
	}
	was, ok := c.output(old, b)
	return ok && was == now
}

// output gives the chain of an output: as the report says, or any that has a step
// of the same definition.
func (c *comparison) output(r *Report, e Edge) (cache.ChainID, bool) {
	s := &r.Steps[e.Step]
	if e.Output < len(s.Outputs) && cache.ChainID(s.Outputs[e.Output]) != cache.Absent {
		return cache.ChainID(s.Outputs[e.Output]), true
	}
	for _, p := range c.pasts {
		for i := range p.report.Steps {
			if t := &p.report.Steps[i]; t.Definition == s.Definition && e.Output < len(t.Outputs) &&
				cache.ChainID(t.Outputs[e.Output]) != cache.Absent {
				return cache.ChainID(t.Outputs[e.Output]), true
			}
		}
	}
	return cache.ChainID{}, false
}

// scratchNodes reads nodes from elsewhere and keeps new ones in memory: explaining
// a build leaves nothing behind.
type scratchNodes struct {
	tree.Nodes
	new *tree.MemNodes
}

func (n scratchNodes) PutNode(a tree.Addr, b []byte) error { return n.new.PutNode(a, b) }
func (n scratchNodes) Node(a tree.Addr) ([]byte, error) {
	if b, err := n.new.Node(a); err == nil {
		return b, nil
	}
	return n.Nodes.Node(a)
}

// files compares two states as far as two steps see them through their input k;
// all says that both see all.
func (c *comparison) files(s *Step, n *run, k int, old, now tree.Entry) (out []explain.File, all bool, err error) {
	if c.x.Nodes == nil || c.x.Seen == nil {
		return nil, false, errDamaged
	}
	nodes := scratchNodes{c.x.Nodes, tree.NewMemNodes()}
	wasOp, err := n.step.op()
	if err != nil {
		return nil, false, err
	}
	op, err := s.op()
	if err != nil {
		return nil, false, err
	}
	a, allOld, err := c.x.Seen(nodes, wasOp, k, old)
	if err != nil {
		return nil, false, err
	}
	b, allNew, err := c.x.Seen(nodes, op, k, now)
	if err != nil {
		return nil, false, err
	}
	found := map[string]explain.File{}
	for at := range maps.Keys(union(a, b)) {
		err := tree.Changed(nodes, a[at], b[at], tree.ByID, func(p string, old, new tree.Entry) error {
			p = path.Join(at, p)
			if old.Kind == tree.Dir && new.Kind != tree.Dir || new.Kind == tree.Dir && old.Kind != tree.Dir {
				p += "/"
			}
			found[p] = explain.File{Path: p, Changes: changesOf(old, new)}
			return nil
		})
		if err != nil {
			return nil, false, err
		}
	}
	for _, p := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[p])
	}
	return out, allOld && allNew, nil
}

func union(a, b map[string]tree.Entry) map[string]tree.Entry {
	out := maps.Clone(a)
	for k, v := range b {
		out[k] = v
	}
	return out
}

// changesOf says how two entries differ, times left out.
func changesOf(old, new tree.Entry) []string {
	switch {
	case old.Kind == tree.None:
		return []string{"new"}
	case new.Kind == tree.None:
		return []string{"gone"}
	}
	var out []string
	add := func(differs bool, what string) {
		if differs {
			out = append(out, what)
		}
	}
	add(old.Kind != new.Kind, "kind")
	add(old.Kind == new.Kind && (old.Content != new.Content || old.Size != new.Size), "content")
	add(old.Kind == new.Kind && old.Target != new.Target, "target")
	add(old.Mode != new.Mode, "mode")
	add(old.UID != new.UID || old.GID != new.GID, "owner")
	add(!slices.Equal(old.Xattrs, new.Xattrs), "xattrs")
	add(old.Dev != new.Dev, "device")
	return out
}
