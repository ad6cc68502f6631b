// Package dest writes outputs to paths of this machine: a tarball to a file or to
// standard output, a result to a folder.
//
// A file appears when it is complete, and not before: it is written without a
// name where the file system can do that, so that not even SIGKILL leaves a part
// of it. What exists and is no regular file (a pipe, a device) is written to as
// it is.
package dest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/exporter"
	"golang.org/x/sys/unix"
)

// Path is a Target: a path of this machine, or "-" for Stdout.
type Path struct {
	Name string
	// Stdout is what "-" stands for; nil is os.Stdout.
	Stdout io.Writer
}

var _ exporter.Placer = Path{}

// Place opens the file where it is a regular one, or is not there yet.
func (p Path) Place(ctx context.Context) (exporter.PlacedFile, error) {
	if p.Name == "-" {
		return nil, nil
	}
	if st, err := os.Stat(p.Name); err == nil && !st.Mode().IsRegular() {
		return nil, nil // File says what is wrong with it
	}
	f, err := p.File(ctx, nil)
	if err != nil {
		return nil, err
	}
	if c, ok := f.(*created); ok {
		return c, nil
	}
	return nil, f.Abort() // it has become something else just now
}

// File opens the file. Folders above it are made.
func (p Path) File(context.Context, map[string]string) (exporter.File, error) {
	if p.Name == "-" {
		if p.Stdout != nil {
			return plain{p.Stdout}, nil
		}
		return kernel{os.Stdout}, nil
	}
	st, err := os.Stat(p.Name)
	switch {
	case err == nil && st.IsDir():
		return nil, fmt.Errorf("writing the output: %s is a folder; name a file, dest=%s for one", p.Name, filepath.Join(p.Name, "image.tar"))
	case err == nil && !st.Mode().IsRegular():
		f, err := os.OpenFile(p.Name, os.O_WRONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("writing the output: %w", err)
		}
		return opened{kernel{f}}, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("writing the output: %w", err)
	}
	name := p.Name
	if err == nil {
		// A link to a file stays a link; the file behind it is replaced.
		if name, err = filepath.EvalSymlinks(name); err != nil {
			return nil, fmt.Errorf("writing the output: %w", err)
		}
	}
	return create(name)
}

// Folder opens the folder, making it if need be.
func (p Path) Folder(context.Context) (exporter.Folder, error) {
	if p.Name == "-" {
		return nil, errors.New("writing the output: a folder cannot be written to standard output; name one with dest=")
	}
	if err := os.MkdirAll(p.Name, 0o755); err != nil {
		return nil, fmt.Errorf("making the output folder: %w", err)
	}
	return folder(p.Name), nil
}

type folder string

func (f folder) Path() string { return string(f) }
func (folder) Commit() error  { return nil }
func (folder) Abort() error   { return nil }

// plain is a writer of the caller's, which stays open.
type plain struct{ io.Writer }

func (plain) Commit() error { return nil }
func (plain) Abort() error  { return nil }

// kernel is an open file that stays open; its ReadFrom copies in the kernel.
type kernel struct{ *os.File }

func (kernel) Commit() error { return nil }
func (kernel) Abort() error  { return nil }

// opened is a pipe or device that was opened for the output.
type opened struct{ kernel }

func (o opened) Commit() error { return o.Close() }
func (o opened) Abort() error  { return o.Close() }

// created is a new file that has no name yet, or a temporary one.
type created struct {
	*os.File
	name string
	temp string // "" while the file has no name
}

func create(name string) (exporter.File, error) {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the output's folder: %w", err)
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o666)
	if err == nil {
		return &created{File: os.NewFile(uintptr(fd), name), name: name}, nil
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+".*")
	if err != nil {
		return nil, fmt.Errorf("writing the output: %w", err)
	}
	c := &created{File: f, name: name, temp: f.Name()}
	if err := f.Chmod(0o666 &^ umask()); err != nil {
		return nil, errors.Join(fmt.Errorf("writing the output: %w", err), c.Abort())
	}
	return c, nil
}

// Commit gives the file its name, replacing what had it.
func (c *created) Commit() error {
	if c.temp == "" {
		// A file without a name cannot replace another: it takes a temporary one first.
		proc := "/proc/self/fd/" + strconv.Itoa(int(c.Fd()))
		temp := filepath.Join(filepath.Dir(c.name), "."+filepath.Base(c.name)+"."+strconv.Itoa(os.Getpid())+"."+strconv.Itoa(int(c.Fd())))
		_ = os.Remove(temp)
		if err := unix.Linkat(unix.AT_FDCWD, proc, unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW); err != nil {
			return errors.Join(fmt.Errorf("naming the output %s: %w", c.name, err), c.Abort())
		}
		c.temp = temp
	}
	if err := os.Rename(c.temp, c.name); err != nil {
		return errors.Join(fmt.Errorf("naming the output: %w", err), c.Abort())
	}
	c.temp = ""
	if err := c.Close(); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// Abort leaves nothing of the file.
func (c *created) Abort() error {
	err := c.Close()
	if c.temp != "" {
		err = errors.Join(err, os.Remove(c.temp))
	}
	return err
}

// umask reads the process's umask without changing it.
func umask() os.FileMode {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o022
	}
	return parseUmask(string(status))
}

func parseUmask(status string) os.FileMode {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			if m, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32); err == nil {
				return os.FileMode(m)
			}
		}
	}
	return 0o022
}
