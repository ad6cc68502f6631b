package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/kiln-build/kiln/cache/blob"
)

// chunkSize is that of the pieces in which a blob goes to a server that takes no
// large requests. Proxies in front of registries are often set to 100 MB.
const chunkSize = 16 << 20

// Push puts a blob into ref's repository unless it is there, mounting it from one
// of the origins ("host/name") where the registry can, or from where c.Uploads knows
// it to be. pushed is false where nothing had to be sent.
func (c *Client) Push(ctx context.Context, cred Credentials, ref string, d blob.Descriptor, origins []string, open Content) (pushed bool, err error) {
	r, p, doing, err := c.pushing(cred, ref, d)
	if err != nil {
		return false, err
	}
	if have, err := p.has(ctx, doing, p.blobURL(d.Digest)); err != nil || have {
		return false, err
	}
	from := mountable(r, origins)
	if from == "" {
		at := blobAt{r.Host, d.Digest}
		var s *sending
		if from, s = c.Uploads.begin(ctx, at, r.Name, d.Size); s != nil {
			defer func() { c.Uploads.end(at, s, err) }()
			open = s.counted(open)
		}
		if from == r.Name {
			// Sent there a moment ago, by another that asked before it was there.
			if have, err := p.has(ctx, doing, p.blobURL(d.Digest)); err != nil || have {
				return false, err
			}
			c.Uploads.forget(at)
			from = ""
		}
	}
	var session *url.URL
	if from != "" {
		if session, err = p.mount(ctx, doing, d, from); err != nil || session == nil {
			return false, err
		}
		// The registry would not mount and began an upload instead.
	}
	return true, p.upload(ctx, doing, d, session, open)
}

// PushNew is Push for a blob that was just made, so that hardly a registry has it:
// it asks whether this one does and begins the upload at the same time.
func (c *Client) PushNew(ctx context.Context, cred Credentials, ref string, d blob.Descriptor, open Content) (pushed bool, err error) {
	r, p, doing, err := c.pushing(cred, ref, d)
	if err != nil {
		return false, err
	}
	at := blobAt{r.Host, d.Digest}
	from, s := c.Uploads.begin(ctx, at, r.Name, d.Size)
	if from != "" {
		return c.Push(ctx, cred, ref, d, nil, open)
	}
	if s != nil {
		defer func() { c.Uploads.end(at, s, err) }()
		open = s.counted(open)
	}
	have, session, err := p.askAndBegin(ctx, doing, d)
	if err != nil || have {
		return false, err
	}
	return true, p.upload(ctx, doing, d, session, open)
}

// pushing gives what a push of d to ref needs; doing is for its errors.
func (c *Client) pushing(cred Credentials, ref string, d blob.Descriptor) (r Reference, p *peer, doing string, err error) {
	if r, err = ParseReference(ref); err != nil {
		return r, nil, "", err
	}
	p, err = c.reach(c.origin(r.Host), cred, r.Name, true, "pull", "push")
	return r, p, fmt.Sprintf("pushing %s to %s", d.Digest, r.Repository()), err
}

// askAndBegin asks for a blob and begins an upload at the same time. The session is
// nil where beginning failed: whoever uploads begins again, and finds out why.
func (p *peer) askAndBegin(ctx context.Context, doing string, d blob.Descriptor) (have bool, session *url.URL, err error) {
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := make(chan *url.URL, 1)
	go func() {
		u, err := p.session(sctx, doing)
		if err != nil {
			u = nil
		}
		begun <- u
	}()
	have, err = p.has(ctx, doing, p.blobURL(d.Digest))
	if err != nil {
		cancel()
	} else if have {
		// The answer is of no use but to end what it began.
		defer time.AfterFunc(patience, cancel).Stop()
	}
	session = <-begun
	if session != nil && (have || err != nil) {
		p.abandon(ctx, doing, session)
		session = nil
	}
	return have, session, err
}

// abandon ends an upload that is not needed. Registries drop those that nobody ends
// after some days, and some cannot be told: it is no matter where it fails.
func (p *peer) abandon(ctx context.Context, doing string, session *url.URL) {
	resp, err := p.do(ctx, request{
		doing: doing, what: "the upload", method: http.MethodDelete, url: session.String(),
		accept: []int{http.StatusNoContent, http.StatusOK, http.StatusAccepted}, once: true,
	})
	if err == nil {
		resp.Body.Close()
	}
}

