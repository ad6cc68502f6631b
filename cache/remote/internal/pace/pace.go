// Package pace ends HTTP requests that stand still: those whose server neither
// takes nor sends a byte for a while. How long we take to read what it sends, or to
// make what it is sent, does not count. A limit on the whole of a request would cut
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
	"sync"
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
		req.Body = &sentBody{req.Body, s}
		if again := req.GetBody; again != nil {
			req.GetBody = func() (io.ReadCloser, error) {
				b, err := again()
				if err != nil {
					return nil, err
				}
				return &sentBody{b, s}, nil
			}
		}
	}
	resp, err := t.Base.RoundTrip(req)
	if err != nil {
		err = s.explain(ctx, err)
		s.enter(over)
		cancel(nil)
		return nil, err
	}
	s.enter(receiving)
	resp.Body = &receivedBody{resp.Body, s, ctx}
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

// phase is how far a request has come.
type phase uint8

const (
	// sending is until the header of the answer is there. The clock runs, but while the
	// request's body is read: what that takes is ours.
	sending phase = iota
	// receiving is until the answer's body is closed. The clock runs while that is read:
	// between two reads it is we who stand still. What is left of the request's body may
	// still be read, and tells nothing.
	receiving
	// over is the end; the clock runs no more.
	over
)

// stall ends a request that stands still: its clock runs while it is the server's turn.
type stall struct {
	after  time.Duration
	cancel context.CancelCauseFunc

	mu    sync.Mutex // guards what follows
	phase phase
	timer *time.Timer
}

// clock starts or stops the clock, for whoever belongs to a phase.
func (s *stall) clock(of phase, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.phase != of:
	case on:
		s.timer.Reset(s.after)
	default:
		s.timer.Stop()
	}
}

// enter begins a phase, with the clock stopped.
func (s *stall) enter(p phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = p
	s.timer.Stop()
}

// explain gives the reason why a request was ended, where that was here.
func (s *stall) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, ErrStalled) {
		return cause
	}
	return err
}

// sentBody is the body of a request.
type sentBody struct {
	io.ReadCloser
	stall *stall
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.stall.clock(sending, false)
	defer b.stall.clock(sending, true)
	return b.ReadCloser.Read(p)
}

// receivedBody is the body of an answer.
type receivedBody struct {
	io.ReadCloser
	stall *stall
	ctx   context.Context // of the request
}

func (b *receivedBody) Read(p []byte) (int, error) {
	b.stall.clock(receiving, true)
	n, err := b.ReadCloser.Read(p)
	b.stall.clock(receiving, false)
	if err != nil && err != io.EOF {
		err = b.stall.explain(b.ctx, err)
	}
	return n, err
}

func (b *receivedBody) Close() error {
	b.stall.enter(over)
	b.stall.cancel(nil)
	return b.ReadCloser.Close()
}
