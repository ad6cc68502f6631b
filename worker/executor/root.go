package executor

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/kiln-build/kiln/worker/internal/dirfd"
	"golang.org/x/sys/unix"
)

// A rootDir is the root of a step's file system, seen from outside. Paths are
// resolved as the step would resolve them: absolute links and ".." end at this
// root. Nothing in an image can lead to the host.
type rootDir int

const maxLinks = 40 // as the kernel has it

func (r rootDir) open(name string, flags uint64, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if name = strings.TrimLeft(name, "/"); name == "" {
		name = "."
	}
	return dirfd.Openat2(int(r), name, &how)
}

// find opens what is at name, as a place to look from or mount on.
func (r rootDir) find(name string) (int, error) { return r.open(name, unix.O_PATH, 0) }

// plain opens name where no part of it is a link.
func (r rootDir) plain(name string) (int, error) {
	return r.open(name, unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
}

// folder opens a folder, of which no part is a link.
func (r rootDir) folder(name string) (int, error) {
	return r.open(name, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
}

// resolve gives the path without links that name stands for, whether all of it
// exists or not.
func (r rootDir) resolve(name string) (string, error) {
	done, rest, links := "/", strings.Split(name, "/"), 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		fd, err := r.open(next, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			done = next
			continue
		}
		if err != nil {
			return "", fmt.Errorf("looking up %s in the root: %w", next, err)
		}
		target, err := linkTarget(fd)
		unix.Close(fd)
		if err != nil {
			return "", fmt.Errorf("reading link %s in the root: %w", next, err)
		}
		if target == "" {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("looking up %s in the root: %w", name, unix.ELOOP)
		}
		if target[0] == '/' {
			done = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return done, nil
}

// linkTarget reads the link that fd is open on; of anything else it is empty.
func linkTarget(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, "", buf[:])
	return string(buf[:max(n, 0)]), err
}

// mkdirAll makes the folder name, which has no links in it, and those above it.
// note is called around the making of each, the outer ones first.
func (r rootDir) mkdirAll(name string, mode uint32, note noteFunc) error {
	if name == "/" {
		return nil
	}
	if fd, err := r.plain(name); err == nil {
		unix.Close(fd)
		return nil
	} else if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("looking up %s in the root: %w", name, err)
	}
	parent := path.Dir(name)
	if err := r.mkdirAll(parent, mode, note); err != nil {
		return err
	}
	return r.make(name, note, func(dir int, base string) error { return unix.Mkdirat(dir, base, mode) })
}

// touch makes an empty file.
func (r rootDir) touch(name string, note noteFunc) error {
	return r.make(name, note, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
}

// noteFunc is told that name is about to be made in the folder parent. What it
// returns is called when it was made. It may be nil.
type noteFunc func(parent int, name string) (after func(), err error)

func (r rootDir) make(name string, note noteFunc, do func(dir int, base string) error) error {
	parent, err := r.plain(path.Dir(name))
	if err != nil {
		return fmt.Errorf("looking up %s in the root: %w", path.Dir(name), err)
	}
	defer unix.Close(parent)
	after := func() {}
	if note != nil {
		if after, err = note(parent, name); err != nil {
			return err
		}
	}
	if err := do(parent, path.Base(name)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("making %s in the root: %w", name, err)
	}
	after()
	return nil
}
