package pool

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// Sweep removes the files that keep does not want and no open lease used. It
// gives how many names went. Layers' folders may hold further links to a file:
// its bytes go with the last of them.
func (p *Pool) Sweep(keep func(FileID) bool) (removed int, err error) {
	err = p.each(func(dirfd int, id FileID, name string) error {
		if keep(id) {
			return nil
		}
		swept, err := p.guard.Sweep((*[32]byte)(&id), func() error {
			p.mu.Lock()
			delete(p.alternates, id)
			p.mu.Unlock()
			return unix.Unlinkat(dirfd, name, 0)
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing file %.12s of the pool: %w", id, err)
		}
		if swept {
			removed++
		}
		return nil
	})
	return removed, errors.Join(err, p.removeStale())
}

// removeStale removes what a process left half made.
func (p *Pool) removeStale() error {
	root, err := os.Open(p.root.Name())
	if err != nil {
		return err
	}
	defer root.Close()
	names, err := root.Readdirnames(-1)
	for _, name := range names {
		if len(name) == len("ab.new") && strings.HasSuffix(name, ".new") {
			err = errors.Join(err, p.removeFolder(name))
			continue
		}
		tmpfile.RemoveStale(int(root.Fd()), name)
	}
	return err
}

// DropSince removes files whose inode changed at or after since (nanoseconds
// since 1970): after a crash of the machine, those that may not have reached the
// disk. Only folders that changed since then are looked into.
func (p *Pool) DropSince(since int64) error {
	for n := range 256 {
		dirfd, err := p.dir(byte(n), false)
		if err != nil {
			return err
		}
		if dirfd < 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(dirfd, &st); err != nil {
			return err
		}
		if st.Mtim.Nano() < since {
			continue
		}
		if err := p.dropSince(byte(n), dirfd, since); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pool) dropSince(n byte, dirfd int, since int64) error {
	return p.eachIn(n, dirfd, func(id FileID, name string) error {
		var st unix.Stat_t
		if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Ctim.Nano() < since {
			return err
		}
		return unix.Unlinkat(dirfd, name, 0)
	})
}

// Each calls fn for every file, alternates too, with what it takes on the disk.
// It does not count as a use.
func (p *Pool) Each(fn func(id FileID, bytes int64) error) error {
	return p.each(func(dirfd int, id FileID, name string) error {
		var st unix.Stat_t
		if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		return fn(id, st.Blocks*512)
	})
}

func (p *Pool) each(fn func(dirfd int, id FileID, name string) error) error {
	for n := range 256 {
		dirfd, err := p.dir(byte(n), false)
		if err != nil {
			return err
		}
		if dirfd < 0 {
			continue
		}
		err = p.eachIn(byte(n), dirfd, func(id FileID, name string) error { return fn(dirfd, id, name) })
		if err != nil {
			return err
		}
	}
	return nil
}

// eachIn calls fn for the files of one folder, and removes what was left there
// half made.
func (p *Pool) eachIn(n byte, dirfd int, fn func(id FileID, name string) error) error {
	fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("reading folder %02x of the pool: %w", n, err)
	}
	d := os.NewFile(uintptr(fd), fmt.Sprintf("%02x", n))
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("reading folder %02x of the pool: %w", n, err)
	}
	for _, name := range names {
		id, ok := splitName(n, name)
		if !ok {
			tmpfile.RemoveStale(dirfd, name)
			continue
		}
		if err := fn(id, name); err != nil && !errors.Is(err, syscall.ENOENT) {
			return err
		}
	}
	return nil
}

// Drop removes e's file, which a reader found to be other than e says. Layers'
// folders that link to it keep it: they are to be made again too.
func (p *Pool) Drop(e tree.Entry) error {
	id := IDOf(e)
	dirfd, name, in, err := p.place(&id)
	if err != nil {
		return err
	}
	defer in.RUnlock()
	if err := unix.Unlinkat(dirfd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing file %.12s of the pool: %w", id, err)
	}
	return nil
}