// PushManifest puts a manifest or index into ref's repository, and tags it where ref has a tag.
func (c *Client) PushManifest(ctx context.Context, cred Credentials, ref string, d blob.Descriptor, data []byte) error {
	r, err := ParseReference(ref)
	if err != nil {
		return err
	}
	p, err := c.reach(c.origin(r.Host), cred, r.Name, true, "pull", "push")
	if err != nil {
		return err
	}
	object := r.Tag
	if object == "" {
		object = d.Digest.String()
	}
	doing := fmt.Sprintf("pushing the manifest of %s", r)
	resp, err := p.do(ctx, request{
		doing: doing, what: "the repository " + r.Repository(), method: http.MethodPut,
		url: p.manifestURL(object), header: http.Header{"Content-Type": {d.MediaType}},
		accept: []int{http.StatusCreated, http.StatusOK, http.StatusAccepted},
		size:   int64(len(data)),
		body: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data)), nil
		},
	})
	if err != nil {
		return err
	}
	resp.Body.Close()
	if got, err := blob.Parse(resp.Header.Get("Docker-Content-Digest")); err == nil && got != d.Digest {
		return wrongDigest(doing, p.host, got, d.Digest)
	}
	return nil
}

// has asks whether something is there.
func (p *peer) has(ctx context.Context, doing, url string) (bool, error) {
	resp, err := p.do(ctx, request{
		doing: doing, what: "the repository", method: http.MethodHead, url: url,
		accept: []int{http.StatusOK, http.StatusNotFound, http.StatusMethodNotAllowed},
	})
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}

// mountable gives the first repository among origins, other than r's own, that is
// on r's registry. The others are not tried: each that cannot mount costs a round
// trip and leaves an upload session behind.
func mountable(r Reference, origins []string) string {
	for _, o := range origins {
		if name, ok := strings.CutPrefix(o, r.Host+"/"); ok && name != r.Name {
			return name
		}
	}
	return ""
}

// mount asks for a blob of another repository. A nil session: it is there now.
func (p *peer) mount(ctx context.Context, doing string, d blob.Descriptor, from string) (session *url.URL, err error) {
	q := *p
	q.scopes = append(p.scopes[:len(p.scopes):len(p.scopes)], auth.ScopeRepository(from, "pull"))
	v := url.Values{"mount": {d.Digest.String()}, "from": {from}}
	resp, err := q.do(ctx, q.uploads(doing, "?"+v.Encode()))
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		// One may not be allowed to read there; sending the bytes works all the same.
		return p.session(ctx, doing)
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusCreated {
		return nil, nil
	}
	return p.location(resp)
}

// session begins an upload.
func (p *peer) session(ctx context.Context, doing string) (*url.URL, error) {
	resp, err := p.do(ctx, p.uploads(doing, ""))
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	return p.location(resp)
}

func (p *peer) uploads(doing, query string) request {
	u := p.url("/blobs/uploads/") + query
	return request{
		doing: doing, what: "the repository " + p.name, method: http.MethodPost, url: u,
		header: http.Header{"Content-Length": {"0"}},
		accept: []int{http.StatusAccepted, http.StatusCreated},
	}
}

// location reads where an upload goes on. It may be another host, which then gets
// no credentials, but never plain HTTP where the registry speaks TLS.
func (p *peer) location(resp *http.Response) (*url.URL, error) {
	l := resp.Header.Get("Location")
	u, err := resp.Request.URL.Parse(l)
	switch {
	case l == "" || err != nil:
		return nil, fmt.Errorf("the registry %s answered with no usable Location: %q", p.host, l)
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil:
		return nil, fmt.Errorf("the registry %s wants the upload to go to %q, which is no web address", p.host, l)
	case resp.Request.URL.Scheme == "https" && u.Scheme == "http":
		return nil, fmt.Errorf("the registry %s speaks TLS, and wants the upload to go to %s without it (a proxy in front of it may not set X-Forwarded-Proto)", p.host, u.Redacted())
	}
	return u, nil
}

