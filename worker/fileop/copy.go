package fileop

import (
	"context"
	"fmt"
	"path"
	"strings"
	"syscall"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/worker/layer"
	"github.com/moby/buildkit/solver/pb"
)

// copier is one copy action.
type copier struct {
	*edit
	a     *pb.FileActionCopy
	owner *Owner
	mode  *modeChange // nil keeps modes
	input int         // of the vertex; -1 is an earlier action
	src   tree.Entry  // the state that is copied from

	// Of the match that is being copied:
	m Match
	// fresh says that files get tags of their own, from where they are copied to.
	fresh bool
	// bring says that the files are not in the pool.
	bring bool
	// links are the new tags of files that may have several names.
	links map[uint64]uint64
}

func (e *edit) copy(ctx context.Context, input int, src tree.Entry, a *pb.FileActionCopy, owner *Owner) error {
	c := &copier{edit: e, a: a, owner: owner, input: input, src: src}
	if input >= 0 {
		c.bring = e.op.Files.Foreign(input)
	}
	var err error
	switch {
	case a.ModeStr != "":
		if c.mode, err = parseMode(a.ModeStr); err != nil {
			return err
		}
	case a.Mode != -1:
		c.mode = &modeChange{octal: true, mode: uint32(a.Mode) & 0o7777}
	}
	if !a.CreateDestPath {
		if err := c.destParent(); err != nil {
			return err
		}
	}
	matches, err := Select(e.op.Nodes, src, a)
	if err != nil {
		return late(err)
	}
	for _, c.m = range matches {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if a.AttemptUnpackDockerCompatibility {
			unpacked, err := c.unpack(ctx)
			if err != nil {
				return err
			}
			if unpacked {
				continue
			}
		}
		if err := c.match(ctx); err != nil {
			return err
		}
	}
	return nil
}

// destParent checks that what the destination goes into is there.
func (c *copier) destParent() error {
	p, _, _, err := c.dest(path.Join("/", c.a.Dest))
	if err == nil {
		_, found, lookErr := c.look(parentOf(p))
		if err = lookErr; err == nil && !found {
			err = pathError("lstat", parentOf(p), syscall.ENOENT)
		}
	}
	if err != nil {
		return fmt.Errorf("failed to stat %s: %w", c.a.Dest, err)
	}
	return nil
}

// parents is the entry of directories that a copy makes on the way to its
// destination. A symbolic mode is no mode of theirs.
func (c *copier) parents() tree.Entry {
	mode := uint32(0o755)
	if c.mode != nil && c.a.ModeStr == "" {
		mode = c.mode.mode & 0o777
	}
	return c.newDir(mode, c.owner, c.a.Timestamp)
}

// match copies one match.
func (c *copier) match(ctx context.Context) error {
	target, err := c.target()
	if err != nil {
		return err
	}
	c.links = make(map[uint64]uint64)
	c.fresh = c.bring || c.input < 0 || c.op.again(c.input, c.m.Path)
	return c.put(ctx, target, "", c.m.Entry, false)
}

// again notes that a copy takes files from path of an input, and reports whether
// one before took some of the same.
func (o *Op) again(input int, p string) bool {
	found := false
	for _, c := range o.copied {
		if c.input == input && (within(c.path, p) || within(p, c.path)) {
			found = true
		}
	}
	o.copied = append(o.copied, origin{input, p})
	return found
}

// within reports whether path p is dir or below it.
func within(p, dir string) bool {
	return dir == "" || p == dir || strings.HasPrefix(p, dir+"/")
}

// target works out where a match goes, and makes the directories above.
func (c *copier) target() (string, error) {
	dest := cleanPath(c.a.Dest)
	above := dest
	if dir, name := path.Split(dest); name != "" && name != "." {
		above = dir
	}
	p, _, _, err := c.dest(above)
	if err != nil {
		return "", err
	}
	if err := c.mkdirAll(p, c.parents(), c.owner); err != nil {
		return "", err
	}
	p, entry, found, err := c.dest(dest)
	if err != nil {
		return "", err
	}
	isDir := c.m.Entry.Kind == tree.Dir
	if isDir && !c.a.DirCopyContents && found || !isDir && found && entry.Kind == tree.Dir {
		p = path.Join(p, path.Base(c.m.Name))
		p = strings.TrimPrefix(path.Join("/", p), "/")
	}
	dir := parentOf(p)
	if isDir && c.a.DirCopyContents && !found {
		dir = p
	}
	return p, c.mkdirAll(dir, c.parents(), c.owner)
}

