package source

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/solver"
)

// webServer serves one text that tests change, and logs what it was asked.
type webServer struct {
	*httptest.Server
	text     string
	header   map[string]string
	log      []string
	handle   http.HandlerFunc // instead, if not nil
	modified time.Time
}

func newWebServer(t *testing.T) *webServer {
	w := &webServer{text: "hello", header: map[string]string{}}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.log = append(w.log, r.Method+" "+r.Header.Get("If-None-Match")+r.Header.Get("If-Modified-Since"))
		if w.handle != nil {
			w.handle(rw, r)
			return
		}
		for k, v := range w.header {
			rw.Header().Set(k, v)
		}
		http.ServeContent(rw, r, "", w.modified, strings.NewReader(w.text))
	}))
	t.Cleanup(w.Close)
	return w
}

// pinner is a source.
type pinner interface {
	Pin(ctx context.Context, job *solver.Job, op *pb.SourceOp) (string, error)
	Chain(ctx context.Context, job *solver.Job, op *pb.SourceOp, pin string) (cache.ChainID, error)
}

// file pins and chains a source and gives the one file of the result, as "name=text".
func file(t *testing.T, c *cache.Cache, s pinner, op *pb.SourceOp) (string, tree.Entry, error) {
	t.Helper()
	pin, err := s.Pin(t.Context(), nil, op)
	if err != nil {
		return "", tree.Entry{}, err
	}
	id, err := s.Chain(t.Context(), nil, op, pin)
	if err != nil {
		return "", tree.Entry{}, err
	}
	root, err := c.Merged(id)
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range tree.ReadDir(c, root.Children) {
		if err != nil {
			t.Fatal(err)
		}
		return files(t, c, id), e, nil
	}
	t.Fatal("the result is empty")
	return "", tree.Entry{}, nil
}

func TestHTTP(t *testing.T) {
	w := newWebServer(t)
	w.modified = time.Unix(1e9, 0)
	c := openCache(t, t.TempDir())
	s := NewHTTP(c)
	op := &pb.SourceOp{Identifier: w.URL + "/dir/file.txt?x=1"}
	got, e, err := file(t, c, s, op)
	if err != nil || got != "file.txt=hello" || e.Mode != 0o600 || e.MTime != 1e18 {
		t.Errorf("got %q, %+v, %v", got, e, err)
	}
	// By time: not fetched again while it is the same.
	if got, _, err = file(t, c, s, op); err != nil || got != "file.txt=hello" || len(w.log) != 2 || w.log[1] == "GET " {
		t.Errorf("got %q, %v, requests %q", got, err, w.log)
	}
	w.modified, w.text = time.Unix(2e9, 0), "changed"
	if got, _, err = file(t, c, s, op); err != nil || got != "file.txt=changed" {
		t.Errorf("got %q, %v", got, err)
	}
	// By ETag.
	w.header["ETag"] = `"one"`
	if _, _, err = file(t, c, s, op); err != nil {
		t.Fatal(err)
	}
	if got, _, err = file(t, c, s, op); err != nil || got != "file.txt=changed" || w.log[len(w.log)-1] != `HEAD "one"` {
		t.Errorf("got %q, %v, requests %q", got, err, w.log)
	}
	// Attributes.
	op.Attrs = map[string]string{pb.AttrHTTPFilename: "other", pb.AttrHTTPPerm: "0755", pb.AttrHTTPUID: "5", pb.AttrHTTPGID: "6"}
	if got, e, err = file(t, c, s, op); err != nil || got != "other=changed" || e.Mode != 0o755 || e.UID != 5 || e.GID != 6 {
		t.Errorf("got %q, %+v, %v", got, e, err)
	}
}

