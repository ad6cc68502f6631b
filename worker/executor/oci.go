package executor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// OCI runs processes by an OCI runtime (runc, crun, runsc) instead of kiln's own.
// Roots and mounts are put together as the native executor does, in a mount
// namespace that the runtime is started in. It is safe for concurrent use.
type OCI struct {
	n       *Native
	command string
	args    []string
	count   atomic.Int64

	mu sync.Mutex
	// shared are the containers that others may enter, by the ID of their Spec.
	shared map[string]*ociShared
}

var (
	_ Executor = (*OCI)(nil)
	_ Enterer  = (*OCI)(nil)
	_ Viewer   = (*OCI)(nil)
)

// View opens what a process sees of m.
func (o *OCI) View(m Mount) (*os.File, error) { return o.n.View(m) }

// NewOCI prepares an executor that runs processes by the program called command,
// with args before those that all runtimes know.
func NewOCI(o Options, command string, args ...string) (*OCI, error) {
	full, err := exec.LookPath(command)
	if err != nil {
		return nil, fmt.Errorf("finding OCI runtime %s: %w", command, err)
	}
	n, err := New(o)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"oci", "bundle", "logs"} {
		if err := os.MkdirAll(n.path(d), 0o700); err != nil {
			n.Close()
			return nil, err
		}
	}
	oci := &OCI{n: n, command: full, args: args, shared: map[string]*ociShared{}}
	if err := oci.sweep(); err != nil {
		n.Close()
		return nil, err
	}
	return oci, nil
}

