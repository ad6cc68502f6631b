package executor

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/worker/executor/internal/cgroup"
	"github.com/kiln-build/kiln/worker/executor/internal/launch"
)

// shared is a sandbox that others may enter, from when its first process runs
// until that has ended. Its descriptors are open as long as somebody is on the
// way in.
type shared struct {
	first      *handle
	namespaces int // those that the first process does not share with the host
	group      *cgroup.Group
	proxied    bool // its network has a proxy
	root       rootDir
	pts, null  int
	entering   sync.WaitGroup
}

// open keeps what others need to enter the sandbox.
func (b *box) open() error {
	s := &shared{group: b.group, proxied: b.s.Proxy != nil, namespaces: unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if b.s.ownNetwork() {
		s.namespaces |= unix.CLONE_NEWNET
	}
	if b.group != nil {
		s.namespaces |= unix.CLONE_NEWCGROUP
	}
	null, err := b.openNull()
	if err != nil {
		return err
	}
	// They outlive this start: what the sandbox's processes make of their root and
	// of /dev changes nothing of what these lead to.
	for _, d := range []struct {
		from int
		to   *int
	}{{int(b.root), (*int)(&s.root)}, {b.pts, &s.pts}, {null, &s.null}} {
		if *d.to, err = unix.FcntlInt(uintptr(d.from), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			s.close()
			return fmt.Errorf("keeping the sandbox open: %w", err)
		}
	}
	b.opened = s
	return nil
}

func (s *shared) close() {
	for _, fd := range []int{int(s.root), s.pts, s.null} {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

// share lets others enter, now that the first process has left the host's root.
func (n *Native) share(id string, s *shared, first *handle) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s.first = first
	if n.shared == nil {
		n.shared = make(map[string]*shared)
	}
	n.shared[id] = s
}

// unshare ends that, and waits for those on the way in.
func (n *Native) unshare(id string, s *shared) {
	n.mu.Lock()
	if n.shared[id] == s {
		delete(n.shared, id)
	}
	n.mu.Unlock()
	s.entering.Wait()
	s.close()
}

// Enter runs a process in a sandbox that there is.
func (n *Native) Enter(ctx context.Context, id string, spec Spec) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if len(spec.Args) == 0 || spec.Args[0] == "" {
		return errors.New("running a process: no program is given")
	}
	spec.Shared = false
	n.mu.Lock()
	s := n.shared[id]
	if s == nil {
		n.mu.Unlock()
		return ErrNoSandbox
	}
	s.entering.Add(1)
	n.mu.Unlock()
	if s.proxied {
		spec.Env = withProxy(spec.Env)
	}
	b := &box{n: n, s: &spec, into: s, entered: sync.OnceFunc(s.entering.Done), group: s.group}
	defer b.entered()
	ws, err := b.supervise(ctx)
	if cause := context.Cause(ctx); cause != nil && (err != nil || ws != 0) {
		return cause
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOMEM) {
		// There is nobody any more whose namespaces could be joined, or the pid
		// namespace takes no more processes.
		return fmt.Errorf("%w (%w)", ErrNoSandbox, err)
	}
	if err != nil {
		return explainStart(&spec, err)
	}
	return exitError(ws, false)
}

// enter forks a process into the sandbox. The goroutine must be locked to its
// thread, which must end with it: what the thread forks from here on belongs there.
func (b *box) enter() (*launch.Process, error) {
	defer b.entered()
	defer b.closeKept()
	b.root = b.into.root
	var err error
	if b.user, err = lookUpUser(b.root, b.s.User); err != nil {
		return nil, err
	}
	if err := b.n.canBecome(b.user); err != nil {
		return nil, err
	}
	if b.s.Terminal != nil {
		if err := b.openTerminal(b.into.pts); err != nil {
			return nil, fmt.Errorf("opening a terminal: %w", err)
		}
	}
	pidfd, err := b.into.first.dup()
	if err != nil {
		return nil, err
	}
	b.proc = b.keep(pidfd)
	if err := unix.Setns(pidfd, unix.CLONE_NEWPID); err != nil {
		return nil, fmt.Errorf("joining the sandbox's processes: %w", err)
	}
	return b.fork()
}

// dup gives another descriptor of the process.
func (h *handle) dup() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd < 0 {
		return -1, ErrNoSandbox
	}
	return unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
}

// entry lists what a process does that enters. It joins the namespaces itself, so
// that no thread of kiln's ever has a container's root; until it has given its
// privileges away nothing inside may trace it or look at its files, since it holds
// capabilities that nothing inside has.
func (b *box) entry() (*launch.Program, []uintptr, error) {
	p := &launch.Program{}
	files := []uintptr{uintptr(b.proc)}
	p.Call("closing files", unix.SYS_CLOSE_RANGE, launch.Int(3), launch.Int(^uint32(0)), launch.Int(uint32(unix.CLOSE_RANGE_CLOEXEC)))
	if b.group != nil {
		for i, fd := range b.group.Joins() {
			files = append(files, uintptr(fd))
			p.Call("joining a cgroup", unix.SYS_WRITE, launch.File(1+i), p.String("0"), launch.Int(1))
		}
	}
	p.Call("entering the sandbox", unix.SYS_SETNS, launch.File(0), launch.Int(b.into.namespaces))
	return p, files, b.become(p)
}
