// Package gha keeps remote caches in GitHub's cache service, version 2, which the
// jobs of GitHub Actions have.
//
// The service holds entries: a key, which is written once and never changed, and
// bytes, which go to and come from signed addresses in Azure's blob storage. A blob
// is an entry called by its digest. A cache's name, which has to change, is a series
// of entries that end in a number, of which the newest counts; since a key can be
// written once only, of two exports at the same moment one finds out.
//
// Entries belong to a branch (a scope, as GitHub has it). A job reads those of its
// own branch and of the default one, and writes its own.
package gha

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/cache/remote/internal/pace"
)

// Options say which service, and which cache in it.
type Options struct {
	// URL is the service's address and Token what it knows the job by: the job's
	// ACTIONS_RESULTS_URL and ACTIONS_RUNTIME_TOKEN.
	URL, Token string
	// Name tells caches apart.
	Name string
	// Ref is the branch whose cache it is, as the token says it; empty is any.
	Ref string
	// Patience is how long the service may stand still; 0 is 15 s.
	Patience time.Duration
}

// Scope is a branch whose entries a token's bearer may read, or write.
type Scope struct {
	Ref   string
	Write bool
}

// The bits of a scope's permission.
const (
	permissionWrite = 2
)

// Scopes gives those that a token says it is for, the job's own first. They choose
// names only: what may be read or written the service decides. None means that the
// token does not say.
func Scopes(token string) []Scope {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return nil
	}
	var claims struct {
		AC string `json:"ac"`
	}
	var list []struct {
		Scope      string
		Permission int
	}
	if json.Unmarshal(payload, &claims) != nil || json.Unmarshal([]byte(claims.AC), &list) != nil {
		return nil
	}
	var out []Scope
	for _, s := range list {
		out = append(out, Scope{s.Scope, s.Permission&permissionWrite != 0})
	}
	return out
}

const (
	// service is the path of its methods, which are called as twirp has it.
	service = "twirp/github.actions.results.api.v1.CacheService/"
	// maxAnswer is what is read of a method's answer.
	maxAnswer = 64 << 10
	// maxConflicts is how often a number that somebody has taken, and under which
	// nothing appears, is waited for: who took it may be writing, or may have died.
	maxConflicts = 15
)

// Store is a cache in the service. It is safe for concurrent use.
type Store struct {
	opt    Options
	base   *url.URL
	client *http.Client
	look   time.Duration // firstLook, but for tests

	mu        sync.Mutex    // guards what follows
	waited    time.Duration // for entries of others
	number    int           // of the entry that the name stood for when it was last read; -1 is unknown
	conflicts int           // since the number was another
	// addresses are those that blobs were last had from.
	addresses map[string]string
}

var _ remote.Target = (*Store)(nil)

// New gives a cache. Nothing is asked before it is used.
func New(o Options) (*Store, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, errors.New("url_v2: want the address that ACTIONS_RESULTS_URL has")
	}
	return &Store{
		opt: o, base: u, client: &http.Client{Transport: pace.New(o.Patience)}, look: firstLook,
		number: -1, addresses: map[string]string{},
	}, nil
}

// Name gives what people call the cache.
func (s *Store) Name() string { return "GitHub Actions, " + s.opt.Name }

// version is part of every entry's key: entries of other programs have others.
func version(key string) string {
	sum := sha256.Sum256([]byte("kiln cache 1|" + key))
	return hex.EncodeToString(sum[:])
}

// versionOf gives the version of a key: the numbered ones share that of their series.
func versionOf(key string) string {
	series, _, _ := strings.Cut(key, "#")
	return version(series)
}

func blobKey(d blob.Digest) string { return "kiln-blob-1-" + d.String() }

// series is what the keys of the cache's name begin with.
func (s *Store) series() string {
	ref := sha256.Sum256([]byte(s.opt.Ref))
	return "kiln-index-1-" + s.opt.Name + "-" + hex.EncodeToString(ref[:4]) + "#"
}

// statusError is an answer other than the one that was hoped for.
type statusError struct {
	status int
	said   string
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("the cache service answered %d %s", e.status, http.StatusText(e.status))
	if e.said != "" {
		text += ": " + e.said
	}
	return text
}

