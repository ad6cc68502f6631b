package caller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/moby/buildkit/session/upload"
	"google.golang.org/grpc/metadata"
)

// The headers in which clients are told what is wanted.
const (
	uploadPath = "urlpath"
	uploadHost = "urlhost"
)

// Upload reads what the client sends under a URL of its session.
func (c *Caller) Upload(ctx context.Context, u *url.URL) (io.ReadCloser, error) {
	conn, err := c.get(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(conn.Context(ctx))
	ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs(uploadPath, u.Path, uploadHost, u.Host))
	stream, err := upload.NewUploadClient(conn.Conn()).Pull(ctx)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("asking the client for %s: %w", u.Redacted(), err)
	}
	up := &uploaded{stream: stream, cancel: cancel}
	// Whether the client has it at all shows with what it sends first.
	if up.rest, err = up.receive(); err != nil && !errors.Is(err, io.EOF) {
		cancel()
		return nil, err
	}
	return up, nil
}

// uploaded reads a stream of messages as one of bytes.
type uploaded struct {
	stream upload.Upload_PullClient
	cancel context.CancelFunc
	rest   []byte
}

func (u *uploaded) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		var err error
		if u.rest, err = u.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

// receive gives what comes next.
func (u *uploaded) receive() ([]byte, error) {
	m, err := u.stream.Recv()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			err = fmt.Errorf("the client stopped sending: %w", err)
		}
		return nil, err
	}
	return m.Data, nil
}

// Close lets go of what the client has not sent yet.
func (u *uploaded) Close() error {
	u.cancel()
	return nil
}
