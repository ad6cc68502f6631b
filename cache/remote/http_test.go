package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote/internal/pace"
)

func TestResult(t *testing.T) {
	d := blob.Descriptor{Digest: sha256.Sum256([]byte("x")), Size: 300}
	// As protoc writes output_files { path: "manifest.json" digest { hash: … size_bytes: 300 } }.
	want := "\x12\x56\x0a\x0dmanifest.json\x12\x45\x0a\x40" + strings.TrimPrefix(d.Digest.String(), "sha256:") + "\x10\xac\x02"
	if got := string(resultOf(d)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// A server may add fields: exit_code 3, stdout_raw, before and after.
	for _, in := range []string{want, "\x20\x03" + want, "\x2a\x01o" + want + "\x20\x03"} {
		if got, ok := outputOf([]byte(in)); !ok || got != d.Digest {
			t.Errorf("outputOf(%q) = %s, %v", in, got, ok)
		}
	}
}

func FuzzOutputOf(f *testing.F) {
	f.Add(resultOf(blob.Descriptor{Size: 1}))
	f.Add([]byte("\x12\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, ok := outputOf(data); ok && !strings.Contains(strings.ToLower(string(data)), strings.TrimPrefix(d.String(), "sha256:")) {
			t.Errorf("%s was made up", d)
		}
	})
}

func TestHTTPRanges(t *testing.T) {
	data := strings.Repeat("0123456789", 100)
	d := blob.Descriptor{Digest: sha256.Sum256([]byte(data)), Size: int64(len(data))}
	for name, handler := range map[string]http.HandlerFunc{
		"with ranges": func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(data))
		},
		"without": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, data) },
	} {
		h := serve(t, handler)
		r, err := h.Blob(t.Context(), d, 15)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != data[15:] {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(data)-15)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestHTTPHas has servers find out in several ways that a blob is there, which is then
// neither read nor sent.
func TestHTTPHas(t *testing.T) {
	data := strings.Repeat("0123456789", 100)
	d := blob.Descriptor{Digest: sha256.Sum256([]byte(data)), Size: int64(len(data))}
	for name, row := range map[string]struct {
		head, ranges bool
		has          string
		sent         bool
	}{
		"by HEAD":            {true, true, data, false},
		"by GET":             {false, true, data, false},
		"by GET, all of it":  {false, false, data, false},
		"not by HEAD":        {true, true, "", true},
		"not by GET":         {false, true, "", true},
		"another one by GET": {false, false, "other", true},
	} {
		var sent atomic.Bool
		h := serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPut:
				sent.Store(true)
			case r.Method == http.MethodHead && !row.head:
				w.WriteHeader(http.StatusMethodNotAllowed)
			case row.has == "":
				w.WriteHeader(http.StatusNotFound)
			case row.ranges:
				http.ServeContent(w, r, "", time.Time{}, strings.NewReader(row.has))
			default:
				_, _ = io.WriteString(w, row.has)
			}
		})
		err := h.Put(t.Context(), d, nil, opener([]byte(data)))
		if err != nil || sent.Load() != row.sent {
			t.Errorf("%s: sent %v, %v; want %v", name, sent.Load(), err, row.sent)
		}
	}
}

func serve(t *testing.T, handler http.HandlerFunc) *HTTP {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	h, err := NewHTTP(s.URL, "main", 0)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestHTTPStandsStill has a server stop before its answer, in the middle of one,
// and while it is sent something.
func TestHTTPStandsStill(t *testing.T) {
	d := blob.Descriptor{Digest: blob.Digest{1}, Size: 64 << 20}
	over := make(chan struct{})
	h := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
			return
		case strings.Contains(r.URL.Path, "/cas/01") && r.Method == http.MethodGet:
			_, _ = io.WriteString(w, "some")
			w.(http.Flusher).Flush()
		}
		<-over // the end of a request whose body nobody reads shows nowhere else
	})
	t.Cleanup(func() { close(over) })
	brief := func() { t := pace.New(0); t.After = 50 * time.Millisecond; h.client.Transport = t }
	brief()
	if _, err := h.Manifest(t.Context(), blob.Digest{}); err == nil || !strings.Contains(err.Error(), "stood still") {
		t.Errorf("before the answer: got %v", err)
	}
	r, err := h.Blob(t.Context(), d, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); err == nil || string(data) != "some" {
		t.Errorf("in the middle: got %q, %v", data, err)
	}
	brief() // a server that stood still twice is given up
	zeros := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(endless{}), nil }
	if err := h.Put(t.Context(), d, nil, zeros); err == nil || !strings.Contains(err.Error(), "stood still") {
		t.Errorf("while sending: got %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestHTTPAddress(t *testing.T) {
	for _, bad := range []string{"", "host", "ftp://host", "http://", "http://u:secret@%zz"} {
		if _, err := NewHTTP(bad, "x", 0); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("NewHTTP(%q): %v", bad, err)
		}
	}
	h := serve(t, http.NotFound)
	if _, err := h.Manifest(t.Context(), blob.Digest{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that there is none", err)
	}
}
