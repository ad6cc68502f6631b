package executor

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/worker/executor/internal/launch"
)

// The files that the new process gets, by number.
const (
	fileRoot = iota
	fileProc
	fileNull
	fileEmpty
	fileCgroup
	fileJoin // and those that follow
)

// maskedProc are the parts of /proc that tell too much of the host, as docker has
// them; true is a folder.
var maskedProc = []struct {
	name   string
	folder bool
}{
	{"acpi", true},
	{"asound", true},
	{"scsi", true},
	{"interrupts", false},
	{"kcore", false},
	{"keys", false},
	{"latency_stats", false},
	{"timer_list", false},
	{"timer_stats", false},
	{"sched_debug", false},
}

// readOnlyProc are the parts of /proc that act on the host when written.
var readOnlyProc = []string{"bus", "fs", "irq", "sys", "sysrq-trigger"}

// program lists what the new process does before it becomes the step's: what
// needs its own pid namespace, and what takes privileges away.
func (b *box) program() (*launch.Program, []uintptr, error) {
	p := &launch.Program{}
	empty, err := unix.Open(b.n.path("empty"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	b.keep(empty)
	cgroup := b.cgroup
	if cgroup == 0 {
		cgroup = empty
	}
	files := []uintptr{uintptr(b.root), uintptr(b.proc), uintptr(b.null), uintptr(empty), uintptr(cgroup)}

	p.Call("closing files", unix.SYS_CLOSE_RANGE, launch.Int(3), launch.Int(^uint32(0)), launch.Int(uint32(unix.CLOSE_RANGE_CLOEXEC)))
	if b.group != nil {
		for i, fd := range b.group.Joins() {
			files = append(files, uintptr(fd))
			p.Call("joining a cgroup", unix.SYS_WRITE, launch.File(fileJoin+i), p.String("0"), launch.Int(1))
		}
	}
	b.mountInside(p)
	p.Call("entering the root", unix.SYS_FCHDIR, launch.File(fileRoot))
	p.Call("changing the root", unix.SYS_PIVOT_ROOT, p.String("."), p.String("."))
	p.Call("leaving the old root", unix.SYS_UMOUNT2, p.String("."), launch.Int(unix.MNT_DETACH))
	p.Call("entering the root", unix.SYS_CHDIR, p.String("/"))
	return p, files, b.become(p)
}

// become ends a program: what is the same for every process of a sandbox.
func (b *box) become(p *launch.Program) error {
	p.HearSignals()
	p.Call("setting the umask", unix.SYS_UMASK, launch.Int(0o022))
	if err := limits(p, b.s.Ulimits); err != nil {
		return err
	}
	b.enterCwd(p)
	if err := b.dropPrivileges(p); err != nil {
		return err
	}
	path, err := b.findProgram()
	if err != nil {
		return err
	}
	// The change of user made the kernel forget that the process is to die with kiln.
	p.Call("binding the process to kiln", unix.SYS_PRCTL, launch.Int(unix.PR_SET_PDEATHSIG), launch.Int(int(unix.SIGKILL)))
	p.Alive()
	p.Call(fmt.Sprintf("executing %s", path), unix.SYS_EXECVE, p.String(path), launch.Argv, launch.Envp)
	return nil
}

func (b *box) enterCwd(p *launch.Program) {
	cwd := b.s.Cwd
	if cwd == "" {
		cwd = "/"
	}
	// No link of /proc is followed: one could lead to a descriptor of ours, and so out of the root.
	how := p.Words(launch.Int(uint64(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)), launch.Int(0), launch.Int(uint64(unix.RESOLVE_NO_MAGICLINKS)))
	fd := p.Call("opening working folder "+cwd, unix.SYS_OPENAT2, launch.Int(unix.AT_FDCWD), p.String(cwd), how, launch.Int(int(unsafe.Sizeof(unix.OpenHow{}))))
	p.Call("entering working folder "+cwd, unix.SYS_FCHDIR, fd.Result())
}

// mountInside mounts what depends on the process's own namespaces.
func (b *box) mountInside(p *launch.Program) {
	nothing := p.String("")
	attach := func(what string, mount, target launch.Arg) {
		p.Call(what, unix.SYS_MOVE_MOUNT, mount, nothing, target, nothing,
			launch.Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
	}
	mount := func(fstype string, attr int, target launch.Arg) launch.Arg {
		what := "mounting " + fstype
		fs := p.Call(what, unix.SYS_FSOPEN, p.String(fstype), launch.Int(unix.FSOPEN_CLOEXEC))
		p.Call(what, unix.SYS_FSCONFIG, fs.Result(), launch.Int(unix.FSCONFIG_SET_STRING), p.String("source"), p.String(fstype), launch.Int(0))
		p.Call(what, unix.SYS_FSCONFIG, fs.Result(), launch.Int(unix.FSCONFIG_CMD_CREATE), launch.Int(0), launch.Int(0), launch.Int(0))
		m := p.Call(what, unix.SYS_FSMOUNT, fs.Result(), launch.Int(unix.FSMOUNT_CLOEXEC), launch.Int(attr))
		attach(what, m.Result(), target)
		return m.Result()
	}
	if b.group != nil {
		p.Call("making a cgroup namespace", unix.SYS_UNSHARE, launch.Int(unix.CLONE_NEWCGROUP))
		if b.cgroup != 0 {
			attr := hardened | unix.MOUNT_ATTR_RDONLY
			if b.s.Insecure {
				attr = hardened
			}
			mount("cgroup2", attr, launch.File(fileCgroup))
		}
	}
	proc := mount("proc", hardened, launch.File(fileProc))
	if b.s.Insecure {
		return
	}
	attr := p.Words(launch.Int(uint64(unix.MOUNT_ATTR_RDONLY|hardened)), launch.Int(0), launch.Int(0), launch.Int(0))
	readOnly := func(what string, m launch.Arg) {
		p.Call(what, unix.SYS_MOUNT_SETATTR, m, nothing, launch.Int(unix.AT_EMPTY_PATH|unix.AT_RECURSIVE), attr, launch.Int(32))
	}
	for _, m := range maskedProc {
		what := "masking /proc/" + m.name
		target := p.Call(what, unix.SYS_OPENAT, proc, p.String(m.name), launch.Int(unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW))
		source := launch.File(fileNull)
		if m.folder {
			source = launch.File(fileEmpty)
		}
		c := p.Call(what, unix.SYS_OPEN_TREE, source, nothing, launch.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH))
		if m.folder {
			readOnly(what, c.Result())
		}
		attach(what, c.Result(), target.Result())
		p.OnError(syscall.ENOENT, target)
	}
	for _, name := range readOnlyProc {
		what := "protecting /proc/" + name
		c := p.Call(what, unix.SYS_OPEN_TREE, proc, p.String(name), launch.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE))
		readOnly(what, c.Result())
		p.Call(what, unix.SYS_MOVE_MOUNT, c.Result(), nothing, proc, p.String(name), launch.Int(unix.MOVE_MOUNT_F_EMPTY_PATH))
		p.OnError(syscall.ENOENT, c)
	}
}

// defaultCaps are docker's: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID,
// SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
const defaultCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETPCAP |
	1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_MKNOD |
	1<<unix.CAP_AUDIT_WRITE | 1<<unix.CAP_SETFCAP

// dropPrivileges is the end of the way: capabilities, the filter, the user. Docker
// and BuildKit leave no_new_privs off in build steps, as sudo and su are used
// in them, and so the filter is set while the process still may.
func (b *box) dropPrivileges(p *launch.Program) error {
	caps := b.n.caps & b.capsWanted()
	prctl := func(what string, args ...launch.Arg) launch.Call { return p.Call(what, unix.SYS_PRCTL, args...) }

	key := p.Call("making a session keyring", unix.SYS_KEYCTL, launch.Int(unix.KEYCTL_JOIN_SESSION_KEYRING), launch.Int(0))
	p.OnError(syscall.ENOSYS, key)
	for c := range b.n.lastCap + 1 {
		if caps&(1<<c) == 0 {
			prctl("dropping capabilities", launch.Int(unix.PR_CAPBSET_DROP), launch.Int(c))
		}
	}
	if !b.s.Insecure {
		if err := filter(p); err != nil {
			return err
		}
	}
	prctl("keeping capabilities", launch.Int(unix.PR_SET_KEEPCAPS), launch.Int(1))
	u := b.user
	if b.n.setgroups {
		groups := make([]byte, 0, 4*len(u.groups))
		for _, g := range u.groups {
			groups = binary.NativeEndian.AppendUint32(groups, g)
		}
		p.Call("setting groups", unix.SYS_SETGROUPS, launch.Int(len(u.groups)), p.Data(groups))
	}
	p.Call(fmt.Sprintf("becoming group %d", u.gid), unix.SYS_SETRESGID, launch.Int(u.gid), launch.Int(u.gid), launch.Int(u.gid))
	p.Call(fmt.Sprintf("becoming user %d", u.uid), unix.SYS_SETRESUID, launch.Int(u.uid), launch.Int(u.uid), launch.Int(u.uid))
	prctl("keeping capabilities", launch.Int(unix.PR_SET_KEEPCAPS), launch.Int(0))

	var inheritable uint64
	if b.s.Insecure {
		inheritable = caps
	}
	header := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	header = binary.NativeEndian.AppendUint32(header, 0)
	var data []byte
	for _, shift := range []uint{0, 32} {
		for _, set := range []uint64{caps, caps, inheritable} {
			data = binary.NativeEndian.AppendUint32(data, uint32(set>>shift))
		}
	}
	p.Call("setting capabilities", unix.SYS_CAPSET, p.Data(header), p.Data(data))
	if b.s.Insecure {
		for c := range b.n.lastCap + 1 {
			if caps&(1<<c) != 0 {
				prctl("raising capabilities", launch.Int(unix.PR_CAP_AMBIENT), launch.Int(unix.PR_CAP_AMBIENT_RAISE), launch.Int(c), launch.Int(0), launch.Int(0))
			}
		}
	} else {
		prctl("clearing capabilities", launch.Int(unix.PR_CAP_AMBIENT), launch.Int(unix.PR_CAP_AMBIENT_CLEAR_ALL), launch.Int(0), launch.Int(0), launch.Int(0))
	}
	return nil
}

func (b *box) capsWanted() uint64 {
	if b.s.Insecure {
		return ^uint64(0)
	}
	caps := uint64(defaultCaps)
	if b.group == nil || !b.group.RestrictsDevices() {
		// Nothing would keep the process from opening the disks whose nodes it makes.
		caps &^= 1 << unix.CAP_MKNOD
	}
	return caps
}

var rlimits = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
	"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
	"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
	"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

func limits(p *launch.Program, us []Ulimit) error {
	for _, u := range us {
		n, ok := rlimits[u.Name]
		if !ok {
			return fmt.Errorf("setting ulimit %q: there is no such limit", u.Name)
		}
		lim := p.Words(launch.Int(uint64(u.Soft)), launch.Int(uint64(u.Hard)))
		p.Call("setting ulimit "+u.Name, unix.SYS_PRLIMIT64, launch.Int(0), launch.Int(n), lim, launch.Int(0))
	}
	return nil
}
