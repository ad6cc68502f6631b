package gha

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/cache/remote/internal/blocks"
)

// memory keeps entries; those of whose keys dead says so were begun by somebody
// who died.
type memory struct {
	dead func(key string) bool
	url  string

	mu      sync.Mutex
	entries map[string]string
	order   []string
	blocks  map[string]int64
	sizes   []int64 // of the blobs that came in blocks
}

func start(t *testing.T, dead func(string) bool) (*memory, *Store) {
	t.Helper()
	s := &memory{dead: dead, entries: map[string]string{}, blocks: map[string]int64{}}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	s.url = web.URL
	store, err := New(Options{URL: web.URL, Token: "t", Name: "app"})
	if err != nil {
		t.Fatal(err)
	}
	return s, store
}

func (s *memory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := r.URL.Query().Get("key")
	if r.Method == http.MethodPut {
		s.put(w, r, key)
		return
	}
	if r.Method == http.MethodGet {
		_, _ = io.WriteString(w, s.entries[key])
		return
	}
	var in struct {
		Key         string   `json:"key"`
		RestoreKeys []string `json:"restore_keys"`
	}
	_ = json.NewDecoder(r.Body).Decode(&in)
	address := func(key string) string { return fmt.Sprintf("%s/?key=%s", s.url, strings.ReplaceAll(key, "#", "%23")) }
	answer := map[string]any{"ok": false}
	switch r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:] {
	case "CreateCacheEntry":
		if _, ok := s.entries[in.Key]; !ok && !s.dead(in.Key) {
			answer = map[string]any{"ok": true, "signed_upload_url": address(in.Key)}
		}
	case "FinalizeCacheEntryUpload":
		s.order = append(s.order, in.Key)
		answer["ok"] = true
	case "GetCacheEntryDownloadURL":
		for _, k := range slices.Backward(s.order) {
			if k == in.Key || len(in.RestoreKeys) > 0 && strings.HasPrefix(k, in.RestoreKeys[0]) {
				answer = map[string]any{"ok": true, "matched_key": k, "signed_download_url": address(k)}
				break
			}
		}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *memory) put(w http.ResponseWriter, r *http.Request, key string) {
	switch r.URL.Query().Get("comp") {
	case "block":
		n, _ := io.Copy(io.Discard, r.Body)
		s.blocks[r.URL.Query().Get("blockid")] = n
	case "blocklist":
		var list struct{ Latest []string }
		_ = xml.NewDecoder(r.Body).Decode(&list)
		var n int64
		for _, id := range list.Latest {
			n += s.blocks[id]
		}
		s.sizes = append(s.sizes, n)
	default:
		data, _ := io.ReadAll(r.Body)
		s.entries[key] = string(data)
	}
	w.WriteHeader(http.StatusCreated)
}

// commit is what an export does: it reads again after each refusal.
func commit(ctx context.Context, s *Store, text string) (tries int, err error) {
	for tries = 1; ; tries++ {
		_, rerr := s.Manifest(ctx, blob.Digest{})
		if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			return tries, rerr
		}
		_, err := s.Commit(ctx, blob.Descriptor{Size: int64(len(text))}, []byte(text), blob.Digest{})
		if !errors.Is(err, remote.ErrChanged) || tries > 100 {
			return tries, err
		}
	}
}

// TestNumbers has the second entry of a name begun by somebody who died.
func TestNumbers(t *testing.T) {
	s, store := start(t, func(key string) bool { return strings.HasSuffix(key, "#2") })
	for n, want := range map[string]bool{"one": false} {
		if tries, err := commit(t.Context(), store, n); err != nil || (tries > 1) != want {
			t.Fatalf("%s: %d tries, %v", n, tries, err)
		}
	}
	tries, err := commit(t.Context(), store, "two")
	if err != nil || tries < maxConflicts {
		t.Errorf("%d tries, %v; want it to be patient, and then to go on", tries, err)
	}
	data, err := store.Manifest(t.Context(), blob.Digest{})
	if err != nil || string(data) != "two" {
		t.Errorf("the name stands for %q, %v", data, err)
	}
	if last := s.order[len(s.order)-1]; !strings.HasSuffix(last, "#3") {
		t.Errorf("the last entry is %s, want number 3", last)
	}
}

