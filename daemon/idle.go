package daemon

import (
	"context"
	"sync"
	"time"
)

// activity counts the calls under way. It is safe for concurrent use.
type activity struct {
	clock func() time.Time

	mu    sync.Mutex // guards what is below
	calls int
	last  time.Time // when the last call ended
}

// begin counts a call until end is called.
func (a *activity) begin() (end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.calls--
		a.last = a.clock()
	}
}

// idle says for how long there has been no call.
func (a *activity) idle() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.calls > 0 {
		return 0
	}
	return a.clock().Sub(a.last)
}

// Idle waits until there was no call for that long, and then reports true; false
// where ctx ended before.
func (s *Server) Idle(ctx context.Context, long time.Duration) bool {
	for {
		left := long - s.activity.idle()
		if left <= 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(left):
		}
	}
}
