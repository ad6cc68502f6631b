package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/fileop"
	"github.com/moby/buildkit/solver/pb"
)

var _ solver.Peeker = (*Worker)(nil)

// standing are the schemes of sources whose chain is known from their pin, and for
// which nothing has to be fetched.
var standing = map[string]bool{"docker-image": true, "local": true, "oci-layout": true}

// Standing gives the chain of an image, whose layers are not fetched, or of a local folder.
func (w *Worker) Standing(ctx context.Context, job *solver.Job) (cache.ChainID, bool, error) {
	op := job.Vertex.Op().GetSource()
	if op == nil {
		return cache.ChainID{}, false, fmt.Errorf("vertex %s is no source", job.Vertex.Digest())
	}
	if !standing[schemeOf(op)] {
		return cache.ChainID{}, false, nil
	}
	outs, err := w.runSource(ctx, job, op)
	if err != nil {
		return cache.ChainID{}, false, err
	}
	return outs[0], true, nil
}

// Peek is Content, unless a layer would have to be fetched for it.
func (w *Worker) Peek(_ context.Context, job *solver.Job, input int) (cache.ContentID, bool, error) {
	chain := job.Inputs[input]
	id, err := w.content(job.Vertex.Op(), input, chain, func() (tree.Entry, error) { return w.Known(chain) })
	var packed *cache.NotUnpackedError
	var gone *cache.GoneError
	if errors.As(err, &packed) || errors.As(err, &gone) {
		return id, false, nil
	}
	return id, err == nil, err
}

// Known gives the state of a chain where nothing has to be fetched for it; it is a
// *cache.NotUnpackedError otherwise.
func (w *Worker) Known(chain cache.ChainID) (tree.Entry, error) {
	if t, err := w.localOf(nil, chain); t != nil || err != nil {
		if err != nil {
			return tree.Entry{}, err
		}
		return t.root, nil
	}
	return w.cache.Merged(chain)
}

// LocalTree gives the tree of a local folder that a session has pinned; false
// where it has not.
func (w *Worker) LocalTree(id solver.SessionID, v *llb.Vertex, pin string) (tree.Entry, bool) {
	op := v.Op().GetSource()
	if op == nil || schemeOf(op) != "local" {
		return tree.Entry{}, false
	}
	for _, s := range w.of(&solver.Job{Sessions: func() []solver.SessionID { return []solver.SessionID{id} }}) {
		for _, t := range s.trees() {
			if t.pin == pin && t.name == refOf(op) {
				return t.root, true
			}
		}
	}
	return tree.Entry{}, false
}

// Seen gives what an op sees of an input whose state is root, by path: what its
// content identity covers; all says that it is all of it. Nodes that it makes on
// the way go to n.
func Seen(n tree.Nodes, op *pb.Op, input int, root tree.Entry) (seen map[string]tree.Entry, all bool, err error) {
	seen = map[string]tree.Entry{}
	if seesAll(op, input) {
		seen[""] = root
		return seen, true, nil
	}
	at := func(p string) error {
		r, err := tree.Resolve(n, root, p, true)
		if err == nil {
			seen[r.Path] = r.Entry
		} else if !notThere(err) {
			return err
		}
		return nil
	}
	for _, m := range op.GetExec().GetMounts() {
		if !reads(m, input) {
			continue
		}
		if err := at(path.Join("/", m.Selector)); err != nil {
			return nil, false, err
		}
	}
	for _, a := range op.GetFile().GetActions() {
		if c := a.GetCopy(); c != nil && a.SecondaryInput == int64(input) {
			matches, err := fileop.Select(n, root, c)
			var missing *NotFoundError
			if err != nil && !errors.As(err, &missing) {
				return nil, false, err
			}
			for _, m := range matches {
				seen[m.Path] = m.Entry
			}
		}
		for _, f := range fileop.UserFiles(a) {
			if f.Input == int64(input) {
				if err := at(f.Path); err != nil {
					return nil, false, err
				}
			}
		}
	}
	return seen, false, nil
}

// notThere says whether a path was not found in a tree.
func notThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

func schemeOf(op *pb.SourceOp) string {
	scheme, _, _ := strings.Cut(op.Identifier, "://")
	return scheme
}
