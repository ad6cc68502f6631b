package caller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"

	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/sshforward"
	"google.golang.org/grpc/metadata"
)

// maxSecret bounds a secret, as BuildKit does.
const maxSecret = 500 << 10

// authTimeout bounds how long a client may take to find a login: it may ask a
// person, or a slow credential helper.
const authTimeout = time.Minute

// Secret asks the client for a secret.
func (c *Caller) Secret(ctx context.Context, id string) ([]byte, error) {
	conn, err := c.get(ctx)
	if err != nil {
		return nil, err
	}
	data, err := secrets.GetSecret(ctx, conn, id)
	switch {
	case errors.Is(err, secrets.ErrNotFound):
		return nil, fmt.Errorf("secret %s: %w", id, fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("asking the client for the secret %s: %w", id, err)
	case len(data) > maxSecret:
		return nil, fmt.Errorf("the secret %s is larger than %d KiB", id, maxSecret>>10)
	}
	return data, nil
}

// Credential asks the client for a login.
func (c *Caller) Credential(ctx context.Context, host string) (user, secret string, err error) {
	conn, err := c.get(ctx)
	if err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(conn.Context(ctx), authTimeout)
	defer cancel()
	resp, err := auth.NewAuthClient(conn.Conn()).Credentials(ctx, &auth.CredentialsRequest{Host: host})
	if err != nil {
		if missing(err) {
			return "", "", nil
		}
		return "", "", fmt.Errorf("asking the client for a login at %s: %w", host, err)
	}
	return resp.Username, resp.Secret, nil
}

// DialAgent connects to an ssh agent of the client's.
func (c *Caller) DialAgent(ctx context.Context, id string) (net.Conn, error) {
	if id == "" {
		id = sshforward.DefaultID
	}
	conn, err := c.get(ctx)
	if err != nil {
		return nil, err
	}
	if err := sshforward.CheckSSHID(ctx, conn, id); err != nil {
		// Clients have no code of their own for an agent that they do not have.
		return nil, fmt.Errorf("ssh agent %s: %w: %w", id, fs.ErrNotExist, err)
	}
	ctx, cancel := context.WithCancel(conn.Context(ctx))
	ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs(sshforward.KeySSHID, id))
	stream, err := sshforward.NewSSHClient(conn.Conn()).ForwardAgent(ctx)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("ssh agent %s: %w", id, err)
	}
	ours, theirs := net.Pipe()
	go func() {
		defer cancel()
		sshforward.Copy(ctx, theirs, stream, stream.CloseSend) // its error is the connection's end
	}()
	return &agentConn{Conn: ours, cancel: cancel}, nil
}

// agentConn ends the stream to the client when it is closed.
type agentConn struct {
	net.Conn
	cancel context.CancelFunc
}

func (a *agentConn) Close() error {
	defer a.cancel()
	return a.Conn.Close()
}