// put copies src, which is at path rel of the match, to target, a clean path.
// Where both are directories they are merged, and src's metadata wins if
// overwrite says so: it does everywhere but at the top.
func (c *copier) put(ctx context.Context, target, rel string, src tree.Entry, overwrite bool) error {
	old, found, err := c.look(target)
	if err != nil {
		return err
	}
	if found && c.a.AlwaysReplaceExistingDestPaths && !c.m.implied[rel] && (old.Kind != tree.Dir || src.Kind != tree.Dir) {
		if target == "" {
			return pathError("copy", "", syscall.EISDIR)
		}
		if err := c.Remove(target); err != nil {
			return err
		}
		found = false
	}
	switch {
	case found && src.Kind != tree.Dir && old.Kind == tree.Dir:
		return fmt.Errorf("cannot replace to directory %s with file", path.Join("/", target))
	case found && src.Kind == tree.Dir && old.Kind != tree.Dir:
		return fmt.Errorf("cannot copy to non-directory: %s", path.Join("/", target))
	case found && src.Kind == tree.Dir:
		return c.merge(ctx, target, rel, old, src, overwrite)
	}
	made, err := c.made(ctx, target, rel, src)
	if err != nil {
		return err
	}
	return c.Set(target, made)
}

// merge copies what is in src into the directory old at target.
func (c *copier) merge(ctx context.Context, target, rel string, old, src tree.Entry, overwrite bool) error {
	meta := old
	switch {
	case !overwrite:
		meta.MTime = c.meta(src).MTime
	case c.m.implied[rel]:
		meta.Mode = src.Mode
	default:
		meta = c.meta(src)
		meta.Xattrs = union(old.Xattrs, src.Xattrs)
	}
	meta.Name, meta.Children = old.Name, old.Children
	if !meta.Equal(old) {
		if err := c.SetMeta(target, meta); err != nil {
			return err
		}
	}
	for e, err := range tree.ReadDir(c.op.Nodes, src.Children) {
		if err != nil {
			return err
		}
		if err := c.put(ctx, join(target, e.Name), join(rel, e.Name), e, true); err != nil {
			return err
		}
	}
	return nil
}

// made gives what src becomes at target, with all that is in it.
func (c *copier) made(ctx context.Context, target, rel string, src tree.Entry) (tree.Entry, error) {
	if !c.fresh && c.owner == nil && c.mode == nil && c.a.Timestamp == -1 {
		return src, nil
	}
	return tree.Map(c.op.Nodes, src, func(p string, e tree.Entry) (tree.Entry, error) {
		to := c.meta(e)
		if e.Kind != tree.File {
			return to, nil
		}
		at := join(rel, p)
		if c.fresh {
			to.Tag = c.tag(e, join(c.m.Path, at), join(target, p))
		}
		if c.bring || !to.Equal(e) {
			t := Transfer{Input: -1, From: e, To: to}
			if c.bring {
				t.Input, t.Path = c.input, join(c.m.Path, at)
			}
			return to, c.op.Files.Bring(ctx, t)
		}
		return to, nil
	})
}

// meta gives e the metadata that the action says.
func (c *copier) meta(e tree.Entry) tree.Entry {
	c.owner.own(&e)
	if c.mode != nil && e.Kind != tree.Symlink {
		e.Mode = c.mode.apply(e.Mode, e.Kind)
	}
	if c.a.Timestamp != -1 {
		e.MTime = c.a.Timestamp
	}
	return e
}

// tag gives a file that is copied from one path to another its new tag. What
// shares a tag that is not of its path may be one file with several names, and
// stays one.
func (c *copier) tag(e tree.Entry, from, to string) uint64 {
	if e.Tag == layer.TagOf(from) {
		return layer.TagOf(to)
	}
	tag, ok := c.links[e.Tag]
	if !ok {
		tag = layer.TagOf(to)
		c.links[e.Tag] = tag
	}
	return tag
}

// union gives the xattrs of both; where both have one, b's.
func union(a, b []tree.Xattr) []tree.Xattr {
	if len(a) == 0 {
		return b
	}
	out := make([]tree.Xattr, 0, len(a)+len(b))
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Name < b[0].Name:
			out, a = append(out, a[0]), a[1:]
		default:
			if len(a) > 0 && a[0].Name == b[0].Name {
				a = a[1:]
			}
			out, b = append(out, b[0]), b[1:]
		}
	}
	return out
}

// join puts a name or path behind a path; either may be empty.
func join(dir, name string) string {
	switch {
	case dir == "":
		return name
	case name == "":
		return dir
	}
	return dir + "/" + name
}
