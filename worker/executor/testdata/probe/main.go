// Probe prints what a process sees of itself and what it may do, a line of a
// name, a tab and a value for each.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread()
	if len(os.Args) > 1 {
		traceMe()
	}
	status()
	mounts()
	writable()
	masked()
	devices()
	for _, c := range append(calls, archCalls...) {
		try(c)
	}
	namespaces()
	ambient()
}

// traceMe asks the parent to trace this process, and stops.
func traceMe() {
	_, _, errno := syscall.RawSyscall(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0)
	signal.Ignore(unix.SIGUSR1)
	for range 3 {
		unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGUSR1)
	}
	say("traced", errno == 0)
	os.Exit(3)
}

func say(name string, value any) { fmt.Printf("%s\t%v\n", name, value) }

func status() {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		say("status", err)
		return
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		k, v, _ := strings.Cut(s.Text(), ":")
		switch k {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Uid", "Gid", "Groups", "Umask":
			say("status."+k, strings.Join(strings.Fields(v), " "))
		}
	}
}

func mounts() {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		say("mounts", err)
		return
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, _ := strings.Cut(s.Text(), " - ")
		say("mount."+strings.Fields(before)[4], strings.Fields(before)[5]+" "+strings.Fields(after)[0])
	}
}

// writable lists the files of the kernel's file systems that can be opened for writing.
func writable() {
	for _, root := range []string{"/proc", "/sys"} {
		filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			if d.IsDir() && (p == "/proc/self" || p == "/proc/thread-self" || strings.Trim(strings.TrimPrefix(p, "/proc/"), "0123456789") == "") {
				return filepath.SkipDir
			}
			if d.Type().IsRegular() && unix.Access(p, unix.W_OK) == nil {
				if fd, err := unix.Open(p, unix.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
					unix.Close(fd)
					say("writable."+p, "yes")
				}
			}
			return nil
		})
	}
}

// masked counts what can be read of files that tell of the host.
func masked() {
	for _, p := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
		"/proc/latency_stats", "/proc/interrupts", "/proc/acpi", "/proc/scsi", "/proc/asound", "/sys/firmware",
		"/sys/devices/virtual/powercap", "/proc/kallsyms", "/proc/kmsg", "/proc/1/environ", "/sys/kernel/debug", "/sys/kernel/security",
		"/sys/fs/cgroup", "/sys/fs/bpf", "/proc/sysrq-trigger"} {
		if entries, err := os.ReadDir(p); err == nil {
			say("content."+p, len(entries) > 0)
			continue
		}
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			say("content."+p, false)
			continue
		}
		n, _ := unix.Read(fd, make([]byte, 16))
		unix.Close(fd)
		say("content."+p, n > 0)
	}
}

