package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/worker/executor/internal/launch"
)

// ociShared is a runtime's container that others may enter, from when its runtime was
// started until that has ended.
type ociShared struct {
	id       string // in the runtime's words
	root     rootDir
	proxied  bool
	ended    <-chan struct{}
	entering sync.WaitGroup
}

// share lets others enter the run's container. stop ends that.
func (r *ociRun) share(ended <-chan struct{}) (stop func(), err error) {
	s := &ociShared{id: r.id, proxied: r.s.Proxy != nil, ended: ended}
	root, err := unix.FcntlInt(uintptr(r.root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keeping the container open: %w", err)
	}
	s.root = rootDir(root)
	r.o.mu.Lock()
	defer r.o.mu.Unlock()
	r.o.shared[r.s.ID] = s
	return func() {
		r.o.mu.Lock()
		delete(r.o.shared, r.s.ID)
		r.o.mu.Unlock()
		s.entering.Wait()
		unix.Close(int(s.root))
	}, nil
}

// Enter runs a process in a container that there is.
func (o *OCI) Enter(ctx context.Context, id string, spec Spec) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if len(spec.Args) == 0 || spec.Args[0] == "" {
		return errors.New("running a process: no program is given")
	}
	spec.Shared, spec.Proxy = false, nil
	o.mu.Lock()
	c := o.shared[id]
	if c == nil {
		o.mu.Unlock()
		return ErrNoSandbox
	}
	c.entering.Add(1)
	o.mu.Unlock()
	defer c.entering.Done()
	if c.proxied {
		spec.Env = withProxy(spec.Env)
	}
	name := fmt.Sprintf("kiln-%d-%d", os.Getpid(), o.count.Add(1))
	e := &ociEntry{
		ociRun: &ociRun{box: &box{n: o.n, s: &spec, root: c.root}, o: o, id: c.id, log: o.n.path("logs/" + name)},
		into:   c, process: o.n.path("logs/" + name + ".json"), pidFile: o.n.path("logs/" + name + ".pid"),
	}
	defer func() {
		for _, file := range []string{e.log, e.process, e.pidFile} {
			os.Remove(file)
		}
	}()
	err := e.supervise(ctx)
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return cause
	}
	return err
}

// ociEntry is a process that a runtime runs in a container that there is.
type ociEntry struct {
	*ociRun
	into             *ociShared
	process, pidFile string
}

// supervise runs the process to its end.
func (e *ociEntry) supervise(ctx context.Context) error {
	if err := e.wait(ctx); err != nil {
		return err
	}
	io, err := newStdio(e.s)
	if err != nil {
		return fmt.Errorf("making pipes: %w", err)
	}
	e.io = io
	done, h := make(chan struct{}), &handle{fd: -1}
	stop := context.AfterFunc(ctx, func() { h.end(e.n.grace, done) })
	ended := make(chan error, 1)
	go func() { ended <- e.run(h, done) }()
	err = <-ended
	stop()
	h.gone()
	io.finish()
	if e.ptmx != nil {
		e.ptmx.Close()
	}
	return err
}

// Pauses between looks at what a runtime has come to, for which there is no other way.
const (
	statePause = 10 * time.Millisecond
	pidPause   = 2 * time.Millisecond
)

// wait waits until the container runs.
func (e *ociEntry) wait(ctx context.Context) error {
	for {
		out, err := e.o.call("state", e.id).Output()
		var state struct{ Status string }
		if err == nil && json.Unmarshal(out, &state) == nil && state.Status == "running" {
			return nil
		}
		if state.Status == "stopped" {
			return ErrNoSandbox
		}
		select {
		case <-time.After(statePause):
		case <-e.into.ended:
			return ErrNoSandbox
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// run runs the runtime, on a thread that ends with the goroutine.
func (e *ociEntry) run(h *handle, done chan struct{}) error {
	defer close(done)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	defer e.n.rejoin(unix.CLONE_NEWNS)
	defer e.closeKept()
	if err := oneCgroupForm(); err != nil {
		return err
	}
	if err := e.writeProcess(); err != nil {
		return err
	}
	cmd := e.runtime("exec", "--process", e.process, "--pid-file", e.pidFile, e.id)
	if err := e.begin(cmd); err != nil {
		return err
	}
	var group sync.WaitGroup
	over := make(chan struct{})
	group.Go(func() {
		e.find(h, over) // a signal that comes before is kept for it
		e.forward(h, over)
	})
	if e.s.Started != nil {
		e.s.Started(cmd.Process.Pid)
	}
	err := cmd.Wait()
	close(over)
	group.Wait()
	return e.judge(err)
}

// writeProcess writes what the runtime is told of the process.
func (e *ociEntry) writeProcess() error {
	var err error
	if e.user, err = lookUpUser(e.root, e.s.User); err != nil {
		return err
	}
	process, err := ociProcess(e.s, e.user, e.environment())
	if err != nil {
		return err
	}
	data, err := json.Marshal(process)
	if err != nil {
		return err
	}
	return os.WriteFile(e.process, data, 0o600)
}

// find looks for the process, for signals to be sent to it. The runtime waits for it,
// so that its number is no other's while the runtime runs.
func (e *ociEntry) find(h *handle, over <-chan struct{}) {
	for {
		data, err := os.ReadFile(e.pidFile)
		if pid, perr := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && perr == nil {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				h.set(&launch.Process{Pid: pid, PidFD: fd})
			}
			return
		}
		select {
		case <-over:
			return
		case <-time.After(pidPause):
		}
	}
}

// judge says what the runtime's end means: its own failure, or the process's code.
func (e *ociEntry) judge(err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-e.into.ended:
		// The container went, and the process with it, or before it could begin.
		return &ExitError{Code: 128 + int(unix.SIGKILL)} // a runtime names no signal
	default:
	}
	if msg := e.failure(); msg != "" {
		return fmt.Errorf("running %s: %s", filepath.Base(e.o.command), msg)
	}
	return exitCode(err)
}

// exitCode makes an *ExitError of the end of a runtime that ran a process.
func exitCode(err error) error {
	var e *exec.ExitError
	if !errors.As(err, &e) {
		return err
	}
	code := e.ExitCode()
	if ws, ok := e.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	return &ExitError{Code: code}
}

// oneCgroupForm takes one of the two forms of cgroups away from the thread's mount
// namespace, where a machine has both: crun wants to see one only.
func oneCgroupForm() error {
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH)
	return nil
}
