package executor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A device is a node of /dev.
type device struct {
	name         string
	kind         uint32
	major, minor uint32
}

// devices are those that every process needs, and may use.
var devices = []device{
	{"null", unix.S_IFCHR, 1, 3},
	{"zero", unix.S_IFCHR, 1, 5},
	{"full", unix.S_IFCHR, 1, 7},
	{"random", unix.S_IFCHR, 1, 8},
	{"urandom", unix.S_IFCHR, 1, 9},
	{"tty", unix.S_IFCHR, 5, 0},
}

// insecureDevices are there too when every privilege was granted.
var insecureDevices = []device{
	{"kmsg", unix.S_IFCHR, 1, 11},
	{"fuse", unix.S_IFCHR, 10, 229},
	{"cuse", unix.S_IFCHR, 10, 203},
	{"kvm", unix.S_IFCHR, 10, 232},
	{"loop-control", unix.S_IFCHR, 10, 237},
	{"net/tun", unix.S_IFCHR, 10, 200},
}

// insecureLoops is how many loop devices a privileged step finds.
const insecureLoops = 8

var devLinks = [][2]string{
	{"fd", "/proc/self/fd"},
	{"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"},
	{"core", "/proc/kcore"},
	{"ptmx", "pts/ptmx"},
}

// mountDev makes /dev: a file system in memory with the nodes and the mounts below it.
func (b *box) mountDev() error {
	target, err := b.root.folder("/dev")
	if err != nil {
		return err
	}
	defer unix.Close(target)
	b.dev, err = newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_STRICTATIME, "mode=755", "size=64m")
	if err != nil {
		return err
	}
	b.keep(b.dev)
	if err := attach(b.dev, target); err != nil {
		return err
	}
	for _, name := range []string{"pts", "shm", "mqueue"} {
		if err := unix.Mkdirat(b.dev, name, 0o755); err != nil {
			return err
		}
	}
	for _, l := range devLinks {
		if l[0] == "core" && !b.n.kcore {
			continue
		}
		if err := unix.Symlinkat(l[1], b.dev, l[0]); err != nil {
			return err
		}
	}
	for _, d := range devices {
		if err := b.makeDevice(d); err != nil {
			return fmt.Errorf("making %s: %w", d.name, err)
		}
	}
	if b.s.Insecure {
		if err := b.makeInsecureDevices(); err != nil {
			return err
		}
	}
	for _, d := range b.s.Devices {
		if err := b.makeGiven(d); err != nil {
			return fmt.Errorf("making %s: %w", d.Path, err)
		}
	}
	if b.null, err = unix.Openat(b.dev, "null", unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	b.keep(b.null)
	return b.mountBelowDev()
}

