package executor

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// The flags of a kernel file system that a step sees.
const hardened = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// newMount makes a file system that is mounted nowhere yet. Options are "key=value" or "flag".
func newMount(fstype string, attr int, options ...string) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening file system %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	for _, o := range append([]string{"source=" + fstype}, options...) {
		if err := setOption(fs, o); err != nil {
			return -1, fmt.Errorf("setting %s of %s: %w", o, fstype, explain(fs, err))
		}
	}
	return create(fs, fstype, attr)
}

func setOption(fs int, option string) error {
	key, value, ok := strings.Cut(option, "=")
	if !ok {
		return unix.FsconfigSetFlag(fs, key)
	}
	return unix.FsconfigSetString(fs, key, value)
}

func create(fs int, fstype string, attr int) (int, error) {
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("making a file system %s: %w", fstype, explain(fs, err))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fmt.Errorf("mounting a file system %s: %w", fstype, explain(fs, err))
	}
	return fd, nil
}

// explain adds what the kernel noted about the failure.
func explain(fs int, err error) error {
	var buf [512]byte
	n, rerr := unix.Read(fs, buf[:])
	if rerr != nil || n <= 2 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(buf[2:n])))
}

// clone makes a copy, mounted nowhere yet, of what is mounted at a path below dir;
// the empty path is dir itself.
func clone(dir int, path string) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return unix.OpenTree(dir, path, flags)
}

// attach mounts a mount at the folder or file that target is open on.
func attach(mount, target int) error {
	return unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// restrict sets attributes on a mount and on those below it.
func restrict(mount int, attr uint64) error {
	return unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr})
}
