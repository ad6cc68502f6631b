package executor

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/worker/executor/internal/cgroup"
	"github.com/kiln-build/kiln/worker/executor/internal/launch"
)

// A box is one process's sandbox while it is set up.
//
// It is set up by a thread of kiln's own that leaves the host's namespaces for
// new ones: there it mounts everything, and forks the process, which finds all
// but its own /proc in place. Then the thread goes back, and the namespaces live
// as long as the process does. So no mount is ever made in the host's mount
// namespace, and none can be left there, whatever becomes of kiln.
type box struct {
	n     *Native
	s     *Spec
	group *cgroup.Group // nil is none
	nodev bool          // no device of the root or of a mount may be used: no group would keep any from the process
	io    *stdio

	root   rootDir
	places []place
	stubs  []stub
	lists  []trusting // of authorities, with the proxy's added
	fds    []int      // to be closed when the process was forked
	dev    int        // the folder /dev
	null   int        // its null device
	pts    int        // the terminals, where others may enter
	proc   int        // where /proc goes
	cgroup int        // where the cgroup file system goes; 0 is nowhere
	user   user
	ptmx   *os.File // our end of the terminal
	opened *shared  // what others enter; nil where nobody may
	into   *shared  // the sandbox that this process enters; nil is one of its own
	// entered is called when into is not needed any more.
	entered func()
	used    *unix.Rusage // by the process when it has ended; nil is one that never began
}

// keep notes that fd is to be closed when the process was forked.
func (b *box) keep(fd int) int {
	b.fds = append(b.fds, fd)
	return fd
}

func (b *box) closeKept() {
	for _, fd := range b.fds {
		unix.Close(fd)
	}
}

// start sets the sandbox up and forks the process. The goroutine must be locked
// to its thread, which must end with it.
func (b *box) start() (*launch.Process, error) {
	leave := unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if b.s.ownNetwork() {
		leave |= unix.CLONE_NEWNET
	}
	if err := unix.Unshare(leave); err != nil {
		return nil, fmt.Errorf("making namespaces: %w", err)
	}
	defer b.n.rejoin(leave)
	defer b.closeKept()
	unix.Umask(0) // of this thread alone: what is made gets the mode that is asked for
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return nil, fmt.Errorf("making mounts private: %w", err)
	}
	hostname := b.s.Hostname
	if hostname == "" {
		hostname = defaultHostname
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return nil, fmt.Errorf("setting host name %s: %w", hostname, err)
	}
	if b.s.ownNetwork() {
		if err := loopbackUp(); err != nil {
			return nil, fmt.Errorf("setting up the loopback device: %w", err)
		}
	}
	if err := b.openProxy(); err != nil {
		return nil, err
	}
	if err := b.mountAll(); err != nil {
		return nil, err
	}
	if b.s.Shared {
		if err := b.open(); err != nil {
			return nil, err
		}
	}
	return b.fork()
}

func (b *box) mountAll() error {
	if err := b.mountRoot(); err != nil {
		return fmt.Errorf("mounting the root: %w", err)
	}
	var err error
	if b.user, err = lookUpUser(b.root, b.s.User); err != nil {
		return err // before anything is mounted over the image's own files
	}
	if err := b.n.canBecome(b.user); err != nil {
		return err
	}
	b.user.groups = append(b.user.groups, b.s.Groups...)
	if err := b.trust(); err != nil {
		return fmt.Errorf("adding the proxy's certificate to the root: %w", err)
	}
	if err := b.mountKernel(); err != nil {
		return err
	}
	if err := b.mountDev(); err != nil {
		return fmt.Errorf("setting up /dev: %w", err)
	}
	if err := b.mountNames(); err != nil {
		return err
	}
	for _, m := range b.s.Mounts {
		if err := b.mountOne(m); err != nil {
			return fmt.Errorf("mounting %s: %w", m.Dest, err)
		}
	}
	if err := b.makeCwd(); err != nil {
		return fmt.Errorf("making working folder %s: %w", b.s.Cwd, err)
	}
	if b.s.Root.ReadOnly {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(int(b.root), "", unix.AT_EMPTY_PATH, attr); err != nil {
			return fmt.Errorf("making the root read-only: %w", err)
		}
	}
	return nil
}

