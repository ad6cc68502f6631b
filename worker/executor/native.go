package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/worker/executor/internal/cgroup"
	"github.com/kiln-build/kiln/worker/executor/internal/launch"
)

// Native is kiln's own executor. It is safe for concurrent use.
type Native struct {
	dir        string
	ownDir     bool // made by New
	grace      time.Duration
	namespaces map[int]*os.File
	userns     bool // kiln is root in a user namespace only
	setgroups  bool // and may it set groups there
	gids       []idRange
	caps       uint64
	lastCap    int
	maskedSys  []string
	kcore      bool // the kernel shows its memory as /proc/kcore
	names      *names
	cgroups    *cgroup.Manager // nil where the machine gives none

	mu sync.Mutex
	// below are the managers of the parents that running steps name (Spec.CgroupParent).
	below map[string]*parentGroup
	// shared are the sandboxes that others may enter, by the ID of their Spec.
	shared map[string]*shared
}

// parentGroup is a cgroup that steps named as the parent of theirs.
type parentGroup struct {
	*cgroup.Manager
	steps int // that run below it
}

var (
	_ Executor = (*Native)(nil)
	_ Enterer  = (*Native)(nil)
	_ Viewer   = (*Native)(nil)
)

// New prepares an executor. It needs to be root, or in a user namespace (package userns).
func New(o Options) (*Native, error) {
	n := &Native{dir: o.Dir, grace: o.Grace}
	if n.dir == "" {
		dir, err := os.MkdirTemp("", "kiln-executor-")
		if err != nil {
			return nil, fmt.Errorf("making the executor's folder: %w", err)
		}
		n.dir, n.ownDir = dir, true
	}
	err := errors.Join(n.makeDirs(), n.inspect())
	if err == nil {
		n.namespaces, err = openNamespaces()
	}
	if err == nil && !n.userns {
		n.cgroups, err = cgroup.Find(o.CgroupParent)
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("preparing the executor: %w", err)
	}
	n.names = &names{dir: n.path("names"), nameservers: o.Nameservers, search: o.SearchDomains, options: o.DNSOptions}
	return n, nil
}

// groups gives the cgroups of steps below a parent; empty is the executor's own. The
// caller calls release when its step has none any more.
func (n *Native) groups(parent string) (m *cgroup.Manager, release func(), err error) {
	if parent == "" || n.cgroups == nil {
		return n.cgroups, func() {}, nil
	}
	parent = filepath.Join("/", parent) // ".." leads nowhere above the tree's root
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.below[parent]
	if p == nil {
		found, err := cgroup.Find(parent)
		if err != nil {
			return nil, nil, err
		}
		if found == nil {
			return nil, nil, fmt.Errorf("no cgroup can be made below %s", parent)
		}
		p = &parentGroup{Manager: found}
		if n.below == nil {
			n.below = make(map[string]*parentGroup)
		}
		n.below[parent] = p
	}
	p.steps++
	return p.Manager, func() { n.leave(parent, p) }, nil
}

// leave ends a step's use of a parent. The last one's ends the parent, which clients name
// as they like, and many of them.
func (n *Native) leave(parent string, p *parentGroup) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.steps--; p.steps == 0 {
		delete(n.below, parent)
		p.Close()
	}
}

// Close frees what the executor holds. Nothing may be running.
func (n *Native) Close() error {
	for _, f := range n.namespaces {
		f.Close()
	}
	n.cgroups.Close()
	if n.ownDir {
		return os.RemoveAll(n.dir)
	}
	return nil
}

func (n *Native) path(name string) string { return filepath.Join(n.dir, name) }

