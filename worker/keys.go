package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/kiln-build/kiln/worker/source"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
)

// keyring gives the folder below which secrets are laid out: one in memory, so
// that none is ever written to a disk.
func keyring(c *cache.Cache, dir string) string {
	if dir != "" {
		return dir
	}
	for _, d := range []string{"/dev/shm", os.Getenv("XDG_RUNTIME_DIR"), "/run"} {
		var st unix.Statfs_t
		if d != "" && unix.Statfs(d, &st) == nil && st.Type == unix.TMPFS_MAGIC && unix.Access(d, unix.W_OK) == nil {
			return d
		}
	}
	return c.Path("tmp")
}

// keys is the folder with the secrets and agent sockets of one step.
type keys struct {
	dir   string
	count int
}

// keyPath gives a path for the next secret or socket of the step.
func (m *mounted) keyPath() (string, error) {
	if m.keys == nil {
		dir, err := os.MkdirTemp(m.w.keyring, "kiln-")
		if err != nil {
			return "", err
		}
		m.keys = &keys{dir: dir}
		m.cleanup = append(m.cleanup, func() { os.RemoveAll(dir) })
	}
	m.keys.count++
	return filepath.Join(m.keys.dir, strconv.Itoa(m.keys.count)), nil
}

// secretOf finds a secret in the sessions of a job.
func (w *Worker) secretOf(ctx context.Context, job *solver.Job, id string) ([]byte, error) {
	if id == "" {
		return nil, errors.New("secret ID missing")
	}
	for _, s := range w.of(job) {
		if s.Secrets == nil {
			continue
		}
		data, err := s.Secrets.Secret(ctx, id)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return data, err
		}
	}
	return nil, &MissingError{What: "secret " + id, hint: fmt.Sprintf("lend it with --secret id=%s,src=FILE or --secret id=%s,env=NAME", id, id)}
}

// uploadOf finds what a client sends under a URL of its session.
func (w *Worker) uploadOf(ctx context.Context, job *solver.Job, u *url.URL) (io.ReadCloser, error) {
	failed := fmt.Errorf("nobody sends %s: %w", u.Redacted(), fs.ErrNotExist)
	for _, s := range w.of(job) {
		if s.Uploads == nil {
			continue
		}
		r, err := s.Uploads.Upload(ctx, u)
		if err == nil {
			return r, nil
		}
		failed = err // another may have the same
	}
	return nil, failed
}

// MissingError is something that a step needs of a build, and that no build that
// wants the step lends. It is an fs.ErrNotExist.
type MissingError struct {
	What string
	hint string
}

func (e *MissingError) Error() string { return e.What + ": not found" }

// Unwrap gives fs.ErrNotExist.
func (e *MissingError) Unwrap() error { return fs.ErrNotExist }

// Hint says what to do.
func (e *MissingError) Hint() string { return e.hint }

// secretEnv gives the variables whose values are secrets.
func (w *Worker) secretEnv(ctx context.Context, job *solver.Job, vars []*pb.SecretEnv) ([]string, error) {
	var out []string
	for _, v := range vars {
		data, err := w.secretOf(ctx, job, v.ID)
		if errors.Is(err, fs.ErrNotExist) && v.Optional {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("environment variable %s: %w", v.Name, err)
		}
		out = append(out, v.Name+"="+string(data))
	}
	return out, nil
}

// secret mounts a file with a secret in it.
func (m *mounted) secret(ctx context.Context, mnt *pb.Mount, dest string) error {
	o := mnt.SecretOpt
	if o == nil {
		return errors.New("invalid secret mount options")
	}
	data, err := m.w.secretOf(ctx, m.job, o.ID)
	if errors.Is(err, fs.ErrNotExist) && o.Optional {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := m.keyPath()
	if err != nil {
		return err
	}
	if err := os.WriteFile(p, data, 0o600); err != nil {
		return err
	}
	if err := handOver(p, o.Uid, o.Gid, o.Mode); err != nil {
		return err
	}
	m.mounts = append(m.mounts, executor.Mount{Dest: dest, Source: p, ReadOnly: true})
	return nil
}

// handOver gives a secret's file to those in the step who may read it.
func handOver(p string, uid, gid, mode uint32) error {
	if err := os.Chown(p, int(uid), int(gid)); err != nil {
		return err
	}
	return os.Chmod(p, os.FileMode(mode&0o777))
}

// ssh mounts a socket that leads to an ssh agent of the session's.
func (m *mounted) ssh(ctx context.Context, mnt *pb.Mount, dest string) error {
	o := mnt.SSHOpt
	if o == nil {
		return errors.New("invalid SSH mount options")
	}
	there, err := m.w.dialAgent(ctx, m.job, o.ID)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && o.Optional {
			return nil
		}
		return err
	}
	there.Close()
	p, err := m.keyPath()
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	m.cleanup = append(m.cleanup, func() {
		cancel()
		l.Close()
		group.Wait()
	})
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// Which session lends the agent may change while the step runs.
			group.Go(func() {
				forward(ctx, c, func() (net.Conn, error) { return m.w.dialAgent(ctx, m.job, o.ID) })
			})
		}
	})
	if err := handOver(p, o.Uid, o.Gid, o.Mode); err != nil {
		return err
	}
	m.mounts = append(m.mounts, executor.Mount{Dest: dest, Source: p})
	return nil
}

// dialAgent connects to the ssh agent of that id that one of a job's sessions has.
func (w *Worker) dialAgent(ctx context.Context, job *solver.Job, id string) (net.Conn, error) {
	for _, s := range w.of(job) {
		if s.SSH == nil {
			continue
		}
		c, err := s.SSH.DialAgent(ctx, id)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	if id == "" {
		id = "default"
	}
	// The words in brackets are those of BuildKit's clients, which tools look for.
	return nil, &MissingError{What: fmt.Sprintf("no SSH key %q forwarded from the client (unset ssh forward key %s)", id, id), hint: fmt.Sprintf("lend one with --ssh %s, or keys with --ssh %s=FILE", id, id)}
}

// layoutOf finds an image layout in the sessions of a job.
func (w *Worker) layoutOf(ctx context.Context, job *solver.Job, name string) (source.BlobReader, error) {
	for _, s := range w.of(job) {
		if s.Layouts == nil {
			continue
		}
		l, err := s.Layouts.Layout(ctx, name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return l, err
		}
	}
	return nil, &MissingError{What: fmt.Sprintf("image layout %q", name)}
}

// forward passes bytes between a process of the step and an agent, until either
// ends or the step does.
func forward(ctx context.Context, c net.Conn, dial func() (net.Conn, error)) {
	defer c.Close()
	a, err := dial()
	if err != nil {
		return
	}
	defer a.Close()
	stop := context.AfterFunc(ctx, func() {
		c.Close()
		a.Close()
	})
	defer stop()
	var group sync.WaitGroup
	group.Go(func() {
		io.Copy(a, c)
		closeWrite(a)
	})
	io.Copy(c, a)
	// The agent has hung up: nobody reads what the process may still write.
	c.Close()
	a.Close()
	group.Wait()
}

func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
		return
	}
	c.Close()
}
