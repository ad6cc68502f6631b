package pace

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

const (
	// attempts is how often a request is made that fails in a way that may pass.
	attempts = 3
	// firstWait is what the first repetition waits for; later ones wait twice as long.
	firstWait = 200 * time.Millisecond
	// maxWait is the longest that a server may ask to wait. A build can do without
	// its cache, so one that wants more is done without.
	maxWait = 5 * time.Second
	// maxDrain is what is read of an answer that nobody wanted, so that its
	// connection can be used again.
	maxDrain = 4 << 10
)

// Do makes a request, and makes it again where it got no answer, or one that says
// that it may go better: 408, 429 and those of 500 and above but for 501. make is
// called for each attempt.
func Do(ctx context.Context, c *http.Client, make func() (*http.Request, error)) (*http.Response, error) {
	for try := 1; ; try++ {
		req, err := make()
		if err != nil {
			return nil, err
		}
		resp, err := c.Do(req)
		if ctx.Err() != nil || try == attempts || errors.Is(err, ErrStalled) {
			return resp, err
		}
		wait := firstWait << (try - 1)
		if err == nil {
			var again bool
			if wait, again = waitFor(resp, wait); !again {
				return resp, nil
			}
			_, _ = io.CopyN(io.Discard, resp.Body, maxDrain)
			resp.Body.Close()
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// waitFor says whether an answer is worth another request, and when.
func waitFor(resp *http.Response, otherwise time.Duration) (time.Duration, bool) {
	switch s := resp.StatusCode; {
	case s == http.StatusRequestTimeout, s == http.StatusTooManyRequests, s >= 500 && s != http.StatusNotImplemented:
	default:
		return 0, false
	}
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		wait := time.Duration(n) * time.Second
		return wait, n >= 0 && wait <= maxWait
	}
	return otherwise, true
}
