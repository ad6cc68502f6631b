package executor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxUserFile bounds /etc/passwd and /etc/group of an image, which may be hostile.
const maxUserFile = 10 << 20

// A user is who a process runs as.
type user struct {
	uid, gid uint32
	groups   []uint32 // gid among them
	home     string
}

// lookUpUser finds the user that spec names ("name", "uid", "name:group",
// "uid:gid"; empty is root) in the files of the root.
func lookUpUser(r rootDir, spec string) (user, error) {
	if spec == "" {
		spec = "0"
	}
	name, group, hasGroup := strings.Cut(spec, ":")
	u := user{home: "/"}
	uid, err := parseID(name)
	numeric := err == nil
	u.uid = uid

	found := false
	err = eachLine(r, "/etc/passwd", func(f []string) bool {
		if len(f) < 7 {
			return true
		}
		id, err := parseID(f[2])
		if err != nil || (f[0] != name && (!numeric || id != uid)) {
			return true
		}
		gid, err := parseID(f[3])
		if err != nil {
			return true
		}
		u.uid, u.gid, u.home, name, found = id, gid, f[5], f[0], true
		return false
	})
	if err != nil {
		return user{}, err
	}
	if !found && !numeric {
		if name != "root" {
			return user{}, fmt.Errorf("user %q is not in the image's /etc/passwd", name)
		}
		u.uid = 0
	}
	if u.home == "" {
		u.home = "/"
	}
	var member []uint32
	if hasGroup {
		u.gid, err = lookUpGroup(r, group)
	} else if found {
		member, err = groupsOf(r, name, u.gid)
	}
	u.groups = append([]uint32{u.gid}, member...)
	return u, err
}

// canBecome says why a process cannot be a user: in a namespace of one id there is no other.
func (n *Native) canBecome(u user) error {
	if n.setgroups || u.uid == 0 && u.gid == 0 {
		return nil
	}
	return fmt.Errorf("the step runs as user %d and group %d, and whoever builds has one id and no others: give him some in /etc/subuid and /etc/subgid, and install newuidmap and newgidmap (Debian's package uidmap)", u.uid, u.gid)
}

func lookUpGroup(r rootDir, group string) (uint32, error) {
	want, err := parseID(group)
	numeric := err == nil
	if numeric {
		return want, nil
	}
	found := false
	err = eachLine(r, "/etc/group", func(f []string) bool {
		if len(f) < 3 || f[0] != group {
			return true
		}
		id, err := parseID(f[2])
		want, found = id, err == nil
		return !found
	})
	switch {
	case err != nil:
		return 0, err
	case !found && group == "root":
		return 0, nil
	case !found:
		return 0, fmt.Errorf("group %q is not in the image's /etc/group", group)
	}
	return want, nil
}

// maxGroups is the kernel's limit for setgroups.
const maxGroups = 65536

// groupsOf lists the groups that name a user as a member, except for gid.
func groupsOf(r rootDir, name string, gid uint32) ([]uint32, error) {
	seen := map[uint32]bool{gid: true}
	var groups []uint32
	err := eachLine(r, "/etc/group", func(f []string) bool {
		if len(f) < 4 {
			return true
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if member != name {
				continue
			}
			if id, err := parseID(f[2]); err == nil && !seen[id] {
				seen[id] = true
				groups = append(groups, id)
			}
			break
		}
		return len(groups) < maxGroups-1
	})
	return groups, err
}

// parseID reads a user's or group's number. The largest is left out: to the
// kernel it means "no change".
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err
}

// eachLine calls f with the fields of each line of a file of the root until f is
// false. A file that is not there has no lines.
func eachLine(r rootDir, name string, f func(fields []string) bool) error {
	// It may be a device: to open it would run the host's driver, outside of what the
	// step's cgroup allows. So it is looked at first.
	at, err := r.find(name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the image's %s: %w", name, err)
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || ofDevices(at) {
		return fmt.Errorf("reading the image's %s: not a regular file", name)
	}
	// A running sandbox has the kernel's own files in it, which call themselves regular
	// files, and a link may lead there: /proc/kmsg, opened with kiln's rights, would keep
	// it waiting for ever. Those of /proc have no size, and are not even opened. To stay on
	// the root's own mount would be no way: /etc may be a mount of the step's.
	if st.Size == 0 {
		return nil
	}
	// Without O_NONBLOCK it would wait for a process of the sandbox that has a lease.
	file, err := reopen(at, os.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("opening the image's %s: %w", name, err)
	}
	defer file.Close()
	return scanLines(io.LimitReader(file, st.Size), name, f)
}

// ofDevices reports whether a file is one of /sys, where they have a size, and reading
// one asks a driver.
func ofDevices(at int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(at, &st) == nil && st.Type == unix.SYSFS_MAGIC
}

func scanLines(file io.Reader, name string, f func(fields []string) bool) error {
	limited := &io.LimitedReader{R: file, N: maxUserFile + 1}
	lines := bufio.NewReader(limited)
	for {
		line, err := lines.ReadString('\n')
		if limited.N == 0 {
			return fmt.Errorf("reading the image's %s: larger than %d bytes", name, maxUserFile)
		}
		line = strings.TrimSpace(line)
		if line != "" && line[0] != '#' && !f(strings.Split(line, ":")) {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the image's %s: %w", name, err)
		}
	}
}
