package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"

	"github.com/kiln-build/kiln/cache/blob"
)

// Resolve gives the descriptor of what ref names now, asking mirrors first.
func (c *Client) Resolve(ctx context.Context, cred Credentials, ref string) (blob.Descriptor, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return blob.Descriptor{}, err
	}
	var d blob.Descriptor
	err = c.readers(cred, r, func(p *peer) error {
		d, err = p.head(ctx, r)
		return err
	})
	return d, err
}

// Manifest gives the bytes of the manifest or index that ref names, and its
// descriptor. It takes one request where Resolve and Fetch take two, but Docker
// Hub counts it as a pull, which it does not count Resolve as.
func (c *Client) Manifest(ctx context.Context, cred Credentials, ref string) (blob.Descriptor, []byte, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return blob.Descriptor{}, nil, err
	}
	var d blob.Descriptor
	var data []byte
	err = c.readers(cred, r, func(p *peer) error {
		d, data, err = p.manifest(ctx, r, r.Digest)
		return err
	})
	return d, data, err
}

// Fetch reads a blob or manifest of ref's repository; the reader fails where the
// bytes are not those of d. A download that breaks off is resumed.
func (c *Client) Fetch(ctx context.Context, cred Credentials, ref string, d blob.Descriptor) (io.ReadCloser, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	if d.Size < 0 {
		return nil, fmt.Errorf("fetching %s of %s: a size of %d bytes", d.Digest, r.Repository(), d.Size)
	}
	if IsManifest(d.MediaType) {
		return c.fetchManifest(ctx, cred, r, d)
	}
	return c.download(ctx, cred, r, d, 0, sha256.New())
}

// FetchFrom reads a blob of ref's repository from offset on, as Fetch does, for
// callers that hash what they get: the size is checked, the digest is not.
func (c *Client) FetchFrom(ctx context.Context, cred Credentials, ref string, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	if offset < 0 || offset > d.Size {
		return nil, fmt.Errorf("fetching %s of %s: offset %d of %d bytes", d.Digest, r.Repository(), offset, d.Size)
	}
	return c.download(ctx, cred, r, d, offset, nil)
}

func (c *Client) download(ctx context.Context, cred Credentials, r Reference, d blob.Descriptor, offset int64, h hash.Hash) (io.ReadCloser, error) {
	es, err := c.endpoints(r.Host)
	if err != nil {
		return nil, err
	}
	dl := &download{ctx: ctx, client: c, cred: cred, ref: r, desc: d, left: es, offset: offset, mark: offset, hash: h}
	dl.doing = fmt.Sprintf("fetching %s of %s", d.Digest, r.Repository())
	if offset == d.Size && offset > 0 {
		dl.err = io.EOF // no range of a server's begins there
		return dl, nil
	}
	if err := dl.connect(); err != nil {
		return nil, err
	}
	return dl, nil
}

// readers runs f with the endpoints that can be read from until one succeeds.
func (c *Client) readers(cred Credentials, r Reference, f func(p *peer) error) error {
	es, err := c.endpoints(r.Host)
	if err != nil {
		return err
	}
	return firstErr(es, func(e endpoint, last bool) error {
		p, err := c.reach(e, cred, r.Name, last, "pull")
		if err != nil {
			return err
		}
		return f(p)
	})
}

func acceptManifests() http.Header {
	return http.Header{"Accept": {strings.Join(append(manifestTypes[:len(manifestTypes):len(manifestTypes)], schema1Types...), ", ")}}
}

// head resolves without fetching. Registries that do not answer HEAD with all
// that it takes are asked again with GET.
func (p *peer) head(ctx context.Context, r Reference) (blob.Descriptor, error) {
	resp, err := p.do(ctx, request{
		doing:  "resolving " + r.String(),
		what:   "the image " + r.String(),
		method: http.MethodHead,
		url:    p.manifestURL(r.object()),
		header: acceptManifests(),
		accept: []int{http.StatusOK, http.StatusMethodNotAllowed, http.StatusNotImplemented},
	})
	if err != nil {
		return blob.Descriptor{}, err
	}
	resp.Body.Close()
	d := blob.Descriptor{MediaType: mediaType(resp), Size: resp.ContentLength}
	d.Digest, err = blob.Parse(resp.Header.Get("Docker-Content-Digest"))
	if resp.StatusCode != http.StatusOK || err != nil || d.Size <= 0 || !IsManifest(d.MediaType) {
		d, _, err = p.manifest(ctx, r, r.Digest)
		return d, err
	}
	if d.Size > MaxManifest {
		return blob.Descriptor{}, tooLarge(r, p.host)
	}
	if !r.Digest.IsZero() && d.Digest != r.Digest {
		return blob.Descriptor{}, wrongDigest("resolving "+r.String(), p.host, d.Digest, r.Digest)
	}
	return d, nil
}

