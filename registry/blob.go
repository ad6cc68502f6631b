package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/kiln-build/kiln/cache/blob"
)

// Blob finds the blob that ref names by its digest, and its size, of which nobody
// told the caller. A manifest, which registries keep apart from blobs, is found too.
func (c *Client) Blob(ctx context.Context, cred Credentials, ref string) (blob.Descriptor, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return blob.Descriptor{}, err
	}
	if r.Digest.IsZero() {
		return blob.Descriptor{}, fmt.Errorf("%q names no blob: it has no digest", ref)
	}
	d := blob.Descriptor{Digest: r.Digest}
	err = c.readers(cred, r, func(p *peer) (err error) {
		d.Size, err = p.blobSize(ctx, r)
		return err
	})
	if !errors.Is(err, ErrNotFound) {
		return d, err
	}
	if m, _, merr := c.Manifest(ctx, cred, ref); merr == nil && IsManifest(m.MediaType) {
		return m, nil
	}
	return d, err
}

// blobSize asks for a blob's size. Where the answer to HEAD does not say it, the
// head of the answer to GET does: stores that registries send clients on to take an
// address for one method only.
func (p *peer) blobSize(ctx context.Context, r Reference) (int64, error) {
	req := request{
		doing: fmt.Sprintf("looking for %s in %s", r.Digest, r.Repository()), what: "the blob " + r.Digest.String(),
		method: http.MethodHead, url: p.blobURL(r.Digest), header: http.Header{},
		accept: []int{http.StatusOK, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusNotImplemented},
	}
	resp, err := p.do(ctx, req)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK && resp.ContentLength >= 0 {
		return resp.ContentLength, nil
	}
	req.method, req.accept = http.MethodGet, []int{http.StatusOK}
	if resp, err = p.do(ctx, req); err != nil {
		return 0, err
	}
	resp.Body.Close()
	if resp.ContentLength < 0 {
		return 0, corrupt(req.doing, p.host, "%s does not say how large the blob is", p.host)
	}
	return resp.ContentLength, nil
}
