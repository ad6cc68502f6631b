package fileop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/kiln-build/kiln/cache/tree"
)

// unpack puts what is in an archive at the destination; what is no archive it
// leaves alone. A link to an archive is followed whatever the action says.
func (c *copier) unpack(ctx context.Context) (bool, error) {
	r, err := tree.Resolve(c.op.Nodes, c.src, c.m.Name, true)
	if notThere(err) || err == nil && (r.Entry.Kind != tree.File || r.Entry.Size == 0) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p, _, _, err := c.dest(cleanPath(c.a.Dest))
	if err != nil {
		return false, err
	}
	u, ok, err := c.op.Files.Unpack(ctx, Archive{Input: c.input, Path: r.Path, Entry: r.Entry, At: p, Owner: c.owner})
	if err != nil {
		return false, fmt.Errorf("unpacking %s: %w", c.m.Name, err)
	}
	if !ok {
		return false, nil
	}
	if err := c.mkdirAll(p, c.newDir(0o755, c.owner, c.a.Timestamp), c.owner); err != nil {
		return false, err
	}
	return true, c.extract(p, "", u.Root, &u)
}

// extract puts the directory dir of an archive, which is at rel in it, over the
// directory at p. What is in the archive replaces what is there, except that
// directories are merged. What the archive says of its own root is not taken: the
// destination is the Dockerfile's, and "tar -C dir -c ." is no wish to change it.
func (c *copier) extract(p, rel string, dir tree.Entry, u *Unpacked) error {
	if rel != "" && !u.Implicit[rel] {
		old, err := c.Stat(p)
		if err != nil {
			return err
		}
		meta := dir
		meta.Name, meta.Children = old.Name, old.Children
		if !meta.Equal(old) {
			if err := c.SetMeta(p, meta); err != nil {
				return err
			}
		}
	}
	for e, err := range tree.ReadDir(c.op.Nodes, dir.Children) {
		if err != nil {
			return err
		}
		if err := c.extractEntry(join(p, e.Name), join(rel, e.Name), e, u); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) extractEntry(target, rel string, e tree.Entry, u *Unpacked) error {
	old, found, err := c.look(target)
	if err != nil {
		return err
	}
	if found && old.Kind == tree.Symlink && u.Implicit[rel] {
		// The archive names what is below the link only: it goes where the link leads.
		if r, err := c.Resolve(target, true); err == nil {
			target, old = r.Path, r.Entry
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unpacking to %s: %w", path.Join("/", target), err)
		}
	}
	if found && old.Kind == tree.Dir && e.Kind == tree.Dir {
		return c.extract(target, rel, e, u)
	}
	return c.Set(target, e)
}
