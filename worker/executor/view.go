package executor

import (
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// View opens what a process sees of m. An overlay is mounted once more for it, for
// nobody else to see and with the upper folder as the topmost of those that are
// only read: so it shows what was written by now, however long it is open.
func (n *Native) View(m Mount) (*os.File, error) {
	type result struct {
		fd  int
		err error
	}
	ended := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, err := n.view(m)
		ended <- result{fd, err}
	}()
	r := <-ended
	if r.err != nil {
		return nil, r.err
	}
	return os.NewFile(uintptr(r.fd), "view"), nil
}

// view is View on a thread that may leave the host's mount namespace, where an old
// kernel wants overlays mounted somewhere.
func (n *Native) view(m Mount) (int, error) {
	switch {
	case m.Overlay != nil:
		o := *m.Overlay
		if o.Upper != "" {
			o.Lower, o.Upper, o.Work = append(slices.Clone(o.Lower), o.Upper), "", ""
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return -1, fmt.Errorf("making a mount namespace: %w", err)
		}
		defer n.rejoin(unix.CLONE_NEWNS)
		if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
			return -1, fmt.Errorf("making mounts private: %w", err)
		}
		fd, err := (&box{n: n, s: &Spec{}}).overlay(o)
		if err != nil {
			return -1, err
		}
		return selected(fd, m.Selector)
	case m.Source != "":
		fd, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("opening %s: %w", m.Dest, err)
		}
		return selected(fd, m.Selector)
	}
	return -1, fmt.Errorf("%s has no files outside of the processes that see it", m.Dest)
}

// selected gives what is at a path of an open folder, which it closes.
func selected(dir int, selector string) (int, error) {
	if path.Join("/", selector) == "/" {
		return dir, nil
	}
	defer unix.Close(dir)
	return rootDir(dir).find(selector)
}