func TestHTTPChecksum(t *testing.T) {
	w := newWebServer(t)
	c := openCache(t, t.TempDir())
	s := NewHTTP(c)
	right := blob.Digest(sha256.Sum256([]byte("hello"))).String()
	op := &pb.SourceOp{Identifier: w.URL + "/a", Attrs: map[string]string{pb.AttrHTTPChecksum: right}}
	if _, err := s.Pin(t.Context(), nil, op); err != nil || len(w.log) != 0 {
		t.Errorf("the pin of what has a checksum took the requests %q, %v", w.log, err)
	}
	for range 2 {
		if got, _, err := file(t, c, s, op); err != nil || got != "a=hello" || len(w.log) != 1 {
			t.Errorf("got %q, %v, requests %q", got, err, w.log)
		}
	}
	// The bytes are here by now, but another URL has to give them itself.
	other := &pb.SourceOp{Identifier: w.URL + "/b", Attrs: op.Attrs}
	if got, _, err := file(t, c, s, other); err != nil || got != "b=hello" || len(w.log) != 2 {
		t.Errorf("got %q, %v, requests %q", got, err, w.log)
	}
	w.text = "evil"
	wrong := blob.Digest(sha256.Sum256([]byte("other"))).String()
	op.Attrs[pb.AttrHTTPChecksum] = wrong
	if _, _, err := file(t, c, s, op); err == nil || !strings.Contains(err.Error(), wrong) {
		t.Errorf("got %v, want an error about the digest", err)
	}
}

func TestHTTPNames(t *testing.T) {
	w := newWebServer(t)
	c := openCache(t, t.TempDir())
	s := NewHTTP(c)
	for _, test := range []struct{ url, disposition, want string }{
		{url: "/", want: "download"},
		{url: "", want: "download"},
		{url: "/a/b%20c", want: "b c"},
		{url: "/a/..%2f..%2fetc%2fpasswd", want: "passwd"},
		{url: "/a/..", want: "download"},
		{url: "/x", disposition: `attachment; filename="../../named.txt"`, want: "named.txt"},
		{url: "/x", disposition: `attachment; filename=".."`, want: "download"},
		{url: "/" + strings.Repeat("n", 300), want: "download"},
	} {
		w.handle = func(rw http.ResponseWriter, _ *http.Request) {
			if test.disposition != "" {
				rw.Header().Set("Content-Disposition", test.disposition)
			}
			fmt.Fprint(rw, "x")
		}
		got, _, err := file(t, c, s, &pb.SourceOp{Identifier: w.URL + test.url})
		if err != nil || got != test.want+"=x" {
			t.Errorf("%+v: got %q, %v", test, got, err)
		}
	}
}

func TestHTTPFailures(t *testing.T) {
	w := newWebServer(t)
	c := openCache(t, t.TempDir())
	s := NewHTTP(c)
	s.stall, s.MaxSize = 200*time.Millisecond, 1000
	op := &pb.SourceOp{Identifier: strings.Replace(w.URL, "//", "//me:hunter2@", 1) + "/a"}
	for _, test := range []struct {
		name   string
		handle http.HandlerFunc
		want   string
	}{
		{"404", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(404) }, "404 Not Found"},
		{"304 that was not asked for", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(304) }, "304"},
		{"cut", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", "100")
			fmt.Fprint(rw, "x")
		}, "unexpected EOF"},
		{"too large", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, strings.Repeat("x", 2000)) }, "more than 1000 bytes"},
		{"hang", func(rw http.ResponseWriter, r *http.Request) {
			fmt.Fprint(rw, "x")
			_ = http.NewResponseController(rw).Flush()
			<-r.Context().Done()
		}, "stalled"},
	} {
		w.handle = test.handle
		_, err := s.Pin(t.Context(), nil, op)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want it to say %q", test.name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error has the password in it: %v", test.name, err)
		}
	}
	w.Close()
	if _, err := s.Pin(t.Context(), nil, op); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a server that is down: %v", err)
	}
	for _, op := range []*pb.SourceOp{
		{Identifier: "ftp://a/b"}, {Identifier: "http://"}, {Identifier: "http://a/b", Attrs: map[string]string{pb.AttrHTTPPerm: "rwx"}},
		{Identifier: "http://a/b", Attrs: map[string]string{pb.AttrHTTPUID: "-1"}},
		{Identifier: "http://a/b", Attrs: map[string]string{pb.AttrHTTPChecksum: "md5:1"}},
		{Identifier: "http://a/b", Attrs: map[string]string{pb.AttrHTTPSignatureVerify: "x"}},
		{Identifier: "http://a/b", Attrs: map[string]string{pb.AttrHTTPSignatureVerifyPubKey: "x"}},
		{Identifier: "http://a/b", Attrs: map[string]string{"http.newer": "x"}},
	} {
		if _, err := s.Pin(t.Context(), nil, op); err == nil {
			t.Errorf("%v was taken", op)
		}
	}
	pin, _ := json.Marshal(httpPin{Name: "../../etc/passwd"})
	if _, err := s.Chain(t.Context(), nil, &pb.SourceOp{Identifier: "http://a/b"}, string(pin)); err == nil {
		t.Error("a pin with a path was taken")
	}
}