// devices makes nodes of many devices and opens them.
func devices() {
	if err := os.MkdirAll("/probe-devices", 0o755); err != nil {
		say("devices", err)
		return
	}
	defer os.RemoveAll("/probe-devices")
	for kind, mode := range map[string]uint32{"c": unix.S_IFCHR, "b": unix.S_IFBLK} {
		for major := uint32(1); major < 260; major++ {
			for minor := uint32(0); minor < 16; minor++ {
				p := "/probe-devices/node"
				os.Remove(p)
				name := fmt.Sprintf("device.%s %d:%d", kind, major, minor)
				if err := unix.Mknod(p, mode|0o666, int(unix.Mkdev(major, minor))); err != nil {
					say(name, "not made: "+err.Error())
					continue
				}
				for flag, how := range map[int]string{unix.O_RDONLY: "read", unix.O_WRONLY: "write"} {
					fd, err := unix.Open(p, flag|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
					if err == nil {
						unix.Close(fd)
						say(name+" "+how, "ok")
					} else if err != unix.EPERM {
						say(name+" "+how, err)
					}
				}
			}
		}
	}
	entries, _ := os.ReadDir("/dev")
	for _, e := range entries {
		say("dev."+e.Name(), e.Type())
	}
}

// A call is a system call with arguments that do nothing where it is allowed.
type call struct {
	name string
	nr   uintptr
	args [6]uintptr
}

var empty = [8]byte{}

func ptr() uintptr { return uintptr(unsafe.Pointer(&empty)) }

const bad = ^uintptr(0)

var calls = []call{
	{"ptrace(ATTACH)", unix.SYS_PTRACE, [6]uintptr{16, 99999}},
	{"mount", unix.SYS_MOUNT, [6]uintptr{0, 0, 0, 0, 0}},
	{"umount2", unix.SYS_UMOUNT2, [6]uintptr{0, 0}},
	{"pivot_root", unix.SYS_PIVOT_ROOT, [6]uintptr{0, 0}},
	{"move_mount", unix.SYS_MOVE_MOUNT, [6]uintptr{bad, 0, bad, 0, bad}},
	{"fsopen", unix.SYS_FSOPEN, [6]uintptr{0, 0}},
	{"fsmount", unix.SYS_FSMOUNT, [6]uintptr{bad, 0, 0}},
	{"fsconfig", unix.SYS_FSCONFIG, [6]uintptr{bad}},
	{"fspick", unix.SYS_FSPICK, [6]uintptr{bad, 0, 0}},
	{"open_tree", unix.SYS_OPEN_TREE, [6]uintptr{bad, 0, 0}},
	{"mount_setattr", unix.SYS_MOUNT_SETATTR, [6]uintptr{bad, 0, 0, 0, 0}},
	{"keyctl", unix.SYS_KEYCTL, [6]uintptr{0, 0}},
	{"add_key", unix.SYS_ADD_KEY, [6]uintptr{0, 0, 0, 0, 0}},
	{"request_key", unix.SYS_REQUEST_KEY, [6]uintptr{0, 0, 0, 0}},
	{"bpf", unix.SYS_BPF, [6]uintptr{0, 0, 0}},
	{"userfaultfd", unix.SYS_USERFAULTFD, [6]uintptr{0}},
	{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{0, 0, 0, bad, 0}},
	{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [6]uintptr{bad, 0, 0}},
	{"name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, [6]uintptr{bad, 0, 0, 0, 0}},
	{"kexec_load", unix.SYS_KEXEC_LOAD, [6]uintptr{0, 0, 0, 0}},
	{"kexec_file_load", unix.SYS_KEXEC_FILE_LOAD, [6]uintptr{bad, bad, 0, 0, 0}},
	{"init_module", unix.SYS_INIT_MODULE, [6]uintptr{0, 0, 0}},
	{"finit_module", unix.SYS_FINIT_MODULE, [6]uintptr{bad, 0, 0}},
	{"delete_module", unix.SYS_DELETE_MODULE, [6]uintptr{0, 0}},
	{"swapon", unix.SYS_SWAPON, [6]uintptr{0, 0}},
	{"swapoff", unix.SYS_SWAPOFF, [6]uintptr{0}},
	{"reboot", unix.SYS_REBOOT, [6]uintptr{0, 0, 0, 0}},
	{"settimeofday", unix.SYS_SETTIMEOFDAY, [6]uintptr{bad, 0}},
	{"clock_settime", unix.SYS_CLOCK_SETTIME, [6]uintptr{0, bad}},
	{"clock_adjtime", unix.SYS_CLOCK_ADJTIME, [6]uintptr{0, bad}},
	{"acct", unix.SYS_ACCT, [6]uintptr{bad}},
	{"quotactl", unix.SYS_QUOTACTL, [6]uintptr{bad, 0, 0, 0}},
	{"vhangup", unix.SYS_VHANGUP, [6]uintptr{}},
	{"syslog", unix.SYS_SYSLOG, [6]uintptr{10, 0, 0}},
	{"process_vm_readv", unix.SYS_PROCESS_VM_READV, [6]uintptr{1, 0, 0, 0, 0, 0}},
	{"process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, [6]uintptr{1, 0, 0, 0, 0, 0}},
	{"process_madvise", unix.SYS_PROCESS_MADVISE, [6]uintptr{bad, 0, 0, 0, 0}},
	{"kcmp", unix.SYS_KCMP, [6]uintptr{1, 1, 0, 0, 0}},
	{"pidfd_getfd", unix.SYS_PIDFD_GETFD, [6]uintptr{bad, 0, 0}},
	{"io_uring_setup", unix.SYS_IO_URING_SETUP, [6]uintptr{0, 0}},
	{"setns", unix.SYS_SETNS, [6]uintptr{bad, 0}},
	{"unshare(NEWUSER)", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWUSER | unix.CLONE_VM}},
	{"unshare(NEWNS)", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWNS}},
	{"unshare(NEWNET)", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWNET}},
	{"unshare(NEWCGROUP)", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWCGROUP}},
	{"unshare(NEWTIME)", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWTIME}},
	{"clone3", unix.SYS_CLONE3, [6]uintptr{0, 0}},
	{"personality(ADDR_NO_RANDOMIZE)", unix.SYS_PERSONALITY, [6]uintptr{0x40000}},
	{"socket(ALG)", unix.SYS_SOCKET, [6]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}},
	{"socket(ALG) with high bits", unix.SYS_SOCKET, [6]uintptr{1<<32 | unix.AF_ALG, unix.SOCK_SEQPACKET, 0}},
	{"socket(VSOCK)", unix.SYS_SOCKET, [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM, 0}},
	{"socket(PACKET)", unix.SYS_SOCKET, [6]uintptr{unix.AF_PACKET, unix.SOCK_RAW, 0}},
	{"socket(INET, RAW)", unix.SYS_SOCKET, [6]uintptr{unix.AF_INET, unix.SOCK_RAW, 1}},
	{"socket(NETLINK, AUDIT)", unix.SYS_SOCKET, [6]uintptr{unix.AF_NETLINK, unix.SOCK_RAW, 9}},
	{"mbind", unix.SYS_MBIND, [6]uintptr{0, 0, 0, 0, 0, bad}},
	{"set_mempolicy", unix.SYS_SET_MEMPOLICY, [6]uintptr{bad, 0, 0}},
	{"move_pages", unix.SYS_MOVE_PAGES, [6]uintptr{0, 0, 0, 0, 0, bad}},
	{"migrate_pages", unix.SYS_MIGRATE_PAGES, [6]uintptr{bad, 0, 0, 0}},
	{"fanotify_init", unix.SYS_FANOTIFY_INIT, [6]uintptr{0, 0}},
	{"lookup_dcookie", unix.SYS_LOOKUP_DCOOKIE, [6]uintptr{0, 0, 0}},
	{"setdomainname", unix.SYS_SETDOMAINNAME, [6]uintptr{bad, 1}},
	{"sethostname", unix.SYS_SETHOSTNAME, [6]uintptr{bad, 1}},
	{"setpriority", unix.SYS_SETPRIORITY, [6]uintptr{0, 0, ^uintptr(19)}},
	{"sched_setscheduler", unix.SYS_SCHED_SETSCHEDULER, [6]uintptr{0, 1, 0}},
	{"quotactl_fd", unix.SYS_QUOTACTL_FD, [6]uintptr{bad, 0, 0, 0}},
	{"an unknown call", 3000, [6]uintptr{}},
}

