package pool

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// entryRoom is about what a file takes in a folder of ext4: its name, an inode
// number, and the room that is left when blocks split.
const entryRoom = 120

// Narrow makes folders anew that take much more than their files need: a folder
// of ext4 keeps the size that it had with the most files. Empty ones are removed.
// What a sweep of this pool might do meanwhile is not guarded against.
func (p *Pool) Narrow() error {
	for n := range 256 {
		if err := p.narrow(byte(n)); err != nil {
			return fmt.Errorf("narrowing folder %02x of the pool: %w", n, err)
		}
	}
	return nil
}

func (p *Pool) narrow(n byte) error {
	d := &p.dirs[n]
	d.use.Lock()
	defer d.use.Unlock()
	fd, err := p.dir(n, false)
	if err != nil || fd < 0 {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	var names []string
	if names, err = readNames(fd); err != nil {
		return err
	}
	if len(names) > 0 && st.Blocks*512 <= 2*int64(len(names))*entryRoom+4096 {
		return nil
	}
	name := string([]byte{hexDigits[n>>4], hexDigits[n&15]})
	if len(names) > 0 {
		if done, err := p.relink(fd, name, names); !done || err != nil {
			return err
		}
	} else if err := unix.Unlinkat(int(p.root.Fd()), name, unix.AT_REMOVEDIR); err != nil {
		return err
	}
	d.fd.Store(0)
	return unix.Close(fd)
}

// relink makes a folder with the same files and exchanges it for the old one, so
// that at no moment a file has no name. Where that cannot be done, with files that
// have as many links as they may, the old one stays.
func (p *Pool) relink(fd int, name string, files []string) (done bool, err error) {
	root, temp := int(p.root.Fd()), name+".new"
	if err := unix.Mkdirat(root, temp, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return false, err
	}
	defer func() { err = errors.Join(err, p.removeFolder(temp)) }()
	to, err := unix.Openat(root, temp, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(to)
	p.guard.SetDirty()
	for _, f := range files {
		if err := unix.Linkat(fd, f, to, f, 0); err != nil && !errors.Is(err, unix.EEXIST) {
			if errors.Is(err, unix.EMLINK) {
				return false, nil
			}
			return false, err
		}
	}
	err = unix.Renameat2(root, temp, root, name, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return false, nil
	}
	return err == nil, err
}

// removeFolder removes a folder of files that have other names.
func (p *Pool) removeFolder(name string) error {
	root := int(p.root.Fd())
	fd, err := unix.Openat(root, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return err
	}
	for _, f := range names {
		if err := unix.Unlinkat(fd, f, 0); err != nil {
			return err
		}
	}
	return unix.Unlinkat(root, name, unix.AT_REMOVEDIR)
}

func readNames(dirfd int) ([]string, error) {
	fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), ".")
	defer d.Close()
	return d.Readdirnames(-1)
}
