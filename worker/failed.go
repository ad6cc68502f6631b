package worker

import (
	"context"
	"errors"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/fileop"
	"github.com/moby/buildkit/solver/pb"
)

// StepError is the failure of a step of a session that debugs, with what can be
// looked at afterwards. Whoever gets it holds the chains, or lets them go.
type StepError struct {
	Vertex  *llb.Vertex
	Subject Subject
	Index   int // of what Subject says
	// Inputs are what the step was given: for a process by its mounts, for a file
	// operation by its inputs. Zero is scratch, or nothing.
	Inputs []cache.ChainID
	// Left are what it made of that: for a process by its mounts, for a file
	// operation by its actions, where the one that failed stands for what it found.
	Left []cache.ChainID
	Err  error
}

// Subject is what failed in a step.
type Subject int

const (
	// SubjectStep is the step as such.
	SubjectStep Subject = iota
	// SubjectAction is an action of a file operation.
	SubjectAction
	// SubjectInput is an input, of which a part is not there that the step reads;
	// it is the only one of Inputs.
	SubjectInput
)

func (e *StepError) Error() string { return e.Err.Error() }

// Unwrap gives what went wrong.
func (e *StepError) Unwrap() error { return e.Err }

// debugging says whether a session of a job debugs; of a nil job, whether any does.
func (w *Worker) debugging(job *solver.Job) bool {
	for _, s := range w.of(job) {
		if s.Debug {
			return true
		}
	}
	return false
}

// failed keeps what a process has left, if it failed for somebody who debugs. A
// step that was cancelled is nobody's to look at, and a container is no step.
func (m *mounted) failed(ctx context.Context, op *pb.ExecOp, err error) error {
	if ctx.Err() != nil || m.job.Vertex.Op().GetExec() != op || !m.w.debugging(m.job) {
		return err
	}
	e := &StepError{Vertex: m.job.Vertex, Err: err, Inputs: make([]cache.ChainID, len(op.Mounts)), Left: make([]cache.ChainID, len(op.Mounts))}
	for i, mnt := range op.Mounts {
		if mnt.Input >= 0 && mnt.Input < int64(len(m.job.Inputs)) {
			e.Inputs[i] = m.job.Inputs[mnt.Input]
		}
		e.Left[i] = e.Inputs[i]
	}
	var missing *NotFoundError
	if last := len(m.left) - 1; errors.As(err, &missing) && last >= 0 {
		return &StepError{Vertex: m.job.Vertex, Subject: SubjectInput, Index: int(op.Mounts[last].Input), Inputs: e.Inputs[last : last+1], Err: err}
	}
	for i, o := range m.left {
		if o.upper == "" {
			continue
		}
		id, failed := m.chain(ctx, o)
		if failed != nil {
			return err // which matters more
		}
		e.Left[i] = id
		m.job.Lease.Hold(id)
	}
	return e
}

// failedAction keeps what the actions of a file operation have made, if one of
// them failed for somebody who debugs.
func (w *Worker) failedAction(job *solver.Job, run *fileop.Op, chains []cache.ChainID, err error) error {
	var action *fileop.ActionError
	if !errors.As(err, &action) || !w.debugging(job) {
		return err
	}
	op := job.Vertex.Op().GetFile()
	e := &StepError{
		Vertex: job.Vertex, Subject: SubjectAction, Index: action.Action,
		Inputs: job.Inputs, Left: make([]cache.ChainID, len(op.Actions)), Err: err,
	}
	for i := range op.Actions {
		out, ok := run.Reached(i, i == action.Action)
		if !ok {
			continue
		}
		id, failed := w.reached(run, chains, out)
		if failed != nil {
			return err
		}
		e.Left[i] = id
		job.Lease.Hold(id)
	}
	return e
}

// reached makes a chain of the state that an action came to.
func (w *Worker) reached(run *fileop.Op, chains []cache.ChainID, out fileop.Output) (cache.ChainID, error) {
	if err := keep(run, out); err != nil {
		return cache.ChainID{}, err
	}
	base, below := cache.ChainID{}, fileop.Scratch
	if out.Base >= 0 {
		base, below = chains[out.Base], run.Inputs[out.Base]
	}
	root, err := tree.Diff(w.cache, below, out.State, tree.ByAddr)
	if err != nil {
		return base, err
	}
	id, err := w.extend(base, cache.Layer{ID: cache.TreeLayerID(root), Root: root})
	if err != nil {
		return id, err
	}
	return id, w.cache.SetMerged(id, out.State)
}
