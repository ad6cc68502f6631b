package local

import (
	"errors"
	"strconv"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/worker/internal/dirfd"
	"github.com/kiln-build/kiln/worker/layer"
	"golang.org/x/sys/unix"
)

// tagOf makes the tag of a file of the folder: of its path, or, where it has
// hard links, of its inode, which all of them share without having to be found.
func tagOf(rel, name string, st *unix.Stat_t) uint64 {
	if st.Nlink > 1 {
		return layer.TagOf("inode:" + strconv.FormatUint(st.Dev, 36) + ":" + strconv.FormatUint(st.Ino, 36))
	}
	if rel == "" {
		return layer.TagOf(name)
	}
	return layer.TagOf(rel + "/" + name)
}

// read finds out what a name's stat does not say.
func (it *item) read(fd int) error {
	it.known = &record{name: it.entry.Name}
	it.known.of(&it.stat)
	var err error
	switch it.entry.Kind {
	case tree.File:
		return it.readFile(fd)
	case tree.Symlink:
		if it.known.target, err = dirfd.Readlink(fd, it.entry.Name); err != nil {
			return err
		}
	}
	it.known.xattrs, err = dirfd.Xattrs(fd, it.entry.Name, layer.KeepXattr)
	return err
}

// readFile hashes a file. Where the file changes meanwhile, the newest stat
// counts, and is never remembered, so that a capture decides which bytes it was.
func (it *item) readFile(dir int) error {
	fd, err := dirfd.File(dir, it.entry.Name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if it.known.xattrs, err = dirfd.Xattrs(fd, "", layer.KeepXattr); err != nil {
		return err
	}
	sum, size, err := dirfd.Sum(fd, it.stat.Size)
	if err != nil {
		return err
	}
	it.known.content = sum
	var after unix.Stat_t
	if err := unix.Fstat(fd, &after); err != nil {
		return err
	}
	if after.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("not a regular file any more")
	}
	if size != it.stat.Size || !it.known.fits(it.entry.Name, &after) {
		it.known.unsure = true
		it.entry.Size, it.entry.MTime, it.entry.Mode = size, after.Mtim.Nano(), after.Mode&0o7777
	}
	return nil
}
