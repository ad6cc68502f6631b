package executor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Options of every overlay. An index would tie the aliases of the pool together
// when one of them is copied up; with the others upper folders would be no layers.
// Without a sync at the end (volatile) a step's data is in the page cache like
// any other file's: kiln makes results durable in its own way.
var overlayOptions = []string{"source=overlay", "index=off", "metacopy=off"}

// maxString is the longest value that fsconfig takes.
const maxString = 255

// noLowerdirPlus is set once the kernel has refused layers one at a time (it takes them from Linux 6.8 on).
var noLowerdirPlus atomic.Bool

// overlay mounts a stack of layers. The result is mounted nowhere yet, or on the
// staging folder where the kernel is too old for that. Below the layers lie
// extra folders.
func (b *box) overlay(o Overlay, extra ...string) (int, error) {
	lowers := make([]string, 0, len(o.Lower)+len(extra))
	for i := len(o.Lower) - 1; i >= 0; i-- {
		lowers = append(lowers, o.Lower[i])
	}
	lowers = append(lowers, extra...)
	switch {
	case len(lowers) == 0:
		lowers = append(lowers, b.n.path("empty"))
	case len(lowers) > maxLayers:
		return -1, fmt.Errorf("mounting %d layers: the kernel takes %d at most", len(lowers), maxLayers)
	}
	if len(lowers) == 1 && o.Upper == "" {
		fd, err := clone(unix.AT_FDCWD, lowers[0])
		if err != nil {
			return -1, fmt.Errorf("mounting layer %s: %w", lowers[0], err)
		}
		if err := restrict(fd, unix.MOUNT_ATTR_RDONLY); err != nil {
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
	if !noLowerdirPlus.Load() {
		fd, err := b.overlayByParts(lowers, o.Upper, o.Work)
		if !errors.Is(err, errNoLowerdirPlus) {
			return fd, err
		}
		noLowerdirPlus.Store(true)
	}
	return b.overlayByLinks(lowers, o.Upper, o.Work)
}

// maxLayers is overlayfs's own limit.
const maxLayers = 500

var errNoLowerdirPlus = errors.New("the kernel does not take overlay layers one at a time")

func (b *box) overlayByParts(lowers []string, upper, work string) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening overlayfs: %w", err)
	}
	defer unix.Close(fs)
	var open []int // the folders with long paths
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	setPath := func(key, path string) error {
		if len(path) > maxString {
			fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			open = append(open, fd)
			path = "/proc/self/fd/" + strconv.Itoa(fd)
		}
		return unix.FsconfigSetString(fs, key, path)
	}
	for i, dir := range lowers {
		if err := setPath("lowerdir+", dir); err != nil {
			if i == 0 && errors.Is(err, unix.EINVAL) {
				return -1, errNoLowerdirPlus
			}
			return -1, fmt.Errorf("stacking layer %s: %w", dir, explain(fs, err))
		}
	}
	if upper != "" {
		if err := setPath("upperdir", upper); err != nil {
			return -1, fmt.Errorf("stacking upper folder %s: %w", upper, explain(fs, err))
		}
		if err := setPath("workdir", work); err != nil {
			return -1, fmt.Errorf("using work folder %s: %w", work, explain(fs, err))
		}
	}
	for _, o := range b.options(upper) {
		if err := setOption(fs, o); err != nil {
			return -1, fmt.Errorf("setting %s of overlay: %w", o, explain(fs, err))
		}
	}
	return create(fs, "overlay", 0)
}

func (b *box) options(upper string) []string {
	o := overlayOptions[:len(overlayOptions):len(overlayOptions)]
	if b.n.userns {
		// With attributes in the name of a user the kernel knows this word for the same.
		o = append(o, "redirect_dir=nofollow", "userxattr")
	} else {
		o = append(o, "redirect_dir=off")
	}
	if upper != "" {
		o = append(o, "volatile")
	}
	return o
}

// overlayByLinks is for kernels that take all layers in one string, of a page at
// most: the layers get names of a few bytes, as links in a file system of their own.
func (b *box) overlayByLinks(lowers []string, upper, work string) (int, error) {
	links, err := newMount("tmpfs", hardened)
	if err != nil {
		return -1, err
	}
	defer unix.Close(links)
	dir := b.n.path("links")
	if err := unix.MoveMount(links, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, fmt.Errorf("mounting the links to layers: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)

	link := func(name, target string) (string, error) {
		abs, err := filepath.Abs(target)
		if err != nil {
			return "", err
		}
		return name, os.Symlink(abs, filepath.Join(dir, name))
	}
	names := make([]string, len(lowers))
	for i, l := range lowers {
		if names[i], err = link(strconv.FormatInt(int64(i), 36), l); err != nil {
			return -1, err
		}
	}
	options := []string{"lowerdir=" + strings.Join(names, ":")}
	if upper != "" {
		if _, err := link("upper", upper); err != nil {
			return -1, err
		}
		if _, err := link("work", work); err != nil {
			return -1, err
		}
		options = append(options, "upperdir=upper", "workdir=work")
	}
	options = append(options, b.options(upper)[1:]...) // the source has an argument of its own

	stage := b.n.path("stage")
	if err := unix.Chdir(dir); err != nil {
		return -1, err
	}
	err = unix.Mount("overlay", stage, "overlay", 0, strings.Join(options, ","))
	if cerr := unix.Chdir("/"); err == nil {
		err = cerr
	}
	if err != nil {
		return -1, fmt.Errorf("mounting an overlay of %d layers: %w", len(lowers), err)
	}
	defer unix.Unmount(stage, unix.MNT_DETACH)
	return clone(unix.AT_FDCWD, stage)
}