// sweep ends the containers of a kiln that was killed: the runtime's own processes
// do not all die with it. The folder is this kiln's alone.
func (o *OCI) sweep() error {
	left, err := os.ReadDir(o.n.path("oci"))
	if err != nil {
		return err
	}
	for _, c := range left {
		if out, err := o.call("delete", "--force", c.Name()).CombinedOutput(); err != nil {
			return fmt.Errorf("deleting container %s: %w: %s", c.Name(), err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// Close frees what the executor holds. Nothing may be running.
func (o *OCI) Close() error { return o.n.Close() }

// An ociRun is one process of a runtime.
type ociRun struct {
	*box
	o   *OCI
	id  string
	log string // where the runtime says what went wrong
	std []*os.File
}

// Run runs a process to its end.
func (o *OCI) Run(ctx context.Context, s Spec) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if len(s.Args) == 0 || s.Args[0] == "" {
		return errors.New("running a step: no program is given")
	}
	id := fmt.Sprintf("kiln-%d-%d", os.Getpid(), o.count.Add(1))
	r := &ociRun{box: &box{n: o.n, s: &s}, o: o, id: id, log: o.n.path("logs/" + id)}
	defer os.Remove(r.log)
	io, err := newStdio(&s)
	if err != nil {
		return fmt.Errorf("making pipes: %w", err)
	}
	r.io = io
	before := oomKills()
	done := make(chan struct{})
	quiet := make(chan struct{}) // closed when no runtime is being called any more to end it
	stop := context.AfterFunc(ctx, func() {
		defer close(quiet)
		r.end(o.n.grace, done)
	})
	ended := make(chan error, 1)
	go func() { ended <- r.run(done) }()
	err = <-ended
	if !stop() {
		<-quiet
	}
	io.finish()
	if r.ptmx != nil {
		r.ptmx.Close()
	}
	r.removeStubs()
	left := r.distrust()
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return cause
	}
	var e *ExitError
	if errors.As(err, &e) && e.Code == 128+int(unix.SIGKILL) {
		e.OOM = oomKills() > before
	}
	if left != nil {
		return &ResidueError{Left: left, Exit: err}
	}
	return err
}

// run mounts everything and runs the runtime, on a thread that ends with the goroutine.
func (r *ociRun) run(done chan struct{}) error {
	defer close(done)
	runtime.LockOSThread()
	leave := unix.CLONE_NEWNS
	if r.s.Proxy != nil {
		leave |= unix.CLONE_NEWNET // the runtime starts in it, and with it the process
	}
	if err := unix.Unshare(leave); err != nil {
		return fmt.Errorf("making namespaces: %w", err)
	}
	defer r.n.rejoin(leave)
	defer r.closeKept()
	unix.Umask(0)
	if err := oneCgroupForm(); err != nil {
		return err
	}
	if r.s.Proxy != nil {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("setting up the loopback device: %w", err)
		}
		if err := r.openProxy(); err != nil {
			return err
		}
	}
	if err := r.mountRoot(); err != nil {
		return fmt.Errorf("mounting the root: %w", err)
	}
	if err := r.trust(); err != nil {
		return fmt.Errorf("adding the proxy's certificate to the root: %w", err)
	}
	if err := r.writeBundle(); err != nil {
		return err
	}
	cmd := r.runtime("run", "--bundle", r.n.path("bundle"), r.id)
	if err := r.begin(cmd); err != nil {
		return err
	}
	ended := make(chan struct{})
	if r.s.Shared {
		stop, err := r.share(ended)
		if err != nil {
			return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
		}
		defer stop() // when it is known to those on the way in that it has ended
	}
	var forwarding sync.WaitGroup
	defer forwarding.Wait()
	defer close(ended)
	forwarding.Go(func() { r.forward(senderFunc(r.kill), ended) })
	if r.s.Started != nil {
		r.s.Started(cmd.Process.Pid)
	}
	return r.result(cmd.Wait())
}

// call prepares a call of the runtime.
func (o *OCI) call(args ...string) *exec.Cmd {
	return exec.Command(o.command, slices.Concat([]string{"--root", o.n.path("oci")}, o.args, args)...)
}

// runtime prepares a call on which it depends how the process ends: it ends with the
// thread, and has a log that failure reads.
func (r *ociRun) runtime(args ...string) *exec.Cmd {
	cmd := r.o.call(append([]string{"--log", r.log, "--log-format", "json"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	return cmd
}

// begin starts the runtime with the process's standard files.
func (r *ociRun) begin(cmd *exec.Cmd) error {
	err := r.connect(cmd)
	if err == nil {
		err = cmd.Start()
	}
	for _, f := range r.std {
		f.Close()
	}
	if err != nil {
		return fmt.Errorf("starting %s: %w", r.o.command, err)
	}
	r.io.terminal(r.ptmx)
	r.io.start(r.s)
	return nil
}

// connect gives the runtime the process's standard files.
func (r *ociRun) connect(cmd *exec.Cmd) error {
	if r.s.Terminal != nil {
		// A terminal of the host, which the runtime connects to the one that it makes.
		ptmx, tty, err := openPair(unix.AT_FDCWD, "/dev/ptmx")
		if err != nil {
			return fmt.Errorf("opening a terminal: %w", err)
		}
		r.ptmx = os.NewFile(uintptr(ptmx), "terminal")
		r.io.child = [3]int{tty, tty, tty}
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	}
	for i, fd := range r.io.child {
		if fd < 0 {
			continue
		}
		if r.user.uid != 0 {
			unix.Fchown(fd, int(r.user.uid), int(r.user.gid))
		}
		// The file is closed with the others once the runtime has it.
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(dup), "stdio")
		r.std = append(r.std, f)
		switch i {
		case 0:
			cmd.Stdin = f
		case 1:
			cmd.Stdout = f
		case 2:
			cmd.Stderr = f
		}
	}
	return nil
}

// writeBundle mounts what the spec wants mounted beside the bundle, and writes
// config.json.
func (r *ociRun) writeBundle() error {
	top, err := newMount("tmpfs", hardened&^unix.MOUNT_ATTR_NODEV, "mode=700")
	if err != nil {
		return err
	}
	r.keep(top)
	bundle := r.n.path("bundle")
	if err := unix.MoveMount(top, "", unix.AT_FDCWD, bundle, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting the bundle: %w", err)
	}
	resolv, hosts, err := r.n.names.files(r.s)
	if err != nil {
		return err
	}
	names := []string{"rbind", "ro", "nosuid", "noexec", "nodev"}
	binds := []specs.Mount{
		{Destination: "/etc/resolv.conf", Type: "bind", Source: resolv, Options: names},
		{Destination: "/etc/hosts", Type: "bind", Source: hosts, Options: names},
	}
	for i, m := range r.s.Mounts {
		b, err := r.bind(m, filepath.Join(bundle, strconv.Itoa(i)))
		if err != nil {
			return fmt.Errorf("mounting %s: %w", m.Dest, err)
		}
		binds = append(binds, b)
	}
	if r.user, err = lookUpUser(r.root, r.s.User); err != nil {
		return err
	}
	if err := r.makeCwd(); err != nil {
		return fmt.Errorf("making working folder %s: %w", r.s.Cwd, err)
	}
	spec, err := ociSpec(r.s, r.user, r.environment(), r.n.path("root"), binds)
	if err != nil {
		return err
	}
	config, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600)
}

// bind mounts m at a path of the bundle, for the runtime to bind.
func (r *ociRun) bind(m Mount, at string) (specs.Mount, error) {
	fd, _, err := r.mountSource(m)
	if err != nil {
		return specs.Mount{}, err
	}
	r.keep(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return specs.Mount{}, err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir {
		err = os.Mkdir(at, 0o755)
	} else {
		err = os.WriteFile(at, nil, 0o644)
	}
	if err != nil {
		return specs.Mount{}, err
	}
	options := []string{"rbind"}
	if m.ReadOnly {
		options = append(options, "ro")
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return specs.Mount{}, err
	}
	if err := r.prepareStub(m.Dest, isDir); err != nil {
		return specs.Mount{}, err
	}
	return specs.Mount{Destination: filepath.Join("/", m.Dest), Type: "bind", Source: at, Options: options}, nil
}

// prepareStub makes the place of a mount, so that it is known to be a stub. What
// lies inside of another mount is left to the runtime.
func (r *ociRun) prepareStub(dest string, isDir bool) error {
	for _, m := range r.s.Mounts {
		if strings.HasPrefix(filepath.Join("/", dest), filepath.Join("/", m.Dest)+"/") {
			return nil
		}
	}
	if fd, err := r.root.find(dest); err == nil {
		return unix.Close(fd)
	}
	at, err := r.root.resolve(dest)
	if err != nil {
		return err
	}
	return r.makeStub(at, isDir, r.s.StubsRecursive)
}

// result reads what the runtime's end says: its own failure, or the process's code.
func (r *ociRun) result(err error) error {
	if out, derr := r.runtime("delete", "--force", r.id).CombinedOutput(); derr != nil && !bytes.Contains(out, []byte("not exist")) && len(out) > 0 {
		err = errors.Join(err, fmt.Errorf("deleting container %s: %s", r.id, bytes.TrimSpace(out)))
	}
	if err == nil {
		return nil
	}
	if msg := r.failure(); msg != "" {
		return fmt.Errorf("running %s: %s", filepath.Base(r.o.command), msg)
	}
	return exitCode(err)
}

// failure reads the last error of the runtime's log.
func (r *ociRun) failure() string {
	b, err := os.ReadFile(r.log)
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(string(b)) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Level == "error" && !strings.Contains(entry.Msg, "does not exist") {
			last = entry.Msg
		}
	}
	return last
}

func (r *ociRun) kill(s syscall.Signal) {
	r.o.call("kill", r.id, strconv.Itoa(int(s))).Run() // it may have ended, which is what was wanted
}

// end kills the process, as handle.end does. The runtime may not have come so far
// as to make it yet.
func (r *ociRun) end(grace time.Duration, done <-chan struct{}) {
	if grace > 0 {
		r.kill(unix.SIGTERM)
		select {
		case <-time.After(grace):
		case <-done:
			return
		}
	}
	for {
		r.kill(unix.SIGKILL)
		select {
		case <-done:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
