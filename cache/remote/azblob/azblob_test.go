package azblob

import (
	"net/http"
	"strings"
	"testing"
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