// manifest fetches what r names. Where want is not zero the bytes must be its.
func (p *peer) manifest(ctx context.Context, r Reference, want blob.Digest) (blob.Descriptor, []byte, error) {
	object := r.object()
	if !want.IsZero() {
		object = want.String()
	}
	doing := "fetching the manifest of " + r.String()
	var d blob.Descriptor
	for try := 1; ; try++ {
		resp, err := p.do(ctx, request{
			doing: doing, what: "the image " + r.String(), method: http.MethodGet,
			url: p.manifestURL(object), header: acceptManifests(), accept: []int{http.StatusOK},
		})
		if err != nil {
			return d, nil, err
		}
		data, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
		resp.Body.Close()
		switch {
		case ctx.Err() != nil:
			return d, nil, fmt.Errorf("%s: %w", doing, context.Cause(ctx))
		case err == nil && resp.ContentLength >= 0 && int64(len(data)) < min(resp.ContentLength, MaxManifest):
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			if try >= p.limits.Attempts {
				return d, nil, failed(doing, p.host, err)
			}
			if err := pause(ctx, backoff(p.limits.Backoff, try)); err != nil {
				return d, nil, fmt.Errorf("%s: %w", doing, err)
			}
			continue
		}
		if len(data) > MaxManifest {
			return d, nil, tooLarge(r, p.host)
		}
		d = blob.Descriptor{MediaType: mediaType(resp), Digest: sha256.Sum256(data), Size: int64(len(data))}
		if want.IsZero() {
			// A tag: the registry's own digest, where it gives one, guards the way here.
			want, _ = blob.Parse(resp.Header.Get("Docker-Content-Digest"))
		}
		// A schema 1 manifest is signed: its digest is not that of its bytes.
		if !want.IsZero() && d.Digest != want && !IsSchema1(d.MediaType) {
			return d, nil, wrongDigest(doing, p.host, d.Digest, want)
		}
		return d, data, nil
	}
}

func tooLarge(r Reference, host string) error {
	return corrupt("resolving "+r.String(), host, "the manifest is larger than %d bytes", MaxManifest)
}

// mediaType gives a response's content type without its parameters.
func mediaType(resp *http.Response) string {
	t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(t)
}

