package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
)

// maxDefinition bounds the file that a build operation reads its graph from, as
// BuildKit does: no larger one could be sent to it in a request.
const maxDefinition = 16 << 20

// Graphs solves the graphs that build operations find in what they read.
type Graphs interface {
	// BuildGraph gives what the result of def comes to. ctx is that of the job, which
	// tells the solver what waits for it; the lease holds the result.
	BuildGraph(ctx context.Context, op *llb.Vertex, lease solver.Lease, def *pb.Definition) (cache.ChainID, error)
}

// ErrSessionEnded is why a session's Graphs gave up on a graph: its build has ended. A
// build that wants it too has it solved in its place.
var ErrSessionEnded = errors.New("the build that solved a graph for a build operation has ended")

// runBuild gives what the graph comes to that is in a file of an input.
func (w *Worker) runBuild(ctx context.Context, job *solver.Job, op *pb.BuildOp) ([]cache.ChainID, error) {
	in, ok := op.Inputs[pb.LLBDefinitionInput]
	if !ok {
		return nil, fmt.Errorf("no llb definition input %s found", pb.LLBDefinitionInput)
	}
	chain, err := inputOf(job.Vertex, job.Inputs, in.Input)
	if err != nil {
		return nil, err
	}
	name := op.Attrs[pb.AttrLLBDefinitionFilename]
	if name == "" {
		name = pb.LLBDefaultDefinitionFile
	}
	data, err := w.readDefinition(ctx, job, chain, name)
	if err != nil {
		return nil, fmt.Errorf("the graph of a build operation: %w", err)
	}
	def := new(pb.Definition)
	if err := (proto.UnmarshalOptions{RecursionLimit: llb.MaxNesting}).Unmarshal(data, def); err != nil {
		return nil, fmt.Errorf("the graph of a build operation: %s is no definition: %w", name, err)
	}
	// Sessions come and go while others want the same.
	for tried := map[solver.SessionID]bool{}; ; {
		s := w.unlessTried(job, tried)
		if s == nil {
			return nil, errors.New("the build has nobody who could solve the graph of a build operation")
		}
		out, err := s.Graphs.BuildGraph(ctx, job.Vertex, job.Lease, def)
		if err == nil {
			return []cache.ChainID{out}, nil
		}
		if !errors.Is(err, ErrSessionEnded) || ctx.Err() != nil {
			return nil, err
		}
	}
}

// unlessTried gives a session of the job's that solves graphs; nil where all were tried.
func (w *Worker) unlessTried(job *solver.Job, tried map[solver.SessionID]bool) *session {
	for _, s := range w.of(job) {
		if s.Graphs != nil && !tried[s.id] {
			tried[s.id] = true
			return s
		}
	}
	return nil
}

// readDefinition reads a small file of a chain, following links inside of it.
func (w *Worker) readDefinition(ctx context.Context, job *solver.Job, chain cache.ChainID, name string) ([]byte, error) {
	wrong := func(err error) error { return &fs.PathError{Op: "open", Path: name, Err: err} }
	root, err := w.state(ctx, job, chain)
	if err != nil {
		return nil, err
	}
	found, err := tree.Resolve(w.cache, root, path.Join("/", name), true)
	if err != nil {
		if notThere(err) {
			err = wrong(fs.ErrNotExist)
		}
		return nil, err
	}
	e := found.Entry
	switch {
	case e.Kind != tree.File:
		return nil, wrong(errNotRegular)
	case e.Size > maxDefinition:
		return nil, fmt.Errorf("%s exceeds maximum allowed size of %d bytes", name, maxDefinition)
	}
	t, err := w.localOf(job, chain)
	if err != nil {
		return nil, err
	}
	if t != nil {
		b := newBringer(ctx, w.cache.Pool(), func(int) *localTree { return t })
		err := b.bring(transfer{input: 0, path: strings.TrimPrefix(found.Path, "/"), from: e, to: e})
		if err = errors.Join(err, b.settle()); err != nil {
			return nil, err
		}
	}
	f, err := w.cache.Pool().Open(e)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxDefinition))
}
