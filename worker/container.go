package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/moby/buildkit/solver/pb"
)

// ContainerSpec says what the processes of a container see.
type ContainerSpec struct {
	Mounts     []ContainerMount // one is at "/"
	Network    pb.NetMode
	Hostname   string
	ExtraHosts []*pb.HostIP
	// Platform is what its programs are for; nil is this machine's.
	Platform *pb.Platform
}

// ContainerMount is a mount of a container. Its Input and Output say nothing: what
// is mounted is Chain, and what is written there vanishes with the container.
type ContainerMount struct {
	*pb.Mount
	Chain cache.ChainID
}

// Container is a file system, with what is mounted in it, in which processes of a
// build run that belong to no vertex. The first one makes the sandbox, those that
// follow enter it, and all end with the first. It is safe for concurrent use.
type Container struct {
	w       *Worker
	job     *solver.Job
	spec    ContainerSpec
	mounted *mounted
	id      string // of the sandbox

	ctx     context.Context // ends with the container
	cancel  context.CancelCauseFunc
	up      chan struct{} // closed when the first process runs, or will not
	running sync.WaitGroup

	mu      sync.Mutex // guards what is below
	state   containerState
	first   bool // whether a process was started
	current int  // how many processes run
}

// containerState says what a container is fit for.
type containerState int

const (
	containerOpen     containerState = iota // until Release
	containerReleased                       // takes no more processes
)

// ErrReleased is the error of a process whose container was released. It is a
// context.Canceled.
var ErrReleased = fmt.Errorf("the container was released: %w", context.Canceled)

