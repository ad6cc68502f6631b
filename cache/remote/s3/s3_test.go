package s3

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
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
)

// server is a bucket that minds conditions, or not, or refuses them.
type server struct {
	conditions string // "minds", "ignores", "refuses"

	mu       sync.Mutex
	objects  map[string][]byte
	requests []string
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	data, ok := s.objects[r.URL.Path]
	etag := fmt.Sprintf("%q", hex.EncodeToString(data))
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("ETag", etag)
		w.Header().Set("Last-Modified", "Thu, 01 Jan 1970 01:00:00 GMT")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	case http.MethodPut:
		match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
		if s.conditions == "refuses" && match+none != "" {
			w.WriteHeader(http.StatusNotImplemented)
			return
		}
		if s.conditions == "minds" && (none == "*" && ok || match != "" && match != etag) {
			w.WriteHeader(http.StatusPreconditionFailed)
			return
		}
		if r.Header.Get("X-Amz-Copy-Source") != "" {
			_, _ = io.WriteString(w, "<CopyObjectResult><ETag>x</ETag></CopyObjectResult>")
			return
		}
		body, err := io.ReadAll(r.Body)
		sum := sha256.Sum256(body)
		if err != nil || r.Header.Get("X-Amz-Content-Sha256") != hex.EncodeToString(sum[:]) {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.objects[r.URL.Path] = body
	}
}

func start(t *testing.T, conditions string) (*server, func() *Store) {
	t.Helper()
	s := &server{conditions: conditions, objects: map[string][]byte{}}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	return s, func() *Store {
		store, err := New(Options{
			Bucket: "b", Endpoint: web.URL, Name: "main", KeyID: "id", Secret: "secret", PathStyle: true,
			BlobsPrefix: "blobs/", ManifestsPrefix: "kiln/", Clock: func() time.Time { return time.Unix(3600+10, 0) },
		})
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
}

func describe(data string) blob.Descriptor {
	return blob.Descriptor{MediaType: "text/plain", Digest: sha256.Sum256([]byte(data)), Size: int64(len(data))}
}

// TestConditions has two exports read the same and write in turn.
func TestConditions(t *testing.T) {
	for conditions, want := range map[string]struct{ sure, changed bool }{
		"minds":   {true, true},
		"ignores": {false, false},
		"refuses": {false, false},
	} {
		_, open := start(t, conditions)
		a, b := open(), open()
		for _, s := range []*Store{a, b} {
			if _, err := s.Manifest(t.Context(), blob.Digest{}); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%s: %v", conditions, err)
			}
		}
		one, two := describe("one"), describe("two")
		sure, err := a.Commit(t.Context(), one, []byte("one"), blob.Digest{})
		if err != nil || sure != want.sure {
			t.Errorf("%s: the first: %v, %v", conditions, sure, err)
		}
		sure, err = b.Commit(t.Context(), two, []byte("two"), blob.Digest{})
		if errors.Is(err, remote.ErrChanged) != want.changed || sure {
			t.Errorf("%s: the second: %v, %v", conditions, sure, err)
		}
		// With what is there read, it is written over.
		data, err := b.Manifest(t.Context(), blob.Digest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Commit(t.Context(), two, []byte("two"), sha256.Sum256(data)); err != nil {
			t.Errorf("%s: the second again: %v", conditions, err)
		}
		// One whose index was read by another looks before it writes.
		c := open()
		if _, err := c.Commit(t.Context(), one, []byte("one"), one.Digest); !errors.Is(err, remote.ErrChanged) {
			t.Errorf("%s: a third that counts on the first: %v", conditions, err)
		}
	}
}

func TestBlobs(t *testing.T) {
	s, open := start(t, "minds")
	store := open()
	data := strings.Repeat("0123456789", 1000)
	d := describe(data)
	opened := 0
	put := func() error {
		return store.Put(t.Context(), d, nil, func(context.Context) (io.ReadCloser, error) {
			opened++
			return io.NopCloser(io.MultiReader(strings.NewReader(data))), nil // which cannot seek
		})
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	if err := put(); err != nil || opened != 1 {
		t.Errorf("what was there was read %d times, %v", opened, err)
	}
	r, err := store.Blob(t.Context(), d, 9995)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "56789" {
		t.Errorf("from 9995 on: %q, %v", got, err)
	}
	r.Close()
	if _, err := store.Blob(t.Context(), describe("none"), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	// An object that is older than a day is written anew, without being sent.
	store.opt.Clock = func() time.Time { return time.Unix(3600, 0).Add(25 * time.Hour) }
	before := len(s.requests)
	if err := put(); err != nil || opened != 1 {
		t.Fatal(opened, err)
	}
	if got := s.requests[before:]; len(got) != 2 || !strings.HasPrefix(got[1], "PUT") {
		t.Errorf("an old object: %q", got)
	}
}

func TestOptions(t *testing.T) {
	for _, endpoint := range []string{"host", "ftp://host", "http://", "http://user:secret@host"} {
		if _, err := New(Options{Bucket: "b", Name: "n", Endpoint: endpoint}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	store, err := New(Options{Bucket: "b", Name: "n", KeyID: "k", Secret: "s"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Manifest(t.Context(), blob.Digest{}); err == nil || !strings.Contains(err.Error(), "region") {
		t.Errorf("no region: %v", err)
	}
}
