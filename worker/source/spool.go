package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
)

// spooled is a file without a name that holds what was read of a stream.
type spooled struct {
	*os.File
	digest blob.Digest
	size   int64
}

// spool reads r to its end into a temporary file and leaves that at its beginning.
func spool(dir string, r io.Reader) (*spooled, error) {
	f, err := os.CreateTemp(dir, "download-")
	if err != nil {
		return nil, fmt.Errorf("making a temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), r)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &spooled{f, blob.Digest(h.Sum(nil)), n}, nil
}

// errStalled is why a download without progress was given up.
var errStalled = errors.New("the connection stalled: nothing was transferred for too long")

// httpBody is a body that is bounded and watched.
type httpBody struct {
	r      io.Reader
	limit  int64 // 0 is none
	n      int64
	stall  time.Duration
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	meter  *meter
}

func (b *httpBody) Read(p []byte) (int, error) {
	if b.timer == nil {
		b.timer = time.AfterFunc(b.stall, func() { b.cancel(errStalled) })
	} else {
		b.timer.Reset(b.stall)
	}
	n, err := b.r.Read(p)
	b.timer.Stop()
	b.meter.add(n)
	if b.n += int64(n); b.limit > 0 && b.n > b.limit {
		return 0, fmt.Errorf("it has more than %d bytes", b.limit)
	}
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

// bounded is a reader that fails where there is more than its bound.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errors.New("it is larger, once decompressed, than what may be brought in")
	}
	return n, err
}
