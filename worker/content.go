package worker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"syscall"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/worker/fileop"
	"github.com/moby/buildkit/solver/pb"
)

// NotFoundError says that a path that an operation reads is not in its source.
type NotFoundError = fileop.NotFoundError

// Content identifies what v sees of one of its inputs: the chain, or, where v
// reads some paths of it only, what is there.
func (w *Worker) Content(ctx context.Context, v *llb.Vertex, input int, chain cache.ChainID) (cache.ContentID, error) {
	switch op := v.Op().Op.(type) {
	case *pb.Op_File:
		return w.fileContent(ctx, op.File, len(v.Inputs()), input, chain)
	case *pb.Op_Exec:
		return w.execContent(ctx, op.Exec, input, chain)
	}
	return chainContent(chain), nil
}

func chainContent(id cache.ChainID) cache.ContentID {
	return sha256.Sum256(append([]byte("kiln content: chain\x00"), id[:]...))
}

// sum gathers what an op sees. What the op itself says (paths, patterns, flags)
// is part of the key already and need not go in.
type sum struct{ h hash.Hash }

func newSum(kind string) sum {
	s := sum{sha256.New()}
	s.text("kiln content: " + kind)
	return s
}

func (s sum) text(t string) {
	io.WriteString(s.h, t)
	s.h.Write([]byte{0})
}

func (s sum) entry(e tree.Entry) {
	id := e.ID()
	s.h.Write(id[:])
}

func (s sum) id() (id cache.ContentID) {
	s.h.Sum(id[:0])
	return id
}

// fileContent identifies what a file operation sees of an input: all of it, if
// an action stands on it; else what copies take from it, and the files in which
// owners are looked up.
func (w *Worker) fileContent(ctx context.Context, op *pb.FileOp, inputs, input int, chain cache.ChainID) (cache.ContentID, error) {
	for _, a := range op.Actions {
		if a.Input == int64(input) {
			return chainContent(chain), nil
		}
	}
	root, err := w.state(ctx, nil, chain)
	if err != nil {
		return cache.ContentID{}, err
	}
	s := newSum("paths")
	for _, a := range op.Actions {
		if c := a.GetCopy(); c != nil && a.SecondaryInput == int64(input) {
			if err := w.copied(s, root, c); err != nil {
				return cache.ContentID{}, fmt.Errorf("failed to calculate checksum of %s: %w", path.Join("/", c.Src), err)
			}
		}
		for _, f := range fileop.UserFiles(a) {
			if f.Input == int64(input) {
				if err := w.at(s, root, f.Path); err != nil {
					return cache.ContentID{}, err
				}
			}
		}
	}
	return s.id(), nil
}

// copied adds what a copy takes from the state root.
func (w *Worker) copied(s sum, root tree.Entry, c *pb.FileActionCopy) error {
	matches, err := fileop.Select(w.cache, root, c)
	if err != nil {
		return err
	}
	s.text("copy")
	for _, m := range matches {
		s.text(m.Name)
		s.entry(m.Entry)
		if c.AttemptUnpackDockerCompatibility && m.Entry.Kind == tree.Symlink {
			// An archive behind a link is unpacked.
			if err := w.at(s, root, m.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// at adds what is at a path of the state root, links followed.
func (w *Worker) at(s sum, root tree.Entry, p string) error {
	r, err := tree.Resolve(w.cache, root, p, true)
	switch {
	case err == nil:
		s.text("at " + p)
		s.entry(r.Entry)
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP):
		s.text("nothing at " + p)
		return nil
	}
	return err
}

// execContent identifies what a step sees of an input: the selected paths, where
// all mounts of it select one and what the step does there is seen by nobody
// else; else all of it.
func (w *Worker) execContent(ctx context.Context, op *pb.ExecOp, input int, chain cache.ChainID) (cache.ContentID, error) {
	var selected []string
	for _, m := range op.Mounts {
		if m.Input != int64(input) || m.MountType == pb.MountType_SECRET || m.MountType == pb.MountType_SSH || m.MountType == pb.MountType_TMPFS {
			continue
		}
		sel := path.Join("/", m.Selector)
		private := m.Output == int64(pb.SkipOutput) || m.Readonly
		if m.Dest == pb.RootMount || sel == "/" || !private || m.ContentCache == pb.MountContentCache_OFF {
			return chainContent(chain), nil
		}
		selected = append(selected, sel)
	}
	root, err := w.state(ctx, nil, chain)
	if err != nil {
		return cache.ContentID{}, err
	}
	s := newSum("selectors")
	for _, sel := range selected {
		if err := w.at(s, root, sel); err != nil {
			return cache.ContentID{}, err
		}
	}
	return s.id(), nil
}