func TestHTTPLogin(t *testing.T) {
	w := newWebServer(t)
	c := openCache(t, t.TempDir())
	s := NewHTTP(c)
	secrets := map[string]string{}
	s.Secret = func(_ context.Context, _ *solver.Job, id string) ([]byte, error) {
		if v, ok := secrets[id]; ok {
			return []byte(v), nil
		}
		return nil, fs.ErrNotExist
	}
	var got string
	w.handle = func(rw http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		fmt.Fprint(rw, "x")
	}
	job := &solver.Job{Sessions: func() []solver.SessionID { return nil }}
	for _, test := range []struct{ secret, id, value, want string }{
		{"", "HTTP_AUTH_TOKEN_127.0.0.1", "t", "Bearer t"},
		{"", "HTTP_AUTH_HEADER_127.0.0.1", "Basic x", "Basic x"},
		{"mine", "mine", "Basic y", "Basic y"},
		{"", "HTTP_AUTH_TOKEN_other.example", "t", ""},
	} {
		clear(secrets)
		secrets[test.id] = test.value
		op := &pb.SourceOp{Identifier: w.URL + "/a", Attrs: map[string]string{pb.AttrHTTPAuthHeaderSecret: test.secret}}
		if _, err := s.Pin(t.Context(), job, op); err != nil || got != test.want {
			t.Errorf("%+v: sent %q, %v", test, got, err)
		}
	}
	secrets = map[string]string{"HTTP_AUTH_TOKEN_127.0.0.1": "t", "HTTP_AUTH_HEADER_127.0.0.1": "Basic x"}
	for range 10 {
		if _, err := s.Pin(t.Context(), job, &pb.SourceOp{Identifier: w.URL + "/a"}); err != nil || got != "Bearer t" {
			t.Fatalf("with both secrets of a host: sent %q, %v", got, err)
		}
	}
	op := &pb.SourceOp{Identifier: w.URL + "/a", Attrs: map[string]string{pb.AttrHTTPAuthHeaderSecret: "absent"}}
	if _, err := s.Pin(t.Context(), job, op); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("a secret that is not there: %v", err)
	}
}

func TestHTTPTime(t *testing.T) {
	w := newWebServer(t)
	s := NewHTTP(openCache(t, t.TempDir()))
	op := &pb.SourceOp{Identifier: w.URL + "/file"}
	if got, err := s.Time(t.Context(), nil, op); err != nil || !got.IsZero() {
		t.Errorf("time of a file without Last-Modified = %v, %v, want none", got, err)
	}
	w.modified = time.Unix(1e9, 0)
	w.text = "changed"
	for range 2 { // the second time the server answers that nothing changed
		if got, err := s.Time(t.Context(), nil, op); err != nil || !got.Equal(w.modified) {
			t.Errorf("time = %v, %v, want that of Last-Modified, %v", got, err, w.modified)
		}
	}
	op.Attrs = map[string]string{pb.AttrHTTPChecksum: "sha256:" + strings.Repeat("0", 64)}
	if _, err := s.Time(t.Context(), nil, op); err == nil {
		t.Error("a file with another digest than was asked for has a time")
	}
}