// NewContainer makes a container for a build. ctx is its life as well: when it
// ends, so do the processes. It holds files and mounts until Release.
func (w *Worker) NewContainer(ctx context.Context, session solver.SessionID, spec ContainerSpec) (*Container, error) {
	c := &Container{w: w, spec: spec, up: make(chan struct{})}
	op := &pb.ExecOp{Meta: &pb.Meta{}}
	// What prepares mounts asks the vertex how it treats caches: as one of no wishes.
	like := llb.Exec{Meta: &pb.Meta{Args: []string{"container"}}, Mounts: []llb.Mount{llb.BindWritable(llb.Edge{}, "", pb.RootMount, false)}}
	v, err := like.Vertex()
	if err != nil {
		return nil, err
	}
	c.job = &solver.Job{
		Vertex:   v,
		Lease:    w.cache.Lease(),
		Sessions: func() []solver.SessionID { return []solver.SessionID{session} },
		Log:      func(int) io.Writer { return io.Discard },
		Progress: func(solver.Progress) {},
		Warn:     func(string) {},
	}
	for _, m := range spec.Mounts {
		mnt := m.Mount.CloneVT()
		mnt.Input, mnt.Output = int64(pb.Empty), int64(pb.SkipOutput)
		if m.Chain != (cache.ChainID{}) {
			c.job.Lease.Hold(m.Chain)
			mnt.Input = int64(len(c.job.Inputs))
			c.job.Inputs = append(c.job.Inputs, m.Chain)
		}
		op.Mounts = append(op.Mounts, mnt)
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	if c.mounted, err = w.mount(c.ctx, c.job, op); err != nil {
		c.cancel(nil)
		c.job.Lease.Release()
		return nil, err
	}
	return c, nil
}

// ContainerProcess is a process of a container.
type ContainerProcess struct {
	Meta      *pb.Meta // Args, Env, Cwd, User and RemoveMountStubsRecursive count
	Security  pb.SecurityMode
	SecretEnv []*pb.SecretEnv

	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       *executor.Terminal // nil is no terminal
	Signals        <-chan os.Signal
	// Started is called when the first process of a container runs, or at once where
	// it is not the first, if not nil. BuildKit's client takes no more messages of one
	// process while it waits for what reads that one's output to start.
	Started func()
}

// Run runs a process to its end. A code other than 0 is an *executor.ExitError,
// the container's end an ErrReleased.
func (c *Container) Run(ctx context.Context, p ContainerProcess) error {
	first, err := c.admit()
	if err != nil {
		return err
	}
	defer c.dismiss()
	started := p.Started
	if started == nil {
		started = func() {}
	}
	if !first {
		started()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })()
	isUp := sync.OnceFunc(func() { close(c.up) })
	if first {
		defer isUp()
	}
	spec, err := c.process(ctx, p)
	if err != nil {
		return err
	}
	if first {
		c.id = spec.ID
		spec.Shared = true
		spec.Root, spec.Mounts = c.mounted.root, c.mounted.mounts
		spec.Started = func(int) {
			isUp()
			started()
		}
		way, err := c.w.proxied(c.job, &pb.ExecOp{Network: c.spec.Network}, &spec)
		if err != nil {
			return err
		}
		defer tell(way, io.Discard)
		return c.w.exec.Run(ctx, spec)
	}
	select {
	case <-c.up:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	enterer, ok := c.w.exec.(executor.Enterer)
	if !ok {
		return errors.New("this worker runs one process in a container")
	}
	return enterer.Enter(ctx, c.id, spec)
}

// Done is closed when the container ends.
func (c *Container) Done() <-chan struct{} { return c.ctx.Done() }

// admit counts a process in, and says whether it is the first.
func (c *Container) admit() (first bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != containerOpen {
		return false, ErrReleased
	}
	first = !c.first
	c.first = true
	c.current++
	c.running.Add(1)
	return first, nil
}

func (c *Container) dismiss() {
	c.mu.Lock()
	c.current--
	c.mu.Unlock()
	c.running.Done()
}

// process makes the spec of a process, all but the sandbox.
func (c *Container) process(ctx context.Context, p ContainerProcess) (executor.Spec, error) {
	meta := p.Meta.CloneVT()
	meta.Hostname, meta.ExtraHosts = c.spec.Hostname, c.spec.ExtraHosts
	op := &pb.ExecOp{Meta: meta, Network: c.spec.Network, Security: p.Security}
	if p.Security != pb.SecurityMode_SANDBOX && p.Security != pb.SecurityMode_INSECURE {
		return executor.Spec{}, fmt.Errorf("invalid security mode %d", p.Security)
	}
	if err := entitled(c.w.of(c.job), op); err != nil {
		return executor.Spec{}, err
	}
	if c.spec.Platform.GetOS() == "windows" && !slices.ContainsFunc(meta.Env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		meta.Env = append(meta.Env, "PATH="+windowsPath)
	}
	spec, err := processSpec(op)
	if err != nil {
		return spec, err
	}
	env, err := c.w.secretEnv(ctx, c.job, p.SecretEnv)
	if err != nil {
		return spec, err
	}
	spec.Env = append(spec.Env, env...)
	spec.Stdin, spec.Stdout, spec.Stderr = p.Stdin, p.Stdout, p.Stderr
	spec.Terminal, spec.Signals = p.Terminal, p.Signals
	return spec, nil
}

// windowsPath is PATH for programs of Windows, where their environment has none.
const windowsPath = `c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0`

// Files gives what the processes see of a mount, by its place in the spec, as it is
// now. What is mounted inside of it is not in it.
func (c *Container) Files(mount int) (*Files, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != containerOpen {
		return nil, ErrReleased
	}
	if mount < 0 || mount >= len(c.mounted.seen) {
		return nil, fmt.Errorf("mount index %d is out of bounds (%d available)", mount, len(c.mounted.seen))
	}
	viewer, ok := c.w.exec.(executor.Viewer)
	if !ok {
		return nil, errors.New("this worker shows no files of containers")
	}
	seen := c.mounted.seen[mount]
	if seen.Dest == "" {
		return nil, fmt.Errorf("mount %d holds nothing", mount)
	}
	root, err := viewer.View(seen)
	if err != nil {
		return nil, err
	}
	return &Files{root: root}, nil
}

// Release ends the processes and frees what the container holds. Its error is
// ErrReleased where a process was still running.
func (c *Container) Release() error {
	c.mu.Lock()
	if c.state == containerReleased {
		c.mu.Unlock()
		return nil
	}
	c.state = containerReleased
	left := c.current
	c.mu.Unlock()
	c.cancel(ErrReleased)
	c.running.Wait()
	c.mounted.release()
	c.job.Lease.Release()
	if left > 0 {
		return ErrReleased
	}
	return nil
}