func (c *Client) fetchManifest(ctx context.Context, cred Credentials, r Reference, d blob.Descriptor) (io.ReadCloser, error) {
	var data []byte
	err := c.readers(cred, r, func(p *peer) error {
		_, got, err := p.manifest(ctx, r, d.Digest)
		if err == nil && int64(len(got)) != d.Size {
			err = corrupt("fetching "+d.Digest.String()+" of "+r.Repository(), p.host, "%s sent %d bytes instead of %d", p.host, len(got), d.Size)
		}
		data = got
		return err
	})
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// download is a blob on its way here. It goes on, from where it was, over as many
// connections as it takes.
type download struct {
	ctx    context.Context // of the whole download; Close ends it early
	client *Client
	cred   Credentials
	ref    Reference
	desc   blob.Descriptor
	doing  string

	left     []endpoint // that may be asked; the first is the current one
	peer     *peer
	body     io.ReadCloser // nil between connections
	offset   int64
	hash     hash.Hash // nil where the caller verifies
	failures int       // since progress was made
	mark     int64     // the offset at the last failure
	err      error     // what every further Read gives
}

// minProgress is how far a connection must have come for the count of failures to
// start anew: a server that gives a byte at a time must not hold a build for ever.
const minProgress = 64 << 10

func (d *download) Read(p []byte) (int, error) {
	if d.err != nil || len(p) == 0 {
		return 0, d.err
	}
	for {
		if d.body == nil {
			if d.err = d.connect(); d.err != nil {
				return 0, d.err
			}
		}
		// One byte more than there should be, to see that there is none.
		n, err := d.body.Read(p[:min(int64(len(p)), d.desc.Size-d.offset+1)])
		if d.offset += int64(n); d.offset > d.desc.Size {
			d.err = corrupt(d.doing, d.peer.host, "%s sent more than the %d bytes that there should be", d.peer.host, d.desc.Size)
			return 0, d.err
		}
		if n > 0 {
			if d.hash != nil {
				d.hash.Write(p[:n])
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		if d.offset == d.desc.Size {
			d.err = d.verify()
			return 0, d.err
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if d.err = d.broken(err); d.err != nil {
			return 0, d.err
		}
	}
}

// verify gives io.EOF where the bytes were the right ones.
func (d *download) verify() error {
	if d.hash == nil {
		return io.EOF
	}
	if got := blob.Digest(d.hash.Sum(nil)); got != d.desc.Digest {
		return wrongDigest(d.doing, d.peer.host, got, d.desc.Digest)
	}
	return io.EOF
}

// broken takes note of a connection that ended early, and gives an error where
// that was once too often.
func (d *download) broken(err error) error {
	d.body.Close()
	d.body = nil
	if d.ctx.Err() != nil {
		return fmt.Errorf("%s: %w", d.doing, context.Cause(d.ctx))
	}
	if d.offset-d.mark >= minProgress {
		d.failures = 0
	}
	d.mark = d.offset
	d.failures++
	limits := d.client.limits()
	if d.failures < limits.Attempts {
		return pause(d.ctx, backoff(limits.Backoff, d.failures))
	}
	if len(d.left) > 1 {
		d.next()
		return nil
	}
	return &Error{Doing: d.doing, Host: d.peer.host, Kind: ErrDown,
		Err: fmt.Errorf("the connection to %s broke off at byte %d of %d, %d times in a row: %w", d.peer.host, d.offset, d.desc.Size, d.failures, err)}
}

func (d *download) next() {
	d.left, d.peer, d.failures = d.left[1:], nil, 0
}

// connect opens the body at the offset, at the first endpoint that can.
func (d *download) connect() error {
	return firstErr(d.left, func(e endpoint, last bool) error {
		if d.peer == nil {
			p, err := d.client.reach(e, d.cred, d.ref.Name, last, "pull")
			if err != nil {
				return err
			}
			d.peer = p
		}
		err := d.open()
		if err != nil && !last {
			d.next()
		}
		return err
	})
}

// open asks the peer for the bytes from the offset on.
func (d *download) open() error {
	req := request{
		doing: d.doing, what: "the blob " + d.desc.Digest.String(), method: http.MethodGet,
		url: d.peer.blobURL(d.desc.Digest), header: http.Header{}, accept: []int{http.StatusOK},
	}
	if d.offset > 0 {
		req.header.Set("Range", fmt.Sprintf("bytes=%d-", d.offset))
		req.accept = append(req.accept, http.StatusPartialContent)
	}
	resp, err := d.peer.do(d.ctx, req)
	if err != nil {
		return err
	}
	rest := d.desc.Size - d.offset
	if resp.StatusCode == http.StatusOK {
		rest = d.desc.Size
	} else if err := checkRange(resp.Header.Get("Content-Range"), d.offset); err != nil {
		resp.Body.Close()
		return corrupt(d.doing, d.peer.host, "%s: %w", d.peer.host, err)
	}
	if resp.ContentLength >= 0 && resp.ContentLength != rest {
		resp.Body.Close()
		return corrupt(d.doing, d.peer.host, "%s announced %d bytes instead of %d", d.peer.host, resp.ContentLength, rest)
	}
	if resp.StatusCode == http.StatusOK && d.offset > 0 {
		// A server that knows no ranges: read over what is here already.
		if _, err := io.CopyN(io.Discard, resp.Body, d.offset); err != nil {
			resp.Body.Close()
			if d.ctx.Err() != nil {
				return fmt.Errorf("%s: %w", d.doing, context.Cause(d.ctx))
			}
			resp.Body = io.NopCloser(&failingReader{err})
		}
	}
	d.body = resp.Body
	return nil
}

// failingReader gives an error that Read is to count as a broken connection.
type failingReader struct{ err error }

func (f *failingReader) Read([]byte) (int, error) { return 0, f.err }

// checkRange checks that a partial answer starts where it was asked to.
func checkRange(header string, offset int64) error {
	var first, end int64
	if n, _ := fmt.Sscanf(header, "bytes %d-%d/", &first, &end); n != 2 || first != offset {
		return fmt.Errorf("asked for the bytes from %d on, got the range %q", offset, header)
	}
	return nil
}

// Close ends the download.
func (d *download) Close() error {
	if d.err == nil {
		d.err = errors.New("read of a download that was closed")
	}
	if d.body == nil {
		return nil
	}
	err := d.body.Close()
	d.body = nil
	return err
}
