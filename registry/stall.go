package registry

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// errStalled is why a transfer without progress was given up.
var errStalled = errors.New("the connection stalled: nothing was transferred for too long")

// stallReader is a response's body that gives up where no byte comes for a while.
// A timeout for the whole of a body would be wrong for large layers on slow lines.
type stallReader struct {
	body   io.ReadCloser
	stall  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
	ctx    context.Context
}

func (s *stallReader) Read(p []byte) (int, error) {
	if s.timer == nil {
		s.timer = time.AfterFunc(s.stall, func() { s.cancel(errStalled) })
	} else {
		s.timer.Reset(s.stall)
	}
	n, err := s.body.Read(p)
	s.timer.Stop()
	if err != nil && err != io.EOF {
		if cause := context.Cause(s.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (s *stallReader) Close() error {
	if s.timer != nil {
		s.timer.Stop()
	}
	err := s.body.Close()
	s.cancel(nil)
	return err
}

// upload watches the body of a request: it tells a failure to read the content
// from one to send it, and gives up where the server takes no more.
type upload struct {
	stall  time.Duration
	cancel context.CancelCauseFunc

	mu  sync.Mutex
	err error // of reading the content
}

func (u *upload) open(ctx context.Context, content Content) (io.ReadCloser, error) {
	r, err := content(ctx)
	if err != nil {
		return nil, &contentError{err}
	}
	return &uploadBody{up: u, r: r}, nil
}

// failure gives why the content could not be read, if so.
func (u *upload) failure() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

// uploadBody is one reading of the content. The clock runs between two reads,
// that is, while the transport waits for the server.
type uploadBody struct {
	up *upload
	r  io.ReadCloser

	mu     sync.Mutex
	timer  *time.Timer
	closed bool
}

func (b *uploadBody) Read(p []byte) (int, error) {
	b.setTimer(false)
	n, err := b.r.Read(p)
	switch {
	case err == nil:
		b.setTimer(true)
	case err != io.EOF:
		b.up.mu.Lock()
		b.up.err = &contentError{err}
		b.up.mu.Unlock()
	}
	return n, err
}

func (b *uploadBody) Close() error {
	b.mu.Lock()
	b.closed = true
	if b.timer != nil {
		b.timer.Stop()
	}
	b.mu.Unlock()
	return b.r.Close()
}

func (b *uploadBody) setTimer(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
	case !on && b.timer != nil:
		b.timer.Stop()
	case on && b.timer == nil:
		b.timer = time.AfterFunc(b.up.stall, func() { b.up.cancel(errStalled) })
	case on:
		b.timer.Reset(b.up.stall)
	}
}
