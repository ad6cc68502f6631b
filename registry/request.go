package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"syscall"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/kiln-build/kiln/cache/blob"
)

// peer is one endpoint as one repository's requests see it.
type peer struct {
	endpoint
	auth   *authorizer
	limits Limits
	scopes []string
	name   string // of the repository
}

// reach makes a peer. Where another endpoint can be asked instead, one attempt is enough.
func (c *Client) reach(e endpoint, cred Credentials, name string, last bool, actions ...string) (*peer, error) {
	a, err := c.authorizer(e, cred)
	if err != nil {
		return nil, fmt.Errorf("preparing to speak to %s: %w", e.host, err)
	}
	p := &peer{endpoint: e, auth: a, limits: c.limits(), name: name}
	p.scopes = []string{auth.ScopeRepository(name, actions...)}
	if !last {
		p.limits.Attempts = 1
	}
	return p, nil
}

// url gives the address of a part of the repository, "/blobs/sha256:…" for one.
func (p *peer) url(part string) string {
	scheme, _ := p.scheme()
	u := scheme + "://" + p.host + p.base + "/" + p.name + part
	if p.ns != "" {
		u += "?ns=" + p.ns // what a mirror of several registries tells them apart by
	}
	return u
}

// request is one exchange with a peer.
type request struct {
	doing  string // for errors: "resolving docker.io/library/debian:latest"
	what   string // for errors: "the image docker.io/library/debian:latest"
	method string
	url    string
	header http.Header
	accept []int // the statuses that are answers; others are errors
	size   int64 // of the body
	body   Content
	once   bool // repeating it is the caller's business
	// commits is the size of the blob that the registry has when it answers, where the
	// request ends an upload.
	commits int64
}

// do sends a request until it is answered, and gives one of the accepted answers.
func (p *peer) do(ctx context.Context, r request) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, err := p.send(ctx, r)
		var wait time.Duration
		switch {
		case err == nil && slices.Contains(r.accept, resp.StatusCode):
			return resp, nil
		case err == nil:
			wait = retryAfter(resp, p.limits.RetryAfter)
			again := worthRetrying(resp.StatusCode)
			err = answered(r.doing, p.host, r.what, resp)
			if e, ok := errors.AsType[*Error](err); ok {
				e.After = wait
			}
			if !again {
				return nil, err
			}
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%s: %w", r.doing, context.Cause(ctx))
		default:
			again := transient(err, try)
			if !isContentError(err) {
				err = failed(r.doing, p.host, err)
			}
			if !again {
				return nil, err
			}
		}
		if r.once || try >= p.limits.Attempts {
			return nil, err
		}
		if err := pause(ctx, max(wait, backoff(p.limits.Backoff, try))); err != nil {
			return nil, fmt.Errorf("%s: %w", r.doing, err)
		}
	}
}

// send sends a request once.
func (p *peer) send(ctx context.Context, r request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	if r.commits > 0 {
		ctx = context.WithValue(ctx, answerTime{}, p.limits.commitTime(r.commits))
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	var up *upload
	if r.body != nil {
		up = &upload{stall: p.limits.Stall, cancel: cancel}
		req.ContentLength = r.size
		req.GetBody = func() (io.ReadCloser, error) { return up.open(ctx, r.body) }
		if req.Body, err = req.GetBody(); err != nil {
			cancel(nil)
			return nil, err
		}
	}
	resp, err := p.auth.do(req, p.scopes)
	if up != nil {
		if failure := up.failure(); failure != nil {
			err = failure
			if resp != nil {
				resp.Body.Close()
			}
		}
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	// The request's context lives as long as the body is read.
	resp.Body = &stallReader{body: resp.Body, stall: p.limits.Stall, cancel: cancel, ctx: ctx}
	return resp, nil
}

// worthRetrying reports whether a status can pass by itself.
func worthRetrying(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// transient reports whether a failed attempt, the nth, is worth another.
func transient(err error, n int) bool {
	if isContentError(err) {
		return false
	}
	if e, ok := errors.AsType[*Error](failed("", "", err)); ok && e.Status != 0 {
		return worthRetrying(e.Status)
	}
	var dns *net.DNSError
	var cred *credentialError
	var realm *realmError
	switch {
	case errors.As(err, &cred), errors.As(err, &realm), notTLS(err), untrusted(err):
		return false
	case errors.As(err, &dns) && dns.IsNotFound:
		return false
	case errors.Is(err, syscall.ECONNREFUSED):
		// Most often nothing runs there; a registry that restarts gets a moment.
		return n < 3
	}
	return true
}

// retryAfter reads how long the registry asks to wait, up to the bound.
func retryAfter(resp *http.Response, bound time.Duration) time.Duration {
	v := resp.Header.Get("Retry-After")
	if v == "" {
		return 0
	}
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return min(time.Duration(n)*time.Second, bound)
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(t), 0), bound)
	}
	return 0
}

// backoff gives the time before the try after the nth: doubled each time, up to
// ten seconds, and scattered so that parallel requests do not come back at once.
func backoff(first time.Duration, n int) time.Duration {
	d := min(first<<min(n-1, 20), 10*time.Second)
	return d/2 + rand.N(d/2+1)
}

// pause waits, or gives why ctx ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// contentError is a failure to read what is to be pushed: no fault of the registry's.
type contentError struct{ err error }

func (e *contentError) Error() string { return "reading what is to be pushed: " + e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

func isContentError(err error) bool {
	var c *contentError
	return errors.As(err, &c)
}

// firstErr runs f for each endpoint until one succeeds. The error is that of the
// last, the host itself, and says of the others that they were tried.
func firstErr(es []endpoint, f func(e endpoint, last bool) error) error {
	var before error
	for i, e := range es {
		last := i == len(es)-1
		err := f(e, last)
		if err == nil || errors.Is(err, context.Canceled) {
			return err
		}
		if !last {
			before = err
			continue
		}
		if before != nil {
			return fmt.Errorf("%w (before that, a mirror: %v)", err, before)
		}
		return err
	}
	return errors.New("no endpoint")
}

// manifestURL gives the address of a manifest by digest or tag.
func (p *peer) manifestURL(object string) string { return p.url("/manifests/" + object) }

// blobURL gives the address of a blob.
func (p *peer) blobURL(d blob.Digest) string { return p.url("/blobs/" + d.String()) }