// upload sends a blob, in one request if it can. The first attempt uses session,
// where there is one already.
func (p *peer) upload(ctx context.Context, doing string, d blob.Descriptor, session *url.URL, open Content) error {
	for try := 1; ; try++ {
		var err error
		if session == nil {
			if session, err = p.session(ctx, doing); err != nil {
				return err
			}
		}
		status, err := p.put(ctx, doing, d, session, open)
		if status == http.StatusRequestEntityTooLarge {
			status, err = p.putChunks(ctx, doing, d, open)
		}
		again := status == 0 || worthRetrying(status) || status == http.StatusNotFound
		if err == nil || ctx.Err() != nil || isContentError(err) || !again || try >= p.limits.Attempts {
			return err
		}
		// Another attempt is another session: how much of this one arrived is unknown.
		session = nil
		wait := backoff(p.limits.Backoff, try)
		if e, ok := errors.AsType[*Error](err); ok {
			wait = max(wait, e.After)
		}
		if perr := pause(ctx, wait); perr != nil {
			return fmt.Errorf("%s: %w", doing, perr)
		}
		if status != 0 && status < http.StatusInternalServerError {
			continue
		}
		// The bytes may have arrived, and the answer not: where a blob is large it takes
		// some registries longer than anybody waits for one.
		if have, herr := p.has(ctx, doing, p.blobURL(d.Digest)); herr == nil && have {
			return nil
		}
	}
}

// put sends a blob in one request. The status is 0 where there was no answer.
func (p *peer) put(ctx context.Context, doing string, d blob.Descriptor, session *url.URL, open Content) (status int, err error) {
	return p.sent(p.do(ctx, request{
		doing: doing, what: "the upload", method: http.MethodPut, url: withDigest(session, d.Digest),
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		accept: []int{http.StatusCreated, http.StatusNoContent, http.StatusOK},
		size:   d.Size, body: nonEmpty(d.Size, open), once: true, commits: d.Size,
	}))
}

// nonEmpty gives no body for an empty blob: net/http would take a size of 0 as unknown.
func nonEmpty(size int64, open Content) Content {
	if size == 0 {
		return nil
	}
	return open
}

func (p *peer) sent(resp *http.Response, err error) (int, error) {
	if err != nil {
		return statusOf(err), err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// putChunks sends a blob in pieces.
func (p *peer) putChunks(ctx context.Context, doing string, d blob.Descriptor, open Content) (status int, err error) {
	session, err := p.session(ctx, doing)
	if err != nil {
		return statusOf(err), err
	}
	r, err := open(ctx)
	if err != nil {
		return 0, &contentError{err}
	}
	defer r.Close()
	buf := make([]byte, min(chunkSize, d.Size))
	for offset := int64(0); offset < d.Size; {
		piece := buf[:min(chunkSize, d.Size-offset)]
		if _, err := io.ReadFull(r, piece); err != nil {
			return 0, &contentError{err}
		}
		end := offset + int64(len(piece))
		resp, err := p.do(ctx, request{
			doing: doing, what: "the upload", method: http.MethodPatch, url: session.String(),
			header: http.Header{
				"Content-Type":  {"application/octet-stream"},
				"Content-Range": {strconv.FormatInt(offset, 10) + "-" + strconv.FormatInt(end-1, 10)},
			},
			accept: []int{http.StatusAccepted, http.StatusNoContent},
			size:   int64(len(piece)), once: true,
			body: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(piece)), nil },
		})
		if err != nil {
			return statusOf(err), err
		}
		resp.Body.Close()
		if session, err = p.location(resp); err != nil {
			return resp.StatusCode, err
		}
		offset = end
	}
	return p.sent(p.do(ctx, request{
		doing: doing, what: "the upload", method: http.MethodPut, url: withDigest(session, d.Digest),
		header: http.Header{"Content-Length": {"0"}},
		accept: []int{http.StatusCreated, http.StatusNoContent, http.StatusOK}, once: true, commits: d.Size,
	}))
}

// withDigest adds to an upload's address what it is to become. What the registry
// put into the query stays as it is: some sign it.
func withDigest(u *url.URL, d blob.Digest) string {
	v := *u
	if v.RawQuery != "" {
		v.RawQuery += "&"
	}
	v.RawQuery += "digest=" + url.QueryEscape(d.String())
	return v.String()
}
