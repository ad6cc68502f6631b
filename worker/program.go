package worker

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/moby/buildkit/solver/pb"
)

// Program is a process that a build needs beside its graph, a frontend for one. It
// sees a file system, and what it writes there vanishes with it.
type Program struct {
	Root    llb.Edge // of the file system
	Meta    *pb.Meta
	Network pb.NetMode
	// Metadata are files below MetadataDir, by name.
	Metadata map[string][]byte

	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// MetadataDir is where frontends find what they are told in files.
const MetadataDir = "/run/config/buildkit/metadata"

// RunProgram runs a program for a build to its end, on the chain that its root came
// to. A code other than 0 is a *ProcessError.
func (w *Worker) RunProgram(ctx context.Context, session solver.SessionID, chain cache.ChainID, p Program) error {
	exec := llb.Exec{Meta: p.Meta, Network: p.Network, Mounts: []llb.Mount{llb.BindWritable(p.Root, "", pb.RootMount, false)}}
	v, err := exec.Vertex()
	if err != nil {
		return err
	}
	lease := w.cache.Lease()
	defer lease.Release()
	lease.Hold(chain)
	job := &solver.Job{
		Vertex: v, Inputs: []cache.ChainID{chain}, Lease: lease,
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
	if len(p.Metadata) > 0 {
		dir := filepath.Join(m.dir, "metadata")
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		for name, data := range p.Metadata {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o444); err != nil {
				return err
			}
		}
		spec.Mounts = append(spec.Mounts, executor.Mount{Dest: MetadataDir, Source: dir, ReadOnly: true})
	}
	spec.Stdin, spec.Stdout, spec.Stderr = p.Stdin, p.Stdout, p.Stderr
	way, err := w.proxied(job, op, &spec)
	if err != nil {
		return err
	}
	err = w.process(ctx, spec, op.Meta)
	tell(way, io.Discard)
	return err
}
