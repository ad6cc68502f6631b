package kiln

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/source"
)

// maxSecret bounds a secret, as BuildKit does.
const maxSecret = 500 << 10

// folders are the folders of a build by the name that its local sources use.
type folders map[string]string

// Local gives the folder itself: it is on this machine, and read in place.
func (f folders) Local(_ context.Context, name string, _ worker.Filter, _ func(int)) (string, error) {
	dir, ok := f[name]
	if !ok {
		return "", fmt.Errorf("the build has no local folder %q", name)
	}
	return filepath.Abs(dir)
}

// layouts are the folders of a build that are image layouts, by name.
type layouts map[string]source.LayoutDir

// Layout gives the layout itself.
func (l layouts) Layout(_ context.Context, name string) (source.BlobReader, error) {
	dir, ok := l[name]
	if !ok {
		return nil, fmt.Errorf("image layout %s: %w", name, fs.ErrNotExist)
	}
	return dir, nil
}

// uploads are the files that a build sends whole, by the paths of their URLs.
type uploads map[string]string

// Upload opens one.
func (u uploads) Upload(_ context.Context, of *url.URL) (io.ReadCloser, error) {
	file, ok := u[of.Path]
	if !ok {
		return nil, fmt.Errorf("the build has no file to send for %s: %w", of.Redacted(), fs.ErrNotExist)
	}
	return os.Open(file)
}

// secrets are the secrets of a build by id.
type secrets map[string]Secret

// Secret reads a secret at the time it is wanted.
func (s secrets) Secret(_ context.Context, id string) ([]byte, error) {
	secret, ok := s[id]
	if !ok {
		return nil, fmt.Errorf("secret %s: %w", id, fs.ErrNotExist)
	}
	switch {
	case secret.Env != "":
		v, ok := os.LookupEnv(secret.Env)
		if !ok {
			return nil, fmt.Errorf("secret %s: the environment variable %s is not set: %w", id, secret.Env, fs.ErrNotExist)
		}
		return []byte(v), nil
	case secret.Path != "":
		data, err := os.ReadFile(secret.Path)
		if err == nil && len(data) > maxSecret {
			err = fmt.Errorf("%s is larger than %d KiB", secret.Path, maxSecret>>10)
		}
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", id, err)
		}
		return data, nil
	}
	return secret.Value, nil
}

// agents are the ssh agents of a build by id.
type agents map[string]SSHAgent

// DialAgent connects to the running agent, or to one made of key files.
func (a agents) DialAgent(ctx context.Context, id string) (net.Conn, error) {
	if id == "" {
		id = "default"
	}
	conf, ok := a[id]
	if !ok {
		return nil, fmt.Errorf("ssh agent %s: %w", id, fs.ErrNotExist)
	}
	if len(conf.Keys) > 0 {
		return serveKeys(conf.Keys)
	}
	socket := conf.Socket
	if socket == "" {
		socket = os.Getenv("SSH_AUTH_SOCK")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("ssh agent %s: %w", id, err)
	}
	return conn, nil
}

// serveKeys is an agent that holds the keys of files. It ends when its connection does.
func serveKeys(files []string) (net.Conn, error) {
	ring := agent.NewKeyring()
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading an ssh key: %w", err)
		}
		key, err := ssh.ParseRawPrivateKey(data)
		if err != nil {
			var locked *ssh.PassphraseMissingError
			if errors.As(err, &locked) {
				err = errors.New("it has a passphrase; add it to an ssh agent and lend that")
			}
			return nil, fmt.Errorf("the ssh key %s: %w", file, err)
		}
		if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			return nil, fmt.Errorf("the ssh key %s: %w", file, err)
		}
	}
	ours, theirs := net.Pipe()
	go func() {
		defer ours.Close()
		agent.ServeAgent(readOnlyAgent{ring}, ours) // its error is the connection's end
	}()
	return theirs, nil
}

// readOnlyAgent lists keys and signs; a step may not change what its builder lent.
type readOnlyAgent struct{ agent.Agent }

var errReadOnlyAgent = errors.New("this agent cannot be changed")

func (readOnlyAgent) Add(agent.AddedKey) error   { return errReadOnlyAgent }
func (readOnlyAgent) Remove(ssh.PublicKey) error { return errReadOnlyAgent }
func (readOnlyAgent) RemoveAll() error           { return errReadOnlyAgent }
func (readOnlyAgent) Lock([]byte) error          { return errReadOnlyAgent }
func (readOnlyAgent) Unlock([]byte) error        { return errReadOnlyAgent }

// newSessionID names a build.
func newSessionID() solver.SessionID { return solver.SessionID(rand.Text()) }
