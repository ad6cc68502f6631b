package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote/internal/pace"
)

// HTTP is a cache behind the protocol of Bazel's HTTP caches: GET and PUT of
// /cas/HEX, which holds blobs by their sha256, and of /ac/HEX, where a key leads to
// an ActionResult of the Remote Execution API. The manifest is a blob; the key
// is made of the cache's name, and its ActionResult has the manifest as its one
// output file, so that servers which check what they store take it.
type HTTP struct {
	base   *url.URL
	name   string
	client *http.Client
}

var _ Target = (*HTTP)(nil)

// NewHTTP gives the cache of a name on a server, which may stand still for as long as
// patience says; 0 is 15 s. The address may hold a user and a password, and a path.
func NewHTTP(address, name string, patience time.Duration) (*HTTP, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		// The error of url.Parse would show a password.
		return nil, errors.New("url: want http://HOST or https://HOST, with a path or without")
	}
	return &HTTP{base: u, name: name, client: &http.Client{Transport: pace.New(patience)}}, nil
}

// Name gives the server's address without its password, and the cache's name.
func (h *HTTP) Name() string { return h.base.Redacted() + " " + h.name }

// Manifest makes an HTTP a Store.
func (h *HTTP) Manifest(ctx context.Context, d blob.Digest) ([]byte, error) {
	if d.IsZero() {
		data, err := h.result(ctx)
		if err != nil {
			return nil, err
		}
		var ok bool
		if d, ok = outputOf(data); !ok {
			return nil, formatf("what the server has under its key is no cache")
		}
	}
	r, err := h.get(ctx, "cas", d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return ReadManifest(r, d)
}

// result reads what the server has under the cache's key.
func (h *HTTP) result(ctx context.Context) ([]byte, error) {
	r, err := h.get(ctx, "ac", h.key(), 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return ReadManifest(r, blob.Digest{})
}

// Blob makes an HTTP a Store.
func (h *HTTP) Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	return h.get(ctx, "cas", d.Digest, offset)
}

func (h *HTTP) get(ctx context.Context, folder string, d blob.Digest, offset int64) (io.ReadCloser, error) {
	header := http.Header{}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := h.do(ctx, http.MethodGet, folder, d, header, 0, nil)
	if err != nil {
		return nil, err
	}
	return BodyFrom(resp, offset)
}

// BodyFrom gives the body of the answer to a request for a blob from offset on. A server
// that knows no ranges sends all of it.
func BodyFrom(resp *http.Response, offset int64) (io.ReadCloser, error) {
	if offset > 0 && resp.StatusCode == http.StatusOK {
		if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
			return nil, errors.Join(err, resp.Body.Close())
		}
	}
	return resp.Body, nil
}

// Put makes an HTTP a Target.
func (h *HTTP) Put(ctx context.Context, d blob.Descriptor, _ []string, open func(context.Context) (io.ReadCloser, error)) error {
	if h.has(ctx, d) {
		return nil
	}
	_, err := h.exchange(ctx, http.MethodPut, "cas", d.Digest, d.Size, open)
	return err
}

// has reports whether the server says that it has a blob. One that says another size has
// another blob.
func (h *HTTP) has(ctx context.Context, d blob.Descriptor) bool {
	resp, err := h.exchange(ctx, http.MethodHead, "cas", d.Digest, 0, nil)
	if errors.Is(err, errors.ErrUnsupported) {
		// It knows no HEAD: what it begins to send, it has.
		resp, err = h.do(ctx, http.MethodGet, "cas", d.Digest, http.Header{"Range": {"bytes=0-0"}}, 0, nil)
		if err == nil {
			resp.Body.Close()
		}
		if err == nil && resp.StatusCode == http.StatusPartialContent {
			return true // of which it sends a byte, and says no size
		}
	}
	return err == nil && (resp.ContentLength < 0 || resp.ContentLength == d.Size)
}

