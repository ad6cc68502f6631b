package kiln

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/moby/buildkit/solver/pb"
)

// FailedStep is a step that failed, while what it left can be looked at: until the
// function that it was handed to (Request.OnError) returns.
type FailedStep struct {
	// Name is what progress calls the step, and Err how it failed.
	Name string
	Err  error

	build *build
	step  *worker.StepError
}

// shells are the programs that Shell looks for in a step's file system.
var shells = []string{"/bin/bash", "/bin/sh", "/bin/ash", "/busybox/sh"}

// Shell runs a shell where the step failed: on its file system as it is now, with
// its mounts, environment, working folder, user, network and privileges, in a
// terminal that in types into. What it writes is gone afterwards, but for what it
// writes to cache mounts. A code other than 0 is an *executor.ExitError.
func (f *FailedStep) Shell(ctx context.Context, in io.Reader, out io.Writer, resize <-chan executor.WindowSize) error {
	spec, process, err := f.process()
	if err != nil {
		return err
	}
	c, err := f.build.engine.worker.NewContainer(ctx, f.build.session, spec)
	if err != nil {
		return fmt.Errorf("mounting what %s left: %w", f.Name, err)
	}
	defer c.Release()
	shell, err := findShell(ctx, c, spec)
	if err != nil {
		return err
	}
	process.Meta.Args = []string{shell}
	process.Stdin, process.Stdout, process.Terminal = in, out, &executor.Terminal{Resize: resize}
	return c.Run(ctx, process)
}

// process says what a process sees that takes the step's place.
func (f *FailedStep) process() (worker.ContainerSpec, worker.ContainerProcess, error) {
	op := f.step.Vertex.Op()
	spec := worker.ContainerSpec{Platform: op.Platform}
	p := worker.ContainerProcess{Meta: &pb.Meta{Cwd: "/"}}
	exec := op.GetExec()
	switch {
	case f.step.Subject == worker.SubjectInput:
		spec.Mounts = []worker.ContainerMount{{Mount: &pb.Mount{Dest: pb.RootMount}, Chain: f.step.Inputs[0]}}
	case f.step.Subject == worker.SubjectAction:
		spec.Mounts = []worker.ContainerMount{{Mount: &pb.Mount{Dest: pb.RootMount}, Chain: f.step.Left[f.step.Index]}}
	case exec != nil:
		p.Meta, p.Security, p.SecretEnv = exec.Meta.CloneVT(), exec.Security, exec.Secretenv
		spec.Network, spec.Hostname, spec.ExtraHosts = exec.Network, exec.Meta.Hostname, exec.Meta.ExtraHosts
		for i, m := range exec.Mounts {
			m = m.CloneVT()
			m.Dest = path.Join("/", dirOf(m.Dest, exec.Meta.Cwd), m.Dest)
			spec.Mounts = append(spec.Mounts, worker.ContainerMount{Mount: m, Chain: f.step.Left[i]})
		}
	default:
		return spec, p, errors.New("the step is none that can be entered")
	}
	return spec, p, nil
}

// dirOf gives what a mount's place is relative to.
func dirOf(dest, cwd string) string {
	if path.IsAbs(dest) {
		return "/"
	}
	return cwd
}

// findShell finds a shell in the root of a container.
func findShell(ctx context.Context, c *worker.Container, spec worker.ContainerSpec) (string, error) {
	root := slices.IndexFunc(spec.Mounts, func(m worker.ContainerMount) bool { return m.Dest == pb.RootMount })
	files, err := c.Files(root)
	if err != nil {
		return "", err
	}
	defer files.Close()
	for _, s := range shells {
		if info, err := files.Stat(ctx, s); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return s, nil
		}
	}
	return "", fmt.Errorf("there is no shell in what the step left (%v)", shells)
}

// tell hands a failed step to whoever wants to look at it.
func (b *build) tell(ctx context.Context, r *Request, err error) {
	var failed *worker.StepError
	if r.OnError == nil || ctx.Err() != nil || !errors.As(err, &failed) {
		return
	}
	r.OnError(ctx, &FailedStep{Name: failed.Vertex.Name(), Err: failed.Err, build: b, step: failed})
}

var _ frontend.Ref = (*worker.Files)(nil)