// TestTaken has others begin to write blobs, who come to an end or do not.
func TestTaken(t *testing.T) {
	ours, theirs := describe("ours"), describe("theirs")
	taken := map[string]bool{blobKey(ours.Digest): true, blobKey(theirs.Digest): true}
	s, store := start(t, func(key string) bool { return taken[key] })
	store.look = 20 * time.Millisecond
	closed := 0
	put := func(d blob.Descriptor) error {
		return store.Put(t.Context(), d, nil, func(context.Context) (io.ReadCloser, error) {
			return &counted{strings.NewReader("x"), &closed}, nil
		})
	}
	if err := put(ours); !errors.Is(err, remote.ErrTaken) {
		t.Errorf("a blob that nobody finishes: %v", err)
	}
	time.AfterFunc(store.look, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.order = append(s.order, blobKey(theirs.Digest))
	})
	if err := put(theirs); err != nil {
		t.Errorf("a blob that somebody else finishes: %v", err)
	}
	if closed != 2 {
		t.Errorf("%d blobs were closed, want both", closed)
	}
	// Who has waited for long in vain waits no more.
	store.waited, store.look = maxWaited, time.Minute
	if err := put(ours); !errors.Is(err, remote.ErrTaken) {
		t.Errorf("once more: %v", err)
	}
}

// TestNothingIsBegun has a blob that cannot be read: its key is left to others.
func TestNothingIsBegun(t *testing.T) {
	begun := 0
	_, store := start(t, func(string) bool { begun++; return false })
	gone := errors.New("it is gone")
	err := store.Put(t.Context(), describe("x"), nil, func(context.Context) (io.ReadCloser, error) { return nil, gone })
	if !errors.Is(err, gone) || begun != 0 {
		t.Errorf("%d entries were begun, %v", begun, err)
	}
}

func describe(data string) blob.Descriptor {
	return blob.Descriptor{Digest: sha256.Sum256([]byte(data)), Size: int64(len(data))}
}

// counted counts the readers that were closed.
type counted struct {
	io.Reader
	closed *int
}

func (c *counted) Close() error {
	*c.closed++
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestLarge sends a blob that is too large for one request.
func TestLarge(t *testing.T) {
	s, store := start(t, func(string) bool { return false })
	d := blob.Descriptor{Digest: blob.Digest{1}, Size: blocks.MaxPut + 5}
	err := store.Put(t.Context(), d, nil, func(context.Context) (io.ReadCloser, error) { return io.NopCloser(zeros{}), nil })
	if err != nil || !slices.Equal(s.sizes, []int64{d.Size}) {
		t.Errorf("blobs of %d bytes arrived, %v; want one of %d", s.sizes, err, d.Size)
	}
}

func TestScopes(t *testing.T) {
	token := func(claims string) string { return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s" }
	for _, c := range []struct {
		token string
		want  []Scope
	}{
		{token(`{"ac":"[{\"Scope\":\"refs/heads/x\",\"Permission\":3},{\"Scope\":\"refs/heads/main\",\"Permission\":1}]"}`),
			[]Scope{{"refs/heads/x", true}, {"refs/heads/main", false}}},
		{token(`{}`), nil}, // says nothing
		{"opaque", nil},
		{"a.!!.b", nil},
	} {
		if got := Scopes(c.token); !slices.Equal(got, c.want) {
			t.Errorf("Scopes(%q) = %v, want %v", c.token, got, c.want)
		}
	}
}

func FuzzScopes(f *testing.F) {
	f.Add("a.e30.b")
	f.Fuzz(func(t *testing.T, token string) {
		if len(Scopes(token)) > 0 && strings.Count(token, ".") != 2 {
			t.Errorf("scopes of %q, which is no token", token)
		}
	})
}
