package executor

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// A place is where something is mounted in the root, and the upper folder that
// holds what is written there; without one it is none of ours.
type place struct {
	at    string
	upper string
	sub   string // the path inside upper
}

// mountKernel mounts /sys; /proc needs the process's own pid namespace, and is left to it.
func (b *box) mountKernel() error {
	var err error
	if b.proc, err = b.root.folder("/proc"); err != nil {
		return fmt.Errorf("finding /proc in the root: %w", err)
	}
	b.keep(b.proc)
	target, err := b.root.folder("/sys")
	if err != nil {
		return fmt.Errorf("finding /sys in the root: %w", err)
	}
	defer unix.Close(target)
	attr := hardened
	if !b.s.Insecure {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	sys, err := newMount("sysfs", attr)
	if errors.Is(err, unix.EPERM) && b.n.userns {
		// sysfs belongs to whoever owns the network namespace; here that is the host.
		if sys, err = clone(unix.AT_FDCWD, "/sys"); err == nil {
			err = restrict(sys, uint64(attr))
		}
	}
	if err != nil {
		return fmt.Errorf("mounting /sys: %w", err)
	}
	b.keep(sys)
	if err := attach(sys, target); err != nil {
		return fmt.Errorf("mounting /sys: %w", err)
	}
	if !b.s.Insecure {
		for _, name := range b.n.maskedSys {
			if err := b.maskFolder(sys, name); err != nil {
				return fmt.Errorf("masking /sys/%s: %w", name, err)
			}
		}
	}
	return b.mountCgroups(sys, attr)
}

// maskFolder covers a folder with an empty one.
func (b *box) maskFolder(dir int, name string) error {
	target, err := unix.Openat(dir, name, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	empty, err := clone(unix.AT_FDCWD, b.n.path("empty"))
	if err != nil {
		return err
	}
	defer unix.Close(empty)
	if err := restrict(empty, unix.MOUNT_ATTR_RDONLY|hardened); err != nil {
		return err
	}
	return attach(empty, target)
}

// mountCgroups shows the process its own cgroup, read-only. In the unified
// hierarchy that is a file system of its cgroup namespace, which the process
// mounts; in the older ones the folders are bound.
func (b *box) mountCgroups(sys, attr int) error {
	if b.group == nil {
		return nil
	}
	target, err := unix.Openat(sys, "fs/cgroup", unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil // a kernel without cgroups in /sys
	}
	b.keep(target)
	folders := b.group.Folders()
	if len(folders) == 0 {
		b.cgroup = target
		return nil
	}
	top, err := newMount("tmpfs", hardened, "mode=755", "size=64k")
	if err != nil {
		return err
	}
	b.keep(top)
	if err := attach(top, target); err != nil {
		return err
	}
	for name, dir := range folders {
		if err := unix.Mkdirat(top, name, 0o755); err != nil {
			return err
		}
		own, err := clone(unix.AT_FDCWD, dir)
		if err != nil {
			return fmt.Errorf("binding cgroup %s: %w", dir, err)
		}
		b.keep(own)
		if err := restrict(own, uint64(attr)); err != nil {
			return err
		}
		at, err := unix.Openat(top, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		b.keep(at)
		if err := attach(own, at); err != nil {
			return err
		}
	}
	return restrict(top, uint64(attr))
}

// mountNames mounts resolv.conf and hosts.
func (b *box) mountNames() error {
	resolv, hosts, err := b.n.names.files(b.s)
	if err != nil {
		return err
	}
	for dest, source := range map[string]string{"/etc/resolv.conf": resolv, "/etc/hosts": hosts} {
		fd, err := clone(unix.AT_FDCWD, source)
		if err != nil {
			return fmt.Errorf("mounting %s: %w", dest, err)
		}
		b.keep(fd)
		if err := restrict(fd, unix.MOUNT_ATTR_RDONLY|hardened); err != nil {
			return fmt.Errorf("mounting %s: %w", dest, err)
		}
		if err := b.place(fd, dest, place{}, true); err != nil {
			return fmt.Errorf("mounting %s: %w", dest, err)
		}
	}
	return nil
}

// mountOne mounts a mount of the spec.
func (b *box) mountOne(m Mount) error {
	fd, p, err := b.mountSource(m)
	if err != nil {
		return err
	}
	b.keep(fd)
	if err := b.withoutDevices(fd); err != nil {
		return err
	}
	if m.ReadOnly {
		if err := restrict(fd, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	return b.place(fd, m.Dest, p, b.s.StubsRecursive)
}

func (b *box) mountSource(m Mount) (int, place, error) {
	switch {
	case m.Tmpfs != nil:
		mode := m.Tmpfs.Mode
		if mode == 0 {
			mode = 0o1777
		}
		options := []string{fmt.Sprintf("mode=%o", unixMode(mode))}
		if m.Tmpfs.Size > 0 {
			options = append(options, fmt.Sprintf("size=%d", m.Tmpfs.Size))
		}
		fd, err := newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, options...)
		return fd, place{}, err
	case m.Overlay != nil:
		return b.overlaySource(*m.Overlay, m.Selector)
	case m.Source != "":
		if path.Join("/", m.Selector) == "/" {
			fd, err := clone(unix.AT_FDCWD, m.Source)
			if err != nil {
				return -1, place{}, fmt.Errorf("binding %s: %w", m.Source, err)
			}
			return fd, place{}, nil
		}
		dir, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
		if err != nil {
			return -1, place{}, fmt.Errorf("opening %s: %w", m.Source, err)
		}
		defer unix.Close(dir)
		fd, err := selectFrom(rootDir(dir), m.Selector)
		return fd, place{}, err
	}
	return -1, place{}, errors.New("the mount has no source")
}

func (b *box) overlaySource(o Overlay, selector string) (int, place, error) {
	p := place{upper: o.Upper}
	fd, err := b.overlay(o)
	if err != nil {
		return -1, p, err
	}
	if o.ReadOnly {
		if err := restrict(fd, unix.MOUNT_ATTR_RDONLY); err != nil {
			unix.Close(fd)
			return -1, p, err
		}
	}
	if path.Join("/", selector) == "/" {
		return fd, p, nil
	}
	// Only what is mounted somewhere can be cloned in part.
	defer unix.Close(fd)
	stage := b.n.path("stage")
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, stage, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, p, err
	}
	defer unix.Unmount(stage, unix.MNT_DETACH)
	if p.sub, err = rootDir(fd).resolve(selector); err != nil {
		return -1, p, err
	}
	part, err := selectFrom(rootDir(fd), selector)
	return part, p, err
}

// selectFrom clones what is at a path of a mounted root.
func selectFrom(r rootDir, selector string) (int, error) {
	at, err := r.find(selector)
	if err != nil {
		return -1, fmt.Errorf("finding %s in the source: %w", selector, err)
	}
	defer unix.Close(at)
	return clone(at, "")
}

// place mounts fd at dest, which it makes if it is not there.
func (b *box) place(fd int, dest string, p place, recursive bool) error {
	p.at = path.Join("/", dest)
	if p.at == "/" {
		return errors.New("the root itself is no place for a mount")
	}
	target, err := b.root.find(dest)
	if err == nil && len(b.s.Mounts) > 0 {
		// Where this mount is, for stubs below it.
		if p.at, err = b.root.resolve(dest); err != nil {
			unix.Close(target)
			return err
		}
	}
	missing := errors.Is(err, unix.ENOENT)
	if missing {
		if p.at, err = b.root.resolve(dest); err != nil {
			return err
		}
	}
	if p.at == "/proc" || strings.HasPrefix(p.at, "/proc/") {
		return errors.New("nothing can be mounted inside /proc")
	}
	if missing {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if err := b.makeStub(p.at, st.Mode&unix.S_IFMT == unix.S_IFDIR, recursive); err != nil {
			return err
		}
		target, err = b.root.plain(p.at)
	}
	if err != nil {
		return fmt.Errorf("finding %s in the root: %w", dest, err)
	}
	defer unix.Close(target)
	if err := sameKind(fd, target); err != nil {
		return err
	}
	b.places = append(b.places, p)
	return attach(fd, target)
}

// sameKind refuses to mount a folder on a file and the other way round, for which
// the kernel has no word of its own.
func sameKind(fd, target int) error {
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &a), unix.Fstat(target, &b)); err != nil {
		return err
	}
	switch isDir := b.Mode&unix.S_IFMT == unix.S_IFDIR; {
	case isDir == (a.Mode&unix.S_IFMT == unix.S_IFDIR):
		return nil
	case isDir:
		return unix.EISDIR
	}
	return unix.ENOTDIR
}

// upperOf gives the upper folder that a write to name goes to, and the path in it.
func (b *box) upperOf(name string) (upper, rel string) {
	for i := len(b.places) - 1; i >= 0; i-- {
		p := b.places[i]
		rest, ok := strings.CutPrefix(name, strings.TrimSuffix(p.at, "/"))
		if ok && (rest == "" || rest[0] == '/') {
			return p.upper, path.Join("/", p.sub, rest)
		}
	}
	return "", ""
}
