package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// supply is a layer's blob as a store is given it. It tells what is wrong with the layer
// from what is wrong with the store: the former costs the records that need the layer,
// and not the export.
type supply struct {
	form Form

	mu  sync.Mutex // guards err
	err error      // why the last reading came to no end
}

// open opens the blob for one attempt to send it.
func (s *supply) open(ctx context.Context) (io.ReadCloser, error) {
	s.note(nil)
	r, err := s.form.Open(ctx)
	if err != nil {
		s.note(err)
		return nil, err
	}
	return &reading{of: s, ctx: ctx, r: r, left: s.form.Blob.Size}, nil
}

func (s *supply) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// fault gives what of an error of Target.Put costs the layer alone: that it could not be
// read, or is somebody else's to send. Nil is that the error is the store's.
func (s *supply) fault(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, ErrTaken):
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// reading is one reading of a supply. A request that ends closes it, maybe in the
// middle of a read, whose error then is no fault of its own.
type reading struct {
	of   *supply
	ctx  context.Context // of the attempt that it is for
	r    io.ReadCloser
	left int64 // bytes that are still to come

	mu     sync.Mutex // guards closed
	closed bool
}

func (r *reading) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.left -= int64(n)
	if err == io.EOF && r.left > 0 {
		err = fmt.Errorf("blob %s ends %d bytes early: %w", r.of.form.Blob.Digest, r.left, io.ErrUnexpectedEOF)
	}
	if err != nil && err != io.EOF && r.ctx.Err() == nil && !r.isClosed() {
		r.of.note(err)
	}
	return n, err
}

func (r *reading) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

func (r *reading) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	return r.r.Close()
}
