package executor

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/worker/executor/internal/launch"
	"github.com/kiln-build/kiln/worker/executor/internal/seccomp"
)

// defaultPath is what docker gives an image that sets no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the spec's, with the variables that a process always has.
func (b *box) environment() []string {
	env := b.s.Env[:len(b.s.Env):len(b.s.Env)]
	if _, ok := variable(env, "PATH"); !ok {
		env = append(env, "PATH="+defaultPath)
	}
	if home, _ := variable(env, "HOME"); home == "" {
		env = append(env, "HOME="+b.user.home)
	}
	if _, ok := variable(env, "TERM"); !ok && b.s.Terminal != nil {
		env = append(env, "TERM=xterm")
	}
	return env
}

// variable gives the value of name in env, of which the last counts.
func variable(env []string, name string) (value string, ok bool) {
	for i := len(env) - 1; i >= 0; i-- {
		if k, v, found := strings.Cut(env[i], "="); found && k == name {
			return v, true
		}
	}
	return "", false
}

// findProgram gives the path at which the process finds its program.
func (b *box) findProgram() (string, error) {
	name := b.s.Args[0]
	if strings.Contains(name, "/") {
		return name, nil
	}
	search, ok := variable(b.s.Env, "PATH")
	if !ok {
		search = defaultPath
	}
	for dir := range strings.SplitSeq(search, ":") {
		if dir == "" {
			dir = "."
		}
		if !path.IsAbs(dir) {
			dir = path.Join("/", b.s.Cwd, dir)
		}
		if p := path.Join(dir, name); b.executable(p) {
			return p, nil
		}
	}
	return "", &fs.PathError{Op: "exec", Path: name, Err: fmt.Errorf("no such program in PATH (%s): %w", search, fs.ErrNotExist)}
}

func (b *box) executable(name string) bool {
	fd, err := b.root.find(name)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0
}

// explainStart says what a failed start means where the kernel's word does not.
func explainStart(s *Spec, err error) error {
	var e *launch.Error
	if !errors.As(err, &e) || !strings.HasPrefix(e.What, "executing ") {
		return err
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w (the file, or the interpreter that it names, is not in the image)", err)
	case errors.Is(err, unix.ENOEXEC):
		return fmt.Errorf("%w (it is no program for this machine, and no script that names its interpreter)", err)
	}
	return err
}

// filter appends the call that sets docker's default seccomp filter.
func filter(p *launch.Program) error {
	f, err := seccomp.Default()
	if err != nil {
		return err
	}
	code := p.Data(f)
	// struct sock_fprog: a count, padding, a pointer
	prog := p.Words(launch.Int(uint64(len(f)/8)), code)
	p.Call("setting the seccomp filter", unix.SYS_SECCOMP, launch.Int(unix.SECCOMP_SET_MODE_FILTER), launch.Int(0), prog)
	return nil
}