func try(c call) {
	args := c.args
	result, _, errno := syscall.RawSyscall6(c.nr, args[0], args[1], args[2], args[3], args[4], args[5])
	if errno == 0 {
		if strings.HasPrefix(c.name, "socket") {
			unix.Close(int(result))
		}
		say("call."+c.name, "ok")
		return
	}
	say("call."+c.name, unix.ErrnoName(errno))
}

// namespaces tries to make each by a child.
func namespaces() {
	for name, flag := range map[string]uintptr{"USER": unix.CLONE_NEWUSER, "NS": unix.CLONE_NEWNS, "PID": unix.CLONE_NEWPID,
		"NET": unix.CLONE_NEWNET, "UTS": unix.CLONE_NEWUTS, "IPC": unix.CLONE_NEWIPC, "CGROUP": unix.CLONE_NEWCGROUP} {
		attr := &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: flag}}
		pid, err := syscall.ForkExec("/proc/self/exe-is-not-there", []string{"x"}, attr)
		if err == nil {
			syscall.Wait4(pid, nil, 0, nil)
		}
		if err == syscall.ENOENT {
			err = nil // the child was made, and found no program
		}
		say("clone.NEW"+name, err == nil)
	}
}

// ambient is what could be reached by way of what was left open.
func ambient() {
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && fd.Name() > "2" && !strings.HasPrefix(target, "/proc/") && !strings.HasPrefix(target, "anon_inode:") {
			say("open."+fd.Name(), target)
		}
	}
	say("parent", os.Getppid())
	say("pid", os.Getpid())
	cwd, _ := os.Getwd()
	say("cwd", cwd)
	session, err := unix.Getsid(0)
	say("session", fmt.Sprint(session, err))
}
