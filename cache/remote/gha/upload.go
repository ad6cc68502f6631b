package gha

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/cache/remote/internal/blocks"
	"github.com/kiln-build/kiln/cache/remote/internal/pace"
)

const (
	// firstLook is when an entry that somebody else has begun is looked for again. Each
	// wait after that is twice as long; with four of them it is four seconds in all.
	firstLook = 250 * time.Millisecond
	looks     = 4
	// maxWaited bounds what a Store waits for all entries of others together. A job that
	// died leaves as many behind as it sent at once, and they are never finished.
	maxWaited = 20 * time.Second
)

// Put makes a Store a remote.Target.
func (s *Store) Put(ctx context.Context, d blob.Descriptor, _ []string, open func(context.Context) (io.ReadCloser, error)) error {
	key := blobKey(d.Digest)
	_, err := s.find(ctx, key, false)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// A key that was begun is nobody else's to write, so there has to be something to
	// write before it is.
	first, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if first != nil {
			first.Close()
		}
	}()
	err = s.write(ctx, key, d.Size, func(ctx context.Context) (io.ReadCloser, error) {
		if r := first; r != nil {
			first = nil
			return r, nil
		}
		return open(ctx)
	})
	if isTaken(err) {
		return s.await(ctx, key)
	}
	return err
}

// await waits a while for an entry that another job has begun: it may be writing the same
// bytes, or may have died.
func (s *Store) await(ctx context.Context, key string) error {
	for n := 0; ; n++ {
		_, err := s.find(ctx, key, false)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		wait := s.look << n
		if n == looks || !s.mayWait(wait) {
			return fmt.Errorf("the entry %s is not there: %w", key, remote.ErrTaken)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// mayWait takes a time from what may be waited for entries of others.
func (s *Store) mayWait(d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waited += d
	return s.waited <= maxWaited
}

// isTaken reports whether the service said that there is an entry of that key.
func isTaken(err error) bool {
	var status *statusError
	return errors.As(err, &status) && status.status == http.StatusConflict || errors.Is(err, errRefused)
}

// errRefused is the service's refusing a key without saying why, which it does
// where there is an entry of that key.
var errRefused = errors.New("the cache service does not take the key")

// Commit makes a Store a remote.Target.
func (s *Store) Commit(ctx context.Context, d blob.Descriptor, manifest []byte, old blob.Digest) (sure bool, err error) {
	s.mu.Lock()
	unknown := s.number < 0
	s.mu.Unlock()
	if unknown && remote.Changed(ctx, s, old) {
		return false, fmt.Errorf("%s: %w", s.Name(), remote.ErrChanged)
	}
	s.mu.Lock()
	n := max(s.number, 0) + 1
	if s.conflicts > maxConflicts {
		n += s.conflicts - maxConflicts
	}
	s.mu.Unlock()
	open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(manifest)), nil }
	err = s.write(ctx, s.series()+strconv.Itoa(n), d.Size, open)
	if isTaken(err) {
		s.mu.Lock()
		s.conflicts++
		s.mu.Unlock()
		return false, fmt.Errorf("%w: %w", remote.ErrChanged, err)
	}
	return err == nil, err
}

// write makes an entry.
func (s *Store) write(ctx context.Context, key string, size int64, open func(context.Context) (io.ReadCloser, error)) error {
	type request struct {
		Key     string `json:"key"`
		Size    int64  `json:"size_bytes,omitempty"`
		Version string `json:"version"`
	}
	var reserved struct {
		OK      bool   `json:"ok"`
		Address string `json:"signed_upload_url"`
	}
	in := request{Key: key, Version: versionOf(key)}
	if err := s.call(ctx, "CreateCacheEntry", in, &reserved); err != nil {
		return err
	}
	if !reserved.OK || reserved.Address == "" {
		return fmt.Errorf("%w: %s", errRefused, key)
	}
	if err := s.upload(ctx, reserved.Address, size, open); err != nil {
		return fmt.Errorf("writing the entry %s: %w", key, err)
	}
	in.Size = size
	var done struct {
		OK bool `json:"ok"`
	}
	err := s.call(ctx, "FinalizeCacheEntryUpload", in, &done)
	if err == nil && !done.OK {
		err = fmt.Errorf("the cache service did not take the entry %s", key)
	}
	return err
}

// upload sends bytes to a signed address.
func (s *Store) upload(ctx context.Context, address string, size int64, open func(context.Context) (io.ReadCloser, error)) error {
	return blocks.Upload(ctx, size, open, func(ctx context.Context, query url.Values, size int64, open blocks.Open) error {
		return s.put(ctx, address, query, size, open)
	})
}

// put makes one request to the storage, with more in the query of its address.
func (s *Store) put(ctx context.Context, address string, more url.Values, size int64, open func(context.Context) (io.ReadCloser, error)) error {
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("the cache service gave an address that is none")
	}
	if len(more) > 0 {
		// What is there stays as it is: it is signed.
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += more.Encode()
	}
	resp, err := pace.Do(ctx, s.client, func() (*http.Request, error) {
		body, err := open(ctx)
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, u.String(), body)
		if err != nil {
			return nil, errors.Join(withoutAddress(err), body.Close())
		}
		if req.ContentLength = size; size == 0 {
			req.Body = http.NoBody
		}
		if len(more) == 0 {
			req.Header.Set("x-ms-blob-type", "BlockBlob")
			req.Header.Set("Content-Type", "application/octet-stream")
		}
		req.Header.Set("x-ms-version", blocks.Version)
		return req, nil
	})
	if err != nil {
		return withoutAddress(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return &statusError{status: resp.StatusCode}
	}
	return nil
}