// Commit makes an HTTP a Target. The protocol has no conditions: what is there is
// looked at right before it is written over.
func (h *HTTP) Commit(ctx context.Context, d blob.Descriptor, manifest []byte, old blob.Digest) (bool, error) {
	if err := h.Put(ctx, d, nil, opener(manifest)); err != nil {
		return false, err
	}
	if Changed(ctx, h, old) {
		return false, fmt.Errorf("%s: %w", h.Name(), ErrChanged)
	}
	result := resultOf(d)
	_, err := h.exchange(ctx, http.MethodPut, "ac", h.key(), int64(len(result)), opener(result))
	return false, err
}

// opener opens bytes that are in memory.
func opener(data []byte) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

// exchange sends a request of whose answer the header alone matters.
func (h *HTTP) exchange(ctx context.Context, method, folder string, d blob.Digest, size int64, open func(context.Context) (io.ReadCloser, error)) (*http.Response, error) {
	resp, err := h.do(ctx, method, folder, d, http.Header{}, size, open)
	if err != nil {
		return nil, err
	}
	// What the server says is read, a bit of it, so that the connection can be used again.
	_, _ = io.CopyN(io.Discard, resp.Body, maxPerItem)
	return resp, resp.Body.Close()
}

func (h *HTTP) do(ctx context.Context, method, folder string, d blob.Digest, header http.Header, size int64, open func(context.Context) (io.ReadCloser, error)) (*http.Response, error) {
	u := h.base.JoinPath(folder, hex.EncodeToString(d[:]))
	resp, err := pace.Do(ctx, h.client, func() (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
		if err != nil {
			return nil, err
		}
		req.Header = header
		if open != nil && size > 0 {
			body, err := open(ctx)
			if err != nil {
				return nil, err
			}
			req.Body, req.ContentLength = limited{io.LimitReader(body, size), body}, size
		}
		if h.base.User != nil {
			password, _ := h.base.User.Password()
			req.SetBasicAuth(h.base.User.Username(), password)
		}
		return req, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, u.Redacted(), withoutAddress(err))
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	resp.Body.Close()
	err = fmt.Errorf("%s %s: the server answered %s", method, u.Redacted(), resp.Status)
	switch resp.StatusCode {
	case http.StatusNotFound:
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return nil, err
}

// withoutAddress leaves out the address that net/http puts before an error.
func withoutAddress(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// limited is a body that ends where it is to.
type limited struct {
	io.Reader
	io.Closer
}

// key is where the cache's name leads from.
func (h *HTTP) key() blob.Digest { return sha256.Sum256([]byte("kiln cache\x00" + h.name)) }

// The fields of the Remote Execution API's messages that are used here.
const (
	resultOutputFiles = 2 // of ActionResult
	filePath          = 1 // of OutputFile
	fileDigest        = 2
	digestHash        = 1 // of Digest
	digestSize        = 2
)

// resultOf makes an ActionResult whose one output file is a blob.
func resultOf(d blob.Descriptor) []byte {
	field := func(b []byte, n protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	digest := field(nil, digestHash, hex.AppendEncode(nil, d.Digest[:]))
	digest = protowire.AppendVarint(protowire.AppendTag(digest, digestSize, protowire.VarintType), uint64(d.Size))
	file := field(field(nil, filePath, []byte("manifest.json")), fileDigest, digest)
	return field(nil, resultOutputFiles, file)
}

// outputOf gives the digest of an ActionResult's first output file.
func outputOf(result []byte) (d blob.Digest, ok bool) {
	file := fieldOf(result, resultOutputFiles)
	text := fieldOf(fieldOf(file, fileDigest), digestHash)
	if len(text) != hex.EncodedLen(len(d)) {
		return d, false
	}
	_, err := hex.Decode(d[:], text)
	return d, err == nil
}

// fieldOf gives the first field of a number in a message; nil is none.
func fieldOf(message []byte, number protowire.Number) []byte {
	for len(message) > 0 {
		n, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return nil
		}
		message = message[size:]
		if size = protowire.ConsumeFieldValue(n, kind, message); size < 0 {
			return nil
		}
		if n == number && kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(message)
			return v
		}
		message = message[size:]
	}
	return nil
}
