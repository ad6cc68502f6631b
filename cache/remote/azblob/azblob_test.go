package azblob

import (
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
)

// TestSign has what Azure's own client (its SDK for Go, azblob v1.8.0) made of a
// request.
func TestSign(t *testing.T) {
	req, err := http.NewRequest(http.MethodPut, "http://127.0.0.1:1/acct/con?restype=container", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Ms-Date", "Sun, 22 Nov 2026 17:10:14 GMT")
	req.Header.Set("X-Ms-Version", "2026-06-06")
	const want = "ime1c6TBBo2nCYnjq9bytivQlK+uUl8jt11AX7/Q/YU="
	if got := Sign(req, "acct", []byte("0123456789abcdef0123456789abcdef")); got != want {
		t.Errorf("got the signature %s, want %s", got, want)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := Options{URL: "https://acct.blob.core.windows.net", Key: "c2VjcmV0", Container: "c", Name: "main", ManifestsPrefix: "kiln"}
	s, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if s.opt.Account != "acct" || s.Name() != "https://acct.blob.core.windows.net/c/kiln/main" {
		t.Errorf("the account is %q and the cache %q", s.opt.Account, s.Name())
	}
	for name, change := range map[string]func(*Options){
		"no address":                 func(o *Options) { o.URL = "acct" },
		"a password in the address":  func(o *Options) { o.URL = "https://u:hidden@acct.blob.core.windows.net" },
		"a signature in the address": func(o *Options) { o.URL += "?sig=hidden" },
		"a key that is no base64":    func(o *Options) { o.Key = "hidden!" },
		"no container":               func(o *Options) { o.Container = "" },
		"a container with folders":   func(o *Options) { o.Container = "a/b" },
		"a container above":          func(o *Options) { o.Container = ".." },
	} {
		o := good
		change(&o)
		if _, err := New(o); err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestCommitAfterAnother writes in the place of what another Store has read, as an
// import does: on the condition that it is still that.
func TestCommitAfterAnother(t *testing.T) {
	var mu sync.Mutex
	manifest, tag := "old", `"1"`
	raced := false // somebody writes right before each PUT
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodGet {
			w.Header().Set("ETag", tag)
			_, _ = io.WriteString(w, manifest)
			return
		}
		if raced {
			manifest, tag = "another's", `"2"`
		}
		if match := r.Header.Get("If-Match"); match != "" && match != tag {
			w.WriteHeader(http.StatusPreconditionFailed)
			return
		}
		data, _ := io.ReadAll(r.Body)
		manifest, tag = string(data), `"3"`
		w.WriteHeader(http.StatusCreated)
	}))
	t.Cleanup(server.Close)
	for _, race := range []bool{false, true} {
		mu.Lock()
		manifest, tag, raced = "old", `"1"`, race
		mu.Unlock()
		s, err := New(Options{URL: server.URL + "/acct", Account: "acct", Key: "c2VjcmV0", Container: "c", Name: "main"})
		if err != nil {
			t.Fatal(err)
		}
		sure, err := s.Commit(t.Context(), blob.Descriptor{MediaType: "m"}, []byte("new"), sha256.Sum256([]byte("old")))
		mu.Lock()
		if race && (!errors.Is(err, remote.ErrChanged) || manifest != "another's") {
			t.Errorf("when another had written: %v, and the manifest is %q", err, manifest)
		}
		if !race && (err != nil || !sure || manifest != "new") {
			t.Errorf("got sure %v, %v, and the manifest is %q", sure, err, manifest)
		}
		mu.Unlock()
	}
}
