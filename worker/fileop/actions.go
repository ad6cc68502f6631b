package fileop

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/worker/layer"
	"github.com/moby/buildkit/solver/pb"
)

// dest finds the place that a path of the destination leads to, links followed.
// It need not be there, and then err is nil and found is false.
func (e *edit) dest(p string) (at string, entry tree.Entry, found bool, err error) {
	r, err := e.Resolve(p, true)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path.Join(r.Path, r.Rest), tree.Entry{}, false, nil
	case errors.Is(err, syscall.ENOTDIR):
		return "", tree.Entry{}, false, pathError("lstat", p, syscall.ENOTDIR)
	}
	return r.Path, r.Entry, err == nil, err
}

// look gives what is at a clean path; a link there is not followed.
func (e *edit) look(p string) (tree.Entry, bool, error) {
	entry, err := e.Stat(p)
	if notThere(err) {
		return tree.Entry{}, false, nil
	}
	return entry, err == nil, err
}

// mkdirAll makes the directory p, a clean path without links, and what is
// missing above it, each as like says. What is there already stays as it is.
func (e *edit) mkdirAll(p string, like tree.Entry, owner *Owner) error {
	parent, err := e.Stat("")
	if err != nil {
		return err
	}
	for i := 1; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			continue
		}
		entry, found, err := e.look(p[:i])
		if err != nil {
			return err
		}
		if found && entry.Kind != tree.Dir {
			return pathError("mkdir", p[:i], syscall.ENOTDIR)
		}
		if !found {
			entry = inherit(like, parent, owner)
			if err := e.Set(p[:i], entry); err != nil {
				return err
			}
		}
		parent = entry
	}
	return nil
}

// inherit gives what e becomes in a directory: as on disk, one with the set-group-id
// bit hands on its group, and to directories the bit.
func inherit(e, parent tree.Entry, owner *Owner) tree.Entry {
	if parent.Mode&0o2000 == 0 {
		return e
	}
	if owner == nil {
		e.GID = parent.GID
	}
	if e.Kind == tree.Dir {
		e.Mode |= 0o2000
	}
	return e
}

// newDir is the entry of a directory that an action makes.
func (e *edit) newDir(mode uint32, owner *Owner, timestamp int64) tree.Entry {
	d := tree.Entry{Kind: tree.Dir, Mode: mode, MTime: e.time(timestamp)}
	owner.own(&d)
	return d
}

// own gives e the owner u, unless u is nil.
func (u *Owner) own(e *tree.Entry) {
	if u != nil {
		e.UID, e.GID = u.UID, u.GID
	}
}

// time gives the time that an action's timestamp says; -1 says none.
func (e *edit) time(timestamp int64) int64 {
	if timestamp == -1 {
		return e.op.Now
	}
	return timestamp
}

func (e *edit) mkdir(a *pb.FileActionMkDir, owner *Owner) error {
	p, entry, found, err := e.dest(a.Path)
	if err != nil {
		return err
	}
	dir := e.newDir(uint32(a.Mode)&0o777, owner, a.Timestamp)
	if a.MakeParents {
		if found && entry.Kind != tree.Dir {
			return pathError("mkdir", p, syscall.ENOTDIR)
		}
		return e.mkdirAll(p, dir, owner)
	}
	if found {
		return nil
	}
	parent, err := e.parent("mkdir", p)
	if err != nil {
		return err
	}
	return e.Set(p, inherit(dir, parent, owner))
}

// parent gives the directory that p goes into, which must be there.
func (e *edit) parent(op, p string) (tree.Entry, error) {
	entry, found, err := e.look(parentOf(p))
	switch {
	case err != nil:
		return entry, err
	case !found:
		return entry, pathError(op, p, syscall.ENOENT)
	case entry.Kind != tree.Dir:
		return entry, pathError(op, p, syscall.ENOTDIR)
	}
	return entry, nil
}

func (e *edit) mkfile(ctx context.Context, a *pb.FileActionMkFile, owner *Owner) error {
	p, entry, found, err := e.dest(a.Path)
	if err != nil {
		return err
	}
	if p == "" {
		return pathError("mkfile", "", syscall.EISDIR)
	}
	parent, err := e.parent("open", p)
	if err != nil {
		return err
	}
	if found && entry.Kind == tree.Dir {
		return pathError("rename", p, syscall.EEXIST)
	}
	f := tree.Entry{
		Name: path.Base(p), Kind: tree.File, Mode: uint32(a.Mode) & 0o777, MTime: e.time(a.Timestamp),
		Size: int64(len(a.Data)), Content: blob.Digest(sha256.Sum256(a.Data)), Tag: layer.TagOf(p),
	}
	owner.own(&f)
	f = inherit(f, parent, owner)
	if err := e.op.Files.Put(ctx, f, a.Data); err != nil {
		return fmt.Errorf("writing %s: %w", path.Join("/", p), err)
	}
	return e.Set(p, f)
}

func (e *edit) symlink(a *pb.FileActionSymlink, owner *Owner) error {
	p, _, found, err := e.dest(path.Join("/", a.Newpath))
	if err != nil {
		return err
	}
	if found {
		return &os.LinkError{Op: "symlink", Old: a.Oldpath, New: path.Join("/", p), Err: syscall.EEXIST}
	}
	parent, err := e.parent("symlink", p)
	if err != nil {
		return err
	}
	l := tree.Entry{Kind: tree.Symlink, Mode: 0o777, Target: a.Oldpath, MTime: e.time(a.Timestamp)}
	owner.own(&l)
	return e.Set(p, inherit(l, parent, owner))
}

func (e *edit) rm(a *pb.FileActionRm) error {
	if !a.AllowWildcard || !hasWildcard(a.Path) {
		return e.remove(a.Path, a.AllowNotFound)
	}
	root, err := e.Root()
	if err != nil {
		return err
	}
	matches, err := glob(e.op.Nodes, root, cleanPath(a.Path), false)
	var missing *NotFoundError
	if errors.As(err, &missing) {
		return pathError("lstat", missing.Path, syscall.ENOENT)
	}
	if err != nil {
		return err
	}
	for _, m := range matches {
		if err := e.remove(m.Name, a.AllowNotFound); err != nil {
			return err
		}
	}
	return nil
}

// remove removes a path. Links on its way are followed, the last one is not.
func (e *edit) remove(p string, allowNotFound bool) error {
	full := path.Join("/", p)
	if full == "/" {
		return errors.New("the root of a file system cannot be removed")
	}
	r, err := e.Resolve(full, false)
	if notThere(err) {
		if allowNotFound {
			return nil
		}
		return pathError("stat", full, syscall.ENOENT)
	}
	if err != nil {
		return err
	}
	return e.Remove(r.Path)
}

// parentOf gives the directory of a clean path, "" for the root.
func parentOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}

// pathError is an error of the kind that the os package gives, on a path of the
// root file system.
func pathError(op, p string, err error) error {
	return &fs.PathError{Op: op, Path: path.Join("/", p), Err: err}
}