func (b *box) mountRoot() error {
	fd, err := b.overlay(b.s.Root, b.n.path("bottom"))
	if err != nil {
		return err
	}
	b.root = rootDir(b.keep(fd))
	if err := b.withoutDevices(fd); err != nil {
		return err
	}
	b.places = []place{{at: "/", upper: b.s.Root.Upper}}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, b.n.path("root"), unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// withoutDevices makes the devices of a mount useless, where nothing else does.
func (b *box) withoutDevices(mount int) error {
	if !b.nodev {
		return nil
	}
	return restrict(mount, unix.MOUNT_ATTR_NODEV)
}

func (b *box) makeCwd() error {
	if b.s.Cwd == "" || b.s.Cwd == "/" {
		return nil
	}
	if fd, err := b.root.find(b.s.Cwd); err == nil {
		unix.Close(fd)
		return nil
	}
	name, err := b.root.resolve(b.s.Cwd)
	if err != nil {
		return err
	}
	return b.root.mkdirAll(name, 0o755, func(parent int, name string) (func(), error) {
		return func() {
			unix.Fchownat(parent, path.Base(name), int(b.user.uid), int(b.user.gid), unix.AT_SYMLINK_NOFOLLOW)
		}, nil
	})
}

// fork starts the process.
func (b *box) fork() (*launch.Process, error) {
	std, err := b.stdFiles()
	if err != nil {
		return nil, err
	}
	program := b.program
	if b.into != nil {
		program = b.entry
	}
	prog, files, err := program()
	if err != nil {
		return nil, err
	}
	attr := &syscall.SysProcAttr{Setsid: true}
	if b.into == nil {
		// A process that enters dies with the first one; its parent is none that it
		// could see, which ForkExec would take for one that has died.
		attr.Cloneflags, attr.Pdeathsig = unix.CLONE_NEWPID, syscall.SIGKILL
	}
	if b.s.Terminal != nil {
		attr.Setctty = true
	}
	if b.group != nil && b.group.Dir() >= 0 {
		attr.UseCgroupFD, attr.CgroupFD = true, b.group.Dir()
	}
	return launch.Start(prog, b.s.Args, b.environment(), std, files, attr)
}

// stdFiles gives the descriptors 0 to 2 of the process. They belong to its user:
// a step opens /dev/stderr anew to write to it.
func (b *box) stdFiles() (std [3]uintptr, err error) {
	for i, fd := range b.io.child {
		if fd < 0 {
			if fd, err = b.openNull(); err != nil {
				return std, fmt.Errorf("opening /dev/null: %w", err)
			}
		} else if b.user.uid != 0 {
			unix.Fchown(fd, int(b.user.uid), int(b.user.gid))
		}
		std[i] = uintptr(fd)
	}
	return std, nil
}

// openNull opens the sandbox's own null device, as the host's could be changed through it.
func (b *box) openNull() (int, error) {
	if b.into != nil {
		return b.into.null, nil
	}
	fd, err := unix.Openat(b.dev, "null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return b.keep(fd), nil
}

// namespaces of the host, for the thread to go back to.
var hostNamespaces = []struct {
	flag int
	name string
}{{unix.CLONE_NEWNS, "mnt"}, {unix.CLONE_NEWIPC, "ipc"}, {unix.CLONE_NEWUTS, "uts"}, {unix.CLONE_NEWNET, "net"}}

// openNamespaces opens the namespaces of this process.
func openNamespaces() (map[int]*os.File, error) {
	files := map[int]*os.File{}
	for _, ns := range hostNamespaces {
		f, err := os.Open("/proc/thread-self/ns/" + ns.name)
		if err != nil {
			return nil, fmt.Errorf("opening namespaces: %w", err)
		}
		files[ns.flag] = f
	}
	return files, nil
}

// rejoin takes the thread back to the host's namespaces. What it leaves goes with
// the process, or now when there is none.
func (n *Native) rejoin(flags int) {
	for _, ns := range hostNamespaces {
		if flags&ns.flag == 0 {
			continue
		}
		if err := unix.Setns(int(n.namespaces[ns.flag].Fd()), ns.flag); err != nil {
			// The thread ends with its goroutine, which frees the namespace all the same, if later.
			return
		}
	}
}

// loopbackUp brings up lo in the thread's network namespace.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

// openTerminal makes a terminal in the sandbox's /dev/pts and gives the process its end.
func (b *box) openTerminal(pts int) error {
	ptmx, end, err := openPair(pts, "ptmx")
	if err != nil {
		return err
	}
	b.ptmx = os.NewFile(uintptr(ptmx), "terminal")
	b.io.child = [3]int{end, end, end}
	if b.into != nil {
		return nil // /dev/console is the first process's
	}
	number, err := unix.IoctlGetInt(ptmx, unix.TIOCGPTN)
	if err != nil {
		return err
	}
	tty, err := clone(pts, strconv.Itoa(number))
	if err != nil {
		return err
	}
	defer unix.Close(tty)
	return b.bindDevice("console", tty)
}

// openPair makes a terminal by what is called name in the folder dir: both its ends.
func openPair(dir int, name string) (ptmx, tty int, err error) {
	if ptmx, err = unix.Openat(dir, name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
		return -1, -1, err
	}
	if err := unix.IoctlSetPointerInt(ptmx, unix.TIOCSPTLCK, 0); err != nil {
		unix.Close(ptmx)
		return -1, -1, err
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(ptmx), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		unix.Close(ptmx)
		return -1, -1, errno
	}
	return ptmx, int(peer), nil
}

// run starts the process on a thread of its own and waits for its end. forked is
// called once there is a process; ready when it has become the one of the spec.
func (b *box) run(forked func(*launch.Process), ready func()) (unix.WaitStatus, error) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	start := b.start
	if b.into != nil {
		start = b.enter
	}
	p, err := start()
	if err != nil {
		return 0, err
	}
	forked(p)
	err = p.Wait()
	if err == nil {
		ready()
	}
	ws, used, werr := waitFor(p.Pid)
	if err == nil {
		b.used = used
		err = werr
	}
	return ws, err
}

// waitFor waits for the end of a process that this thread has started, and gives what
// it has used.
func waitFor(pid int) (unix.WaitStatus, *unix.Rusage, error) {
	for {
		var ws unix.WaitStatus
		var used unix.Rusage
		_, err := unix.Wait4(pid, &ws, 0, &used)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return ws, nil, fmt.Errorf("waiting for the process: %w", err)
		case ws.Stopped():
			// The process asked to be traced by its parent, which is this thread, and
			// would wait for us for ever. It goes on as if it had not asked.
			sig := ws.StopSignal()
			if sig == unix.SIGTRAP {
				sig = 0
			}
			unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(pid), 0, uintptr(sig), 0, 0)
		default:
			return ws, &used, nil
		}
	}
}
