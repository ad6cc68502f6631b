package worker

import (
	"context"
	"io"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/moby/buildkit/solver/pb"
)

// Program is a process that a build needs beside its graph, a frontend for one. It
// sees a file system, and what it writes there vanishes with it.
type Program struct {
	Root    llb.Edge      // of the file system
	Chain   cache.ChainID // what Root came to
	Meta    *pb.Meta
	Network pb.NetMode

	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// RunProgram runs a program for a build to its end. A code other than 0 is a
// *ProcessError.
func (w *Worker) RunProgram(ctx context.Context, session solver.SessionID, p Program) error {
	exec := llb.Exec{Meta: p.Meta, Network: p.Network, Mounts: []llb.Mount{llb.BindWritable(p.Root, "", pb.RootMount, false)}}
	v, err := exec.Vertex()
	if err != nil {
		return err
	}
	lease := w.cache.Lease()
	defer lease.Release()
	lease.Hold(p.Chain)
	job := &solver.Job{
		Vertex: v, Inputs: []cache.ChainID{p.Chain}, Lease: lease,
		Sessions: func() []solver.SessionID { return []solver.SessionID{session} },
		Log:      func(int) io.Writer { return io.Discard },
		Progress: func(solver.Progress) {},
		Warn:     func(string) {},
	}
	op := v.Op().GetExec()
	spec, err := w.spec(job, op)
	if err != nil {
		return err
	}
	m, err := w.mount(ctx, job, op)
	if err != nil {
		return err
	}
	defer m.release()
	spec.Root, spec.Mounts = m.root, m.mounts
	spec.Stdin, spec.Stdout, spec.Stderr = p.Stdin, p.Stdout, p.Stderr
	return w.process(ctx, spec, op.Meta)
}