// makeDirs makes the folders in which sandboxes are put together: places for
// mounts, which exist in the sandboxes' mount namespaces only, and the layer that
// lies at the bottom of every root and holds the mount points of the standard mounts.
func (n *Native) makeDirs() error {
	abs, err := filepath.Abs(n.dir)
	if err != nil {
		return err
	}
	n.dir = abs
	for _, d := range []string{"", "root", "stage", "links", "names", "empty", "bottom", "bottom/dev", "bottom/proc", "bottom/sys", "bottom/etc"} {
		if err := os.MkdirAll(n.path(d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{"bottom/etc/hosts", "bottom/etc/resolv.conf"} {
		if err := os.WriteFile(n.path(f), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// inspect finds out what this process may do.
func (n *Native) inspect() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	n.caps = uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return err
	}
	if n.lastCap, err = strconv.Atoi(strings.TrimSpace(string(last))); err != nil {
		return fmt.Errorf("reading the last capability: %w", err)
	}
	if n.caps&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return errors.New("steps need root, or a user namespace")
	}
	if n.userns, err = inUserNamespace(); err != nil {
		return err
	}
	if n.gids, err = readIDMap("/proc/self/gid_map"); err != nil {
		return err
	}
	deny, err := os.ReadFile("/proc/self/setgroups")
	n.setgroups = err != nil || strings.TrimSpace(string(deny)) != "deny"

	n.maskedSys = maskedSys()
	_, err = os.Lstat("/proc/kcore")
	n.kcore = err == nil
	return nil
}

// maskedSys are the folders of /sys that tell too much of the host, as docker has them.
func maskedSys() []string {
	list := []string{"firmware", "devices/virtual/powercap"}
	throttles, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle") // the pattern is sound
	for _, t := range throttles {
		list = append(list, strings.TrimPrefix(t, "/sys/"))
	}
	return list
}

// An idRange is a line of an id map: ids inside, ids outside, how many.
type idRange struct{ inside, outside, count uint64 }

func readIDMap(name string) ([]idRange, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var list []idRange
	for line := range strings.Lines(string(b)) {
		var r idRange
		if _, err := fmt.Sscan(line, &r.inside, &r.outside, &r.count); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		list = append(list, r)
	}
	return list, nil
}

func inUserNamespace() (bool, error) {
	m, err := readIDMap("/proc/self/uid_map")
	if err != nil {
		return false, err
	}
	return len(m) != 1 || m[0] != idRange{0, 0, 1<<32 - 1}, nil
}

// mapped says whether a group exists in this user namespace.
func (n *Native) mapped(gid uint64) bool {
	for _, r := range n.gids {
		if gid >= r.inside && gid-r.inside < r.count {
			return true
		}
	}
	return false
}

// Run runs a process to its end.
func (n *Native) Run(ctx context.Context, s Spec) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if len(s.Args) == 0 || s.Args[0] == "" {
		return errors.New("running a step: no program is given")
	}
	if s.Hooks != nil {
		return errors.New("its device needs hooks, which an OCI runtime runs: name one in the configuration (worker.oci.binary), runc for one")
	}
	b := &box{n: n, s: &s}
	cgroups, release, err := n.groups(s.CgroupParent)
	if err != nil {
		return err
	}
	defer release()
	if cgroups != nil {
		g, err := cgroups.Create(s.ID, cgroup.Limits{
			Memory: s.Resources.Memory, MemorySwap: s.Resources.MemorySwap,
			CPUShares: s.Resources.CPUShares, CPUPeriod: s.Resources.CPUPeriod, CPUQuota: s.Resources.CPUQuota,
			CPUs: s.Resources.CPUSetCPUs, Mems: s.Resources.CPUSetMems, PIDs: s.Resources.PIDs,
			Devices: cgroupDevices(s.Devices), Count: s.Measure != nil && s.Measure.Fully,
		}, s.Insecure)
		if err != nil {
			return fmt.Errorf("making a cgroup: %w", err)
		}
		b.group = g
	}
	b.nodev = !s.Insecure && (b.group == nil || !b.group.RestrictsDevices())
	counted := b.group != nil && b.group.CountsOOM()
	var before uint64
	if !counted {
		before = oomKills()
	}
	measured := b.measure()
	ws, err := b.supervise(ctx)
	measured()
	oom := counted && b.group.OOM() || !counted && killed(ws) && oomKills() > before
	if b.group != nil {
		if derr := b.group.Delete(); err == nil && derr != nil {
			err = derr
		}
	}
	b.removeStubs()
	left := b.distrust()
	if cause := context.Cause(ctx); cause != nil && (err != nil || ws != 0) {
		return cause
	}
	if err != nil {
		return explainStart(&s, err)
	}
	if err = exitError(ws, oom); left != nil {
		return &ResidueError{Left: left, Exit: err}
	}
	return err
}

// killed says whether a process, or the shell that waited for one, was killed.
func killed(ws unix.WaitStatus) bool {
	return ws.Signaled() && ws.Signal() == unix.SIGKILL || ws.ExitStatus() == 128+int(unix.SIGKILL)
}

func exitError(ws unix.WaitStatus, oom bool) error {
	switch {
	case ws.Signaled():
		return &ExitError{Code: 128 + int(ws.Signal()), Signal: ws.Signal(), OOM: oom}
	case ws.ExitStatus() != 0:
		return &ExitError{Code: ws.ExitStatus(), OOM: oom}
	}
	return nil
}

// supervise runs the process and passes on what comes for it: signals, sizes of
// the terminal, the end of ctx.
func (b *box) supervise(ctx context.Context) (unix.WaitStatus, error) {
	io, err := newStdio(b.s)
	if err != nil {
		return 0, fmt.Errorf("making pipes: %w", err)
	}
	b.io = io
	var group sync.WaitGroup
	done := make(chan struct{})
	h := &handle{fd: -1}
	stop := context.AfterFunc(ctx, func() { h.end(b.n.grace, done) })
	defer stop()

	type result struct {
		ws  unix.WaitStatus
		err error
	}
	ended := make(chan result, 1)
	go func() {
		ws, err := b.run(func(p *launch.Process) {
			h.set(p)
			b.io.terminal(b.ptmx)
			b.io.start(b.s)
			group.Go(func() { b.forward(h, done) })
		}, func() {
			if b.opened != nil {
				b.n.share(b.s.ID, b.opened, h)
			}
			if b.s.Started != nil {
				b.s.Started(h.pid)
			}
		})
		h.gone()
		if b.opened != nil {
			b.n.unshare(b.s.ID, b.opened)
		}
		ended <- result{ws, err}
	}()
	r := <-ended
	close(done)
	group.Wait()
	b.io.finish()
	if b.ptmx != nil {
		b.ptmx.Close()
	}
	return r.ws, r.err
}

// A sender sends signals to a process.
type sender interface{ signal(s syscall.Signal) }

type senderFunc func(s syscall.Signal)

func (f senderFunc) signal(s syscall.Signal) { f(s) }

// forward sends signals and terminal sizes until the process has ended.
func (b *box) forward(to sender, done <-chan struct{}) {
	var resize <-chan WindowSize
	if b.s.Terminal != nil {
		resize = b.s.Terminal.Resize
	}
	signals := b.s.Signals
	for {
		select {
		case <-done:
			return
		case sig, ok := <-signals:
			if !ok {
				signals = nil
			} else if s, ok := sig.(syscall.Signal); ok {
				to.signal(s)
			}
		case size, ok := <-resize:
			if !ok {
				resize = nil
			} else if b.ptmx != nil {
				raw, err := b.ptmx.SyscallConn()
				if err == nil {
					raw.Control(func(fd uintptr) {
						unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
					})
				}
			}
		}
	}
}

// A handle sends signals to a process that may not have begun, or may have ended.
type handle struct {
	mu     sync.Mutex
	fd     int // pidfd; -1 is no process
	pid    int
	killed bool
}

func (h *handle) set(p *launch.Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fd, h.pid = p.PidFD, p.Pid
	if h.killed {
		unix.PidfdSendSignal(h.fd, unix.SIGKILL, nil, 0)
	}
}

func (h *handle) gone() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd >= 0 {
		unix.Close(h.fd)
		h.fd = -1
	}
}

func (h *handle) signal(s syscall.Signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s == unix.SIGKILL {
		h.killed = true
	}
	if h.fd >= 0 {
		unix.PidfdSendSignal(h.fd, s, nil, 0)
	}
}

// end kills the process: at once, or after a while in which it may end by itself.
func (h *handle) end(grace time.Duration, done <-chan struct{}) {
	if grace > 0 {
		h.signal(unix.SIGTERM)
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-t.C:
		case <-done:
			return
		}
	}
	h.signal(unix.SIGKILL)
}

func cgroupDevices(given []Device) []cgroup.Device {
	var out []cgroup.Device
	for _, d := range given {
		out = append(out, cgroup.Device{Block: d.Block, Major: d.Major, Minor: d.Minor, Access: d.Access})
	}
	return out
}
