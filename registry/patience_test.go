package registry_test

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/registry"
)

// uploadsTo gives a registry that has no blobs, and in which put takes what is sent.
func uploadsTo(t *testing.T, put http.HandlerFunc) (host string) {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case http.MethodPost:
			w.Header().Set("Location", "/v2/app/blobs/uploads/1")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			put(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// What comes before an answer is none: a server that begins one and falls silent is
// waited for no longer than one that says nothing.
func TestUploadIsHalfAnswered(t *testing.T) {
	for _, said := range []string{"", "H", "HTTP/1.1 102 Processing\r\n\r\n"} {
		host := uploadsTo(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			c, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_, _ = rw.WriteString(said)
			_ = rw.Flush()
			_, _ = bufio.NewReader(c).ReadByte() // until the client goes
		})
		limits := registry.Limits{Header: 200 * time.Millisecond, Attempts: 1}
		data := noise(1000)
		_, err := (&registry.Client{Limits: limits}).Push(t.Context(), nil, host+"/app", describe(ociLayer, data), nil, content(data))
		if !errors.Is(err, registry.ErrDown) {
			t.Errorf("after %q: got %v", said, err)
		}
	}
}
