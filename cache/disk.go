package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Space is what the file system of the state folder has, in bytes.
type Space struct {
	Total, Free int64 // Free is what programs without privileges may still take
}

// Space asks the file system.
func (c *Cache) Space() (Space, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(c.root.Fd()), &st); err != nil {
		return Space{}, fmt.Errorf("asking for the free space of %s: %w", c.dir, err)
	}
	return Space{Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}, nil
}

// DiskUsage gives what the state folder takes on the disk, each inode counted
// once: what du -s says.
func (c *Cache) DiskUsage() (int64, error) {
	n, err := diskUsage(c.dir)
	if err != nil {
		return 0, fmt.Errorf("measuring the state folder: %w", err)
	}
	return n, nil
}

// usageDepth is how many folders inside each other diskUsage goes through, all of which
// it has open: as many as a path of 4,096 bytes. A step can make more in a cache mount,
// until there are no descriptors for them.
const usageDepth = 2048

// diskUsage adds up the blocks of path and what is below. What vanishes meanwhile
// is left out, and what is deeper than usageDepth.
func diskUsage(path string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]struct{}{}
	var total int64
	var walk func(dirfd int, name string, level int) error
	walk = func(dirfd int, name string, level int) error {
		if level > usageDepth {
			return nil
		}
		fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		d := os.NewFile(uintptr(fd), name)
		defer d.Close()
		var own unix.Stat_t
		if err := unix.Fstat(fd, &own); err != nil {
			return err
		}
		total += own.Blocks * 512
		names, err := d.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, n := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				continue
			}
			if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				k := inode{st.Dev, st.Ino}
				if _, ok := seen[k]; ok {
					continue
				}
				seen[k] = struct{}{}
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				total += st.Blocks * 512
			} else if err := walk(fd, n, level+1); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%s: %w", n, err)
			}
		}
		return nil
	}
	err := walk(unix.AT_FDCWD, path, 0)
	return total, err
}

// glob gives what is in a folder that may be missing under names like one of some
// patterns. filepath.Glob would take the path of the user's folder for a pattern, too.
func glob(dir string, patterns ...string) (paths []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		for _, p := range patterns {
			if ok, perr := filepath.Match(p, e.Name()); perr != nil {
				return nil, perr
			} else if ok {
				paths = append(paths, filepath.Join(dir, e.Name()))
				break
			}
		}
	}
	return paths, err
}