// call calls a method of the service.
func (s *Store) call(ctx context.Context, method string, in, out any) error {
	data, err := json.Marshal(in)
	if err != nil {
		return err
	}
	resp, err := pace.Do(ctx, s.client, func() (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base.JoinPath(service, method).String(), bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+s.opt.Token)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("User-Agent", "kiln")
		return req, nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", method, withoutAddress(err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	if resp.StatusCode != http.StatusOK {
		var said struct{ Code, Msg string }
		_ = json.Unmarshal(answer, &said) // an answer of another kind says nothing
		return fmt.Errorf("%s: %w", method, &statusError{resp.StatusCode, strings.ToValidUTF8(said.Msg, "?")})
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: the cache service's answer cannot be read: %w", method, err)
	}
	return nil
}

// withoutAddress leaves out the address that net/http puts before an error: signed
// addresses let whoever has them in.
func withoutAddress(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// entry is one that was found.
type entry struct {
	Key     string `json:"matched_key"`
	Address string `json:"signed_download_url"`
	OK      bool   `json:"ok"`
}

// find looks an entry up by its key, or, with a prefix, the newest whose key begins
// with it.
func (s *Store) find(ctx context.Context, key string, prefix bool) (entry, error) {
	in := struct {
		Key         string   `json:"key"`
		RestoreKeys []string `json:"restore_keys"`
		Version     string   `json:"version"`
	}{key, []string{}, versionOf(key)}
	if prefix {
		in.RestoreKeys = []string{key}
	}
	var e entry
	err := s.call(ctx, "GetCacheEntryDownloadURL", in, &e)
	var status *statusError
	switch {
	case errors.As(err, &status) && status.status == http.StatusNotFound:
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case err == nil && (!e.OK || e.Address == ""):
		err = fmt.Errorf("%w: the cache service has no entry %s", fs.ErrNotExist, key)
	case err == nil && (prefix && !strings.HasPrefix(e.Key, key) || !prefix && e.Key != "" && e.Key != key):
		err = fmt.Errorf("%w: the cache service gave another entry than %s", fs.ErrNotExist, key)
	}
	return e, err
}

// get reads what is at a signed address, which names no user: it is its own key.
func (s *Store) get(ctx context.Context, address string, offset int64) (io.ReadCloser, error) {
	resp, err := pace.Do(ctx, s.client, func() (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err == nil && offset > 0 {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		}
		return req, withoutAddress(err)
	})
	if err != nil {
		return nil, fmt.Errorf("reading an entry: %w", withoutAddress(err))
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		err := fmt.Errorf("reading an entry: %w", &statusError{status: resp.StatusCode})
		if resp.StatusCode == http.StatusNotFound {
			err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
		return nil, err
	}
	return remote.BodyFrom(resp, offset)
}

// Manifest makes a Store a remote.Store.
func (s *Store) Manifest(ctx context.Context, d blob.Digest) ([]byte, error) {
	key, prefix := blobKey(d), false
	if d.IsZero() {
		key, prefix = s.series(), true
	}
	e, err := s.find(ctx, key, prefix)
	if prefix && errors.Is(err, fs.ErrNotExist) {
		s.noteNumber(0)
	}
	if err != nil {
		return nil, err
	}
	if prefix {
		n, err := strconv.Atoi(strings.TrimPrefix(e.Key, key))
		if err != nil || n < 1 {
			return nil, &remote.FormatError{Reason: fmt.Sprintf("the entry %.200q has no number", e.Key)}
		}
		s.noteNumber(n)
	}
	r, err := s.get(ctx, e.Address, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return remote.ReadManifest(r, d)
}

func (s *Store) noteNumber(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.number != n {
		s.number, s.conflicts = n, 0
	}
}

// Blob makes a Store a remote.Store. Its address is kept until it does not serve any
// more: an address is good for some time only.
func (s *Store) Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	key := blobKey(d.Digest)
	s.mu.Lock()
	address := s.addresses[key]
	s.mu.Unlock()
	if address != "" {
		r, err := s.get(ctx, address, offset)
		var status *statusError
		if err == nil || !errors.As(err, &status) || status.status != http.StatusForbidden && status.status != http.StatusUnauthorized {
			return r, err
		}
	}
	e, err := s.find(ctx, key, false)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.addresses[key] = e.Address
	s.mu.Unlock()
	return s.get(ctx, e.Address, offset)
}