func (b *box) makeDevice(d device) error {
	if !b.n.userns {
		return unix.Mknodat(b.dev, d.name, d.kind|0o666, int(unix.Mkdev(d.major, d.minor)))
	}
	// No device can be made in a user namespace: the host's are bound.
	fd, err := clone(unix.AT_FDCWD, "/dev/"+d.name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return b.bindDevice(d.name, fd)
}

func (b *box) makeInsecureDevices() error {
	if err := unix.Mkdirat(b.dev, "net", 0o755); err != nil {
		return err
	}
	for _, d := range allInsecureDevices() {
		if err := b.makeDevice(d); err != nil && !b.n.userns {
			return fmt.Errorf("making %s: %w", d.name, err)
		}
	}
	return nil
}

// makeGiven makes the node of a device that the process was given.
func (b *box) makeGiven(d Device) error {
	name, ok := strings.CutPrefix(path.Clean(d.Path), "/dev/")
	if !ok {
		return errors.New("device nodes can be made below /dev only")
	}
	dir, err := b.devFolder(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	base := path.Base(name)
	// One that every process has may be given with other rights.
	if err := unix.Unlinkat(dir, base, 0); err != nil && err != unix.ENOENT {
		return err
	}
	if b.n.userns {
		fd, err := clone(unix.AT_FDCWD, d.HostPath)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return b.bindDevice(name, fd)
	}
	kind := uint32(unix.S_IFCHR)
	if d.Block {
		kind = unix.S_IFBLK
	}
	if err := unix.Mknodat(dir, base, kind|unixMode(d.Mode), int(unix.Mkdev(d.Major, d.Minor))); err != nil {
		return err
	}
	uid, gid := b.user.uid, b.user.gid
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	return unix.Fchownat(dir, base, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
}

// devFolder opens a folder of /dev, which is made if it is not there.
func (b *box) devFolder(name string) (int, error) {
	dir, err := unix.FcntlInt(uintptr(b.dev), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil || name == "." {
		return dir, err
	}
	for part := range strings.SplitSeq(name, "/") {
		if err := unix.Mkdirat(dir, part, 0o755); err != nil && err != unix.EEXIST {
			unix.Close(dir)
			return -1, err
		}
		next, err := unix.Openat(dir, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(dir)
		if err != nil {
			return -1, err
		}
		dir = next
	}
	return dir, nil
}

// allInsecureDevices are insecureDevices with loop devices.
func allInsecureDevices() []device {
	all := slices.Clone(insecureDevices)
	for i := range uint32(insecureLoops) {
		all = append(all, device{fmt.Sprintf("loop%d", i), unix.S_IFBLK, 7, i})
	}
	return all
}

// bindDevice mounts fd at a new file of /dev.
func (b *box) bindDevice(name string, fd int) error {
	at, err := unix.Openat(b.dev, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return attach(fd, at)
}

// defaultShm is docker's size of /dev/shm.
const defaultShm = 64 << 20

func (b *box) mountBelowDev() error {
	shm := b.s.Resources.ShmSize
	if shm <= 0 {
		shm = defaultShm
	}
	pts := []string{"newinstance", "ptmxmode=0666", "mode=0620"}
	if b.n.mapped(ttyGroup) {
		pts = append(pts, fmt.Sprintf("gid=%d", ttyGroup))
	}
	mounts := []struct {
		name, fstype string
		attr         int
		options      []string
	}{
		{"pts", "devpts", unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, pts},
		{"shm", "tmpfs", hardened, []string{"mode=1777", fmt.Sprintf("size=%d", shm)}},
		{"mqueue", "mqueue", hardened, nil},
	}
	for _, m := range mounts {
		fd, err := newMount(m.fstype, m.attr, m.options...)
		if err != nil {
			if m.fstype == "mqueue" && (errors.Is(err, unix.ENODEV) || b.n.userns) {
				continue // a kernel without message queues
			}
			return err
		}
		defer unix.Close(fd)
		at, err := unix.Openat(b.dev, m.name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = attach(fd, at)
		unix.Close(at)
		if err != nil {
			return fmt.Errorf("mounting %s: %w", m.name, err)
		}
		if m.name != "pts" {
			continue
		}
		if b.s.Terminal != nil {
			if err := b.openTerminal(fd); err != nil {
				return fmt.Errorf("opening a terminal: %w", err)
			}
		}
		if b.s.Shared {
			if b.pts, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				return err
			}
			b.keep(b.pts)
		}
	}
	return nil
}

// ttyGroup owns terminals, in every distribution.
const ttyGroup = 5

// unixMode gives the kernel's number for a mode.
func unixMode(m os.FileMode) uint32 {
	n := uint32(m.Perm())
	for bit, v := range map[fs.FileMode]uint32{fs.ModeSticky: unix.S_ISVTX, fs.ModeSetuid: unix.S_ISUID, fs.ModeSetgid: unix.S_ISGID} {
		if m&bit != 0 {
			n |= v
		}
	}
	// A caller who wrote the octal number meant the same.
	return n | uint32(m)&(unix.S_ISVTX|unix.S_ISUID|unix.S_ISGID)
}
