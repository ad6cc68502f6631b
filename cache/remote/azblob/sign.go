package azblob

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/cache/remote/internal/blocks"
	"github.com/kiln-build/kiln/cache/remote/internal/pace"
)

// request is one exchange with the storage, about a blob, or, where key is empty,
// about the container.
type request struct {
	method, key string
	query       url.Values
	header      http.Header
	size        int64 // of the body
	open        blocks.Open
}

// statusError is an answer other than the one that was hoped for.
type statusError struct {
	status int
	code   string // the storage's own word
}

func (e *statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("the storage answered %d %s", e.status, e.code))
}

// do makes a request, and gives an answer that is a success.
func (s *Store) do(ctx context.Context, r request) (*http.Response, error) {
	u := *s.base
	if r.key != "" {
		u = *s.base.JoinPath(r.key)
	}
	u.RawQuery = r.query.Encode()
	resp, err := pace.Do(ctx, s.client, func() (*http.Request, error) { return s.attempt(ctx, &u, r) })
	if err != nil {
		var address *url.Error
		if errors.As(err, &address) {
			err = address.Err
		}
		return nil, fmt.Errorf("%s %s: %w", r.method, u.Path, err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	resp.Body.Close()
	err = fmt.Errorf("%s %s: %w", r.method, u.Path, &statusError{resp.StatusCode, resp.Header.Get("x-ms-error-code")})
	if resp.StatusCode == http.StatusNotFound {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return nil, err
}

// attempt makes one attempt of a request, signed as of now.
func (s *Store) attempt(ctx context.Context, u *url.URL, r request) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, r.header)
	if r.open != nil && r.size > 0 {
		body, err := r.open(ctx)
		if err != nil {
			return nil, err
		}
		req.Body, req.ContentLength = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(body, r.size), body}, r.size
	}
	req.Header.Set("x-ms-version", blocks.Version)
	req.Header.Set("x-ms-date", s.opt.Clock().UTC().Format(http.TimeFormat))
	req.Header.Set("Authorization", "SharedKey "+s.opt.Account+":"+Sign(req, s.opt.Account, s.key))
	return req, nil
}

// Sign gives the signature of a request by an account's key: the storage's "Shared
// Key", an HMAC of the method, some headers, those that begin with x-ms-, the path
// and the query.
func Sign(req *http.Request, account string, key []byte) string {
	length := ""
	if req.ContentLength > 0 {
		length = strconv.FormatInt(req.ContentLength, 10)
	}
	lines := []string{req.Method}
	for _, name := range []string{"Content-Encoding", "Content-Language", "Content-Length", "Content-MD5", "Content-Type", "Date",
		"If-Modified-Since", "If-Match", "If-None-Match", "If-Unmodified-Since", "Range"} {
		if name == "Content-Length" {
			lines = append(lines, length)
		} else {
			lines = append(lines, req.Header.Get(name))
		}
	}
	own := map[string]string{}
	for name := range req.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-ms-") {
			own[lower] = strings.TrimSpace(req.Header.Get(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		lines = append(lines, name+":"+own[name])
	}
	resource := "/" + account + req.URL.EscapedPath()
	query := map[string][]string{}
	for name, values := range req.URL.Query() {
		lower := strings.ToLower(name)
		query[lower] = append(query[lower], values...)
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		slices.Sort(query[name])
		resource += "\n" + name + ":" + strings.Join(query[name], ",")
	}
	mac := hmac.New(sha256.New, key)
	_, _ = io.WriteString(mac, strings.Join(append(lines, resource), "\n")) // a hash takes everything
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
