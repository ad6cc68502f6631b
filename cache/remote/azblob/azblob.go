// Package azblob keeps remote caches in containers of Azure's blob storage.
//
// A blob of the cache is a blob there, called by its digest; the cache's name is one
// that holds the manifest, and is written on the condition that it is still what was
// read. Requests are signed with the account's key (sign.go), over the protocol
// itself: its SDK would cost every start of the program more than a cache saves.
package azblob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/cache/remote/internal/blocks"
	"github.com/kiln-build/kiln/cache/remote/internal/pace"
)

// Options say which container, and how it is reached. All but Account, the prefixes
// and Patience are needed.
type Options struct {
	// URL is the address of the account, https://ACCOUNT.blob.core.windows.net.
	URL string
	// Account is the account's name; empty is the first part of the address's host.
	Account string
	// Key is the account's key, in base64.
	Key string
	// Container is made where there is none and something is written.
	Container string
	// BlobsPrefix and ManifestsPrefix are the folders in it; Name is the cache's.
	BlobsPrefix, ManifestsPrefix, Name string
	// Patience is how long the server may stand still; 0 is 15 s.
	Patience time.Duration
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
}

// Store is a cache in a container. It is safe for concurrent use.
type Store struct {
	opt    Options
	base   *url.URL // of the container
	key    []byte
	client *http.Client

	mu    sync.Mutex // guards what follows
	etags map[blob.Digest]string
}

var _ remote.Target = (*Store)(nil)

// New gives a cache. Nothing is asked before it is used.
func New(o Options) (*Store, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("account_url: want https://ACCOUNT.blob.core.windows.net")
	}
	if o.Account == "" {
		o.Account, _, _ = strings.Cut(u.Hostname(), ".")
	}
	key, err := base64.StdEncoding.DecodeString(o.Key)
	if err != nil || len(key) == 0 {
		return nil, errors.New("secret_access_key: want the account's key, which is base64")
	}
	if o.Container == "" || strings.ContainsAny(o.Container, "/?#") || path.Clean(o.Container) == ".." {
		return nil, fmt.Errorf("container=%s: want the name of a container", o.Container)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return &Store{
		opt: o, base: u.JoinPath(o.Container), key: key, etags: map[blob.Digest]string{},
		client: &http.Client{Transport: pace.New(o.Patience)},
	}, nil
}

// Name gives what people call the cache.
func (s *Store) Name() string { return s.base.JoinPath(s.nameKey()).String() }

// Place gives all that chooses which objects are the cache's.
func (s *Store) Place() string { return s.Name() + "\x00" + s.opt.BlobsPrefix }

func (s *Store) blobKey(d blob.Digest) string { return path.Join(s.opt.BlobsPrefix, d.String()) }

func (s *Store) nameKey() string { return path.Join(s.opt.ManifestsPrefix, s.opt.Name) }

// Manifest makes a Store a remote.Store.
func (s *Store) Manifest(ctx context.Context, d blob.Digest) ([]byte, error) {
	key := s.nameKey()
	if !d.IsZero() {
		key = s.blobKey(d)
	}
	resp, err := s.do(ctx, request{method: http.MethodGet, key: key})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := remote.ReadManifest(resp.Body, d)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	if tag := resp.Header.Get("ETag"); d.IsZero() && tag != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.etags[sha256.Sum256(data)] = tag
	}
	return data, nil
}

// Blob makes a Store a remote.Store.
func (s *Store) Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	r := request{method: http.MethodGet, key: s.blobKey(d.Digest), header: http.Header{}}
	if offset > 0 {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := s.do(ctx, r)
	if err != nil {
		return nil, err
	}
	return remote.BodyFrom(resp, offset)
}

// Put makes a Store a remote.Target.
func (s *Store) Put(ctx context.Context, d blob.Descriptor, _ []string, open func(context.Context) (io.ReadCloser, error)) error {
	key := s.blobKey(d.Digest)
	resp, err := s.do(ctx, request{method: http.MethodHead, key: key})
	if err == nil {
		resp.Body.Close()
		if resp.ContentLength == d.Size {
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.write(ctx, key, d.Size, open)
}

// Commit makes a Store a remote.Target.
func (s *Store) Commit(ctx context.Context, d blob.Descriptor, manifest []byte, old blob.Digest) (sure bool, err error) {
	tag := s.etag(old)
	if tag == "" && !old.IsZero() {
		// It was read by another Store, that of an import for one.
		if remote.Changed(ctx, s, old) {
			return false, fmt.Errorf("%s: %w", s.Name(), remote.ErrChanged)
		}
		tag = s.etag(old)
	}
	header := http.Header{"Content-Type": {d.MediaType}}
	if old.IsZero() {
		header.Set("If-None-Match", "*")
	} else if tag != "" {
		header.Set("If-Match", tag)
	}
	open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(manifest)), nil }
	err = s.put(ctx, s.nameKey(), nil, int64(len(manifest)), header, open)
	var status *statusError
	if errors.As(err, &status) && (status.status == http.StatusPreconditionFailed || status.status == http.StatusConflict) {
		return false, fmt.Errorf("%w: %w", remote.ErrChanged, err)
	}
	return err == nil && header.Get("If-Match")+header.Get("If-None-Match") != "", err
}

func (s *Store) etag(manifest blob.Digest) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.etags[manifest]
}

// write writes a blob, whatever is there.
func (s *Store) write(ctx context.Context, key string, size int64, open blocks.Open) error {
	return blocks.Upload(ctx, size, open, func(ctx context.Context, query url.Values, size int64, open blocks.Open) error {
		return s.put(ctx, key, query, size, http.Header{}, open)
	})
}

// put makes one request that writes, and makes the container if it is missing.
func (s *Store) put(ctx context.Context, key string, query url.Values, size int64, header http.Header, open blocks.Open) error {
	if query == nil {
		header.Set("x-ms-blob-type", "BlockBlob")
	}
	r := request{method: http.MethodPut, key: key, query: query, header: header, size: size, open: open}
	resp, err := s.do(ctx, r)
	var status *statusError
	if errors.As(err, &status) && status.code == "ContainerNotFound" {
		if err := s.create(ctx); err != nil {
			return err
		}
		resp, err = s.do(ctx, r)
	}
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// create makes the container; that somebody else has is as well.
func (s *Store) create(ctx context.Context) error {
	resp, err := s.do(ctx, request{method: http.MethodPut, query: url.Values{"restype": {"container"}}})
	var status *statusError
	if errors.As(err, &status) && status.status == http.StatusConflict {
		return nil
	}
	if err != nil {
		return fmt.Errorf("making the container: %w", err)
	}
	return resp.Body.Close()
}
