package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// socketName is the socket of a state folder, at which the process that has the
// folder serves others of the same user.
const socketName = "kiln.sock"

// maxSocketPath is the longest path that a socket can have, less what a temporary
// name adds. Longer ones go by the folder's descriptor.
const maxSocketPath = 90

// shortPath gives a path of a folder that is short enough for sockets in it, until
// release is called.
func shortPath(dir string) (path string, release func(), err error) {
	if len(dir) < maxSocketPath-len(socketName) {
		return dir, func() {}, nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), func() { unix.Close(fd) }, nil
}

// dialState connects to the process that serves a state folder.
func dialState(ctx context.Context, root string) (net.Conn, error) {
	dir, release, err := shortPath(root)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", filepath.Join(dir, socketName))
}

// listenState serves a state folder, which this process has: a socket that is
// there belongs to nobody any more.
func listenState(ctx context.Context, root string) (net.Listener, error) {
	if err := os.Remove(filepath.Join(root, socketName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return listenUnix(ctx, filepath.Join(root, socketName))
}

// listenUnix makes a socket that only its owner can reach, in a folder of the same
// kind if it has to be made. A socket that nobody answers at is replaced.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if path == "" {
		return nil, usagef("unix:// wants the path of a socket")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	short, release, err := shortPath(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer release()
	if err := freeSocket(ctx, path, filepath.Join(short, filepath.Base(path))); err != nil {
		return nil, err
	}
	// Nobody may connect between the making of the socket and its chmod: it is made
	// under a name in a folder of its own.
	dir, err := os.MkdirTemp(short, ".k")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	temp := filepath.Join(dir, "s")
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", temp)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(temp, 0o600), os.Rename(temp, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socket{u, path}, nil
}

// freeSocket removes a socket that nobody answers at; short is another path of it.
func freeSocket(ctx context.Context, path, short string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there, and is no socket", path)
	}
	d := net.Dialer{Timeout: time.Second}
	if c, err := d.DialContext(ctx, "unix", short); err == nil {
		c.Close()
		return errors.New("another process serves it")
	}
	return os.Remove(path)
}

// socket removes its file when it is closed.
type socket struct {
	*net.UnixListener
	path string
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if rm := os.Remove(s.path); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return err
}
