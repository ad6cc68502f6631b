package executor

import (
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// A stub is a folder or an empty file that was made in an upper folder so that
// something could be mounted on it. It goes when the process has ended, if it is
// still empty. What the standard mounts need is not among them: it lies in a
// layer of its own at the bottom of the root.
type stub struct {
	upper, name string
	copied      []copied // what its making copied into the upper folder
	file        bool     // it is a file that may hold something
}

// A copied folder is in an upper folder only because a stub was made in it. If
// nothing else happened to it, it goes too.
type copied struct {
	name string
	was  unix.Stat_t
}

// makeStub makes name, which has no links in it, as a folder or a file.
// recursive says that the folders above it which had to be made are stubs as well.
func (b *box) makeStub(name string, isDir, recursive bool) error {
	note := func(parent int, made string) (func(), error) {
		var was unix.Stat_t
		if err := unix.Fstat(parent, &was); err != nil {
			return nil, err
		}
		if upper, rel := b.upperOf(made); upper != "" && (recursive || made == name) {
			b.stubs = append(b.stubs, stub{upper: upper, name: rel, copied: b.aboutToCopy(upper, rel, made)})
		}
		return func() { setTimes(parent, &was) }, nil
	}
	if isDir {
		return b.root.mkdirAll(name, 0o755, note)
	}
	if err := b.root.mkdirAll(path.Dir(name), 0o755, note); err != nil {
		return err
	}
	return b.root.touch(name, note)
}

// aboutToCopy lists the folders above rel that are not in the upper folder yet.
func (b *box) aboutToCopy(upper, rel, name string) []copied {
	fd, err := unix.Open(upper, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var list []copied
	for rel, name = path.Dir(rel), path.Dir(name); rel != "/" && name != "/"; rel, name = path.Dir(rel), path.Dir(name) {
		if in, err := below(fd, rel, unix.O_PATH); err == nil {
			unix.Close(in)
			break
		}
		at, err := b.root.plain(name)
		if err != nil {
			break
		}
		c := copied{name: rel}
		err = unix.Fstat(at, &c.was)
		unix.Close(at)
		if err != nil {
			break
		}
		list = append(list, c)
	}
	return list
}

// below opens a path of a folder that a process has written: no link in it is followed.
func below(dir int, name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	if name = strings.TrimLeft(name, "/"); name == "" {
		name = "."
	}
	return unix.Openat2(dir, name, &how)
}

// removeStubs takes the stubs away that are still empty, the innermost first.
// Errors mean that something else is there by now, which is to stay.
func (b *box) removeStubs() {
	for i := len(b.stubs) - 1; i >= 0; i-- {
		s := b.stubs[i]
		upper, err := unix.Open(s.upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		removeStub(upper, s)
		unix.Close(upper)
	}
}

func removeStub(upper int, s stub) {
	if !removeQuietly(upper, s.name, func(st *unix.Stat_t, _ int) bool {
		isFile := st.Mode&unix.S_IFMT == unix.S_IFREG
		return isFile && (s.file || st.Size == 0) || st.Mode&unix.S_IFMT == unix.S_IFDIR
	}) {
		return
	}
	for _, c := range s.copied {
		if !removeQuietly(upper, c.name, func(st *unix.Stat_t, dir int) bool {
			return st.Mode == c.was.Mode && st.Uid == c.was.Uid && st.Gid == c.was.Gid && st.Mtim == c.was.Mtim &&
				plainFolder(dir, path.Base(c.name))
		}) {
			return
		}
	}
}

// removeQuietly removes an empty folder or a file for which ok holds, and leaves
// the times of the folder above as they are.
func removeQuietly(upper int, name string, ok func(st *unix.Stat_t, dir int) bool) bool {
	dir, err := below(upper, path.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	var st, parent unix.Stat_t
	base := path.Base(name)
	if unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || unix.Fstat(dir, &parent) != nil || !ok(&st, dir) {
		return false
	}
	flags := 0
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	if unix.Unlinkat(dir, base, flags) != nil {
		return false
	}
	setTimes(dir, &parent)
	return true
}

// plainFolder says whether a folder of an upper folder is an ordinary copy: it
// hides nothing below it, and has no attributes that the process may have set.
func plainFolder(dir int, base string) bool {
	fd, err := below(dir, base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Flistxattr(fd, buf)
	if err != nil {
		return errors.Is(err, unix.ENOTSUP)
	}
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" || strings.HasSuffix(name, ".overlay.origin") || strings.HasSuffix(name, ".overlay.impure") || strings.HasSuffix(name, ".overlay.uuid") {
			continue
		}
		return false
	}
	return true
}

// setTimes gives what fd is open on the times that st has.
func setTimes(fd int, st *unix.Stat_t) {
	unix.UtimesNanoAt(fd, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}
