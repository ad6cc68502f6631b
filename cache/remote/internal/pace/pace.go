// Package pace ends HTTP requests that stand still: those whose server neither
// takes nor sends a byte for a while. A limit on the whole of a request would cut
// large blobs off on slow lines; none at all would let a dead server hang a build.
//
// It also knows of a server that stood still, and gives it up: requests that
// follow fail at once, so that a build waits for a dead server once and not for
// every layer.
package pace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// After is how long a server may stand still where a Transport does not say.
const After = 15 * time.Second

// maxStalls is how many requests may stand still before the server is given up.
const maxStalls = 2

// ErrStalled is inside the error of a request that stood still.
var ErrStalled = errors.New("the server stood still")

// Transport is an http.RoundTripper that ends what stands still. It is safe for
// concurrent use.
type Transport struct {
	// Base makes the requests; nil is a transport of its own.
	Base http.RoundTripper
	// After is how long the server may stand still; 0 is After.
	After time.Duration

	stalls atomic.Int32
}

// New gives a Transport on connections of its own; after 0 is After.
func New(after time.Duration) *Transport {
	if after == 0 {
		after = After
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: after}).DialContext
	t.TLSHandshakeTimeout = after
	return &Transport{Base: t, After: after}
}

// RoundTrip makes a Transport an http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.stalls.Load() >= maxStalls {
		closeBody(req)
		return nil, fmt.Errorf("%w, and was given up", ErrStalled)
	}
	after := t.After
	if after == 0 {
		after = After
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	s := &stall{after: after, cancel: cancel}
	s.timer = time.AfterFunc(after, func() {
		t.stalls.Add(1)
		cancel(fmt.Errorf("%w for %v", ErrStalled, after))
	})
	req = req.Clone(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &body{req.Body, s, ctx, false}
	}
	resp, err := t.Base.RoundTrip(req)
	if err != nil {
		err = s.explain(ctx, err)
		s.stop()
		return nil, err
	}
	s.timer.Reset(after)
	resp.Body = &body{resp.Body, s, ctx, true}
	return resp, nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

// CloseIdleConnections lets go of what is kept for later requests.
func (t *Transport) CloseIdleConnections() {
	if b, ok := t.Base.(interface{ CloseIdleConnections() }); ok {
		b.CloseIdleConnections()
	}
}

// stall ends a request that stands still.
type stall struct {
	timer  *time.Timer
	after  time.Duration
	cancel context.CancelCauseFunc
}

func (s *stall) stop() {
	s.timer.Stop()
	s.cancel(nil)
}

// explain gives the reason why a request was ended, where that was here.
func (s *stall) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, ErrStalled) {
		return cause
	}
	return err
}

// body is one of a request or a response, with each of whose reads the clock
// begins anew.
type body struct {
	io.ReadCloser
	stall    *stall
	ctx      context.Context // of the request
	response bool
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.stall.timer.Reset(b.stall.after)
	}
	if err != nil && err != io.EOF {
		err = b.stall.explain(b.ctx, err)
	}
	return n, err
}

func (b *body) Close() error {
	if b.response {
		b.stall.stop()
	}
	return b.ReadCloser.Close()
}
