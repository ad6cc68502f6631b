package worker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/fileop"
	"github.com/moby/buildkit/solver/pb"
)

// NotFoundError says that a path that an operation reads is not in its source.
type NotFoundError = fileop.NotFoundError

// Content identifies what a job sees of one of its inputs: the chain, or, where it
// reads some paths of it only, what is there. What has to be pulled for that is
// pulled with the logins of those who want the job.
func (w *Worker) Content(ctx context.Context, job *solver.Job, input int) (cache.ContentID, error) {
	v, chain := job.Vertex, job.Inputs[input]
	id, err := w.content(v.Op(), input, chain, func() (tree.Entry, error) { return w.state(ctx, job, chain) })
	var missing *NotFoundError
	if errors.As(err, &missing) && w.debugging(job) {
		err = &StepError{Vertex: v, Subject: SubjectInput, Index: input, Inputs: []cache.ChainID{chain}, Err: err}
	}
	return id, err
}

// content is Content, with the state of the chain from a function that is called
// where the op does not see all of it.
func (w *Worker) content(op *pb.Op, input int, chain cache.ChainID, state func() (tree.Entry, error)) (cache.ContentID, error) {
	if seesAll(op, input) {
		return chainContent(chain), nil
	}
	root, err := state()
	if err != nil {
		return cache.ContentID{}, err
	}
	switch op := op.Op.(type) {
	case *pb.Op_File:
		return w.fileContent(op.File, input, chain, root)
	case *pb.Op_Exec:
		return w.execContent(op.Exec, input, root)
	}
	return chainContent(chain), nil
}

// seesAll says whether an op sees all of an input: a file operation of which an
// action stands on it; a step, unless all its mounts of it select a path and what
// it does there is seen by nobody else; and any other op.
func seesAll(op *pb.Op, input int) bool {
	switch op := op.Op.(type) {
	case *pb.Op_File:
		for _, a := range op.File.Actions {
			if a.Input == int64(input) {
				return true
			}
		}
		return false
	case *pb.Op_Exec:
		for _, m := range op.Exec.Mounts {
			if !reads(m, input) {
				continue
			}
			private := m.Output == int64(pb.SkipOutput) // what is read-only may be handed on whole
			if m.Dest == pb.RootMount || path.Join("/", m.Selector) == "/" || !private || m.ContentCache == pb.MountContentCache_OFF {
				return true
			}
		}
		return false
	}
	return true
}

// reads says whether a mount brings an input into a step.
func reads(m *pb.Mount, input int) bool {
	switch m.MountType {
	case pb.MountType_SECRET, pb.MountType_SSH, pb.MountType_TMPFS:
		return false
	}
	return m.Input == int64(input)
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

// fileContent identifies what a file operation sees of an input whose state is
// root and of which it does not see all: what copies take from it, and the files
// in which owners are looked up.
func (w *Worker) fileContent(op *pb.FileOp, input int, chain cache.ChainID, root tree.Entry) (cache.ContentID, error) {
	s := newSum("paths")
	for _, a := range op.Actions {
		if c := a.GetCopy(); c != nil && a.SecondaryInput == int64(input) {
			err := w.copied(s, root, c)
			var missing *NotFoundError
			if errors.As(err, &missing) {
				missing.Late = chain == (cache.ChainID{}) // BuildKit does not look into what has no layers before
			}
			if err != nil {
				return cache.ContentID{}, checksumError(root, err)
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

// checksumError says in BuildKit's words, for which tools look, that what an operation
// reads of a state could not be identified.
func checksumError(root tree.Entry, err error) error {
	id := root.ID()
	return fmt.Errorf("failed to compute cache key: failed to calculate checksum of ref %x: %w", id[:6], err)
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
	case notThere(err):
		s.text("nothing at " + p)
		return nil
	}
	return err
}

// execContent identifies what a step sees of an input of which it does not see
// all: the selected paths.
func (w *Worker) execContent(op *pb.ExecOp, input int, root tree.Entry) (cache.ContentID, error) {
	s := newSum("selectors")
	for _, m := range op.Mounts {
		if !reads(m, input) {
			continue
		}
		if err := w.at(s, root, path.Join("/", m.Selector)); err != nil {
			return cache.ContentID{}, err
		}
	}
	return s.id(), nil
}
