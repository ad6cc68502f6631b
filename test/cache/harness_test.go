// Package cache tests remote caches with the real program and a real registry:
// one runner exports, another one, whose state folder is empty, imports.
package cache

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/test/internal/peer"
)

var shared struct {
	kiln string
	base string // the address of the registry with the base image
}

func TestMain(m *testing.M) {
	os.Exit(peer.Main(m, func(l *peer.Lab) error {
		shared.kiln, shared.base = l.Kiln, l.Registry.Addr
		return nil
	}))
}

// registry starts a registry of the test's own.
func registry(t *testing.T) *peer.Registry {
	t.Helper()
	r, err := peer.StartRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return r
}

// dockerfile has a stage that the image does not contain, and steps that say
// when they run.
const dockerfile = `ARG BASE
FROM $BASE AS base
RUN echo "ran base" && chmod 700 /root && rm -rf /home
FROM base AS tool
COPY tool.txt /src/
RUN echo "ran tool" && cp /src/tool.txt /tool && mkdir -p /a/b && ln /tool /a/b/hard && ln -s /tool /a/b/soft && mkfifo /a/f
FROM base
RUN echo "ran setup" && echo setup > /setup
COPY app.txt /src/app.txt
COPY --from=tool /tool /a /bin/
RUN echo "ran app" && cat /src/app.txt /bin/tool > /out
`

// context makes a build context.
func context(t *testing.T, app string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{"Dockerfile": dockerfile, "app.txt": app, "tool.txt": "a tool\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// outcome is what a build did.
type outcome struct {
	text   string
	ran    []string // the steps that ran, sorted
	digest string   // of the image; empty where none was made
	err    error
}

// runner is a machine with a state folder of its own.
type runner struct {
	t    *testing.T
	root string
	env  []string // besides the test's own
}

func newRunner(t *testing.T) runner { return runner{t: t, root: t.TempDir()} }

// noTime is the time of what has none.
var noTime time.Time

// command is a build of dir with the flags.
func (r runner) command(dir string, flags ...string) *exec.Cmd {
	args := append([]string{"build", "--root", r.root, "--progress", "plain",
		"--build-arg", "BASE=" + shared.base + "/busybox:latest", "--build-arg", "SOURCE_DATE_EPOCH=1700000000"}, flags...)
	cmd := exec.Command(shared.kiln, append(args, dir)...)
	cmd.Env = append(os.Environ(), r.env...)
	return cmd
}

// build builds dir with the flags.
func (r runner) build(dir string, flags ...string) outcome {
	r.t.Helper()
	meta := filepath.Join(r.t.TempDir(), "meta.json")
	out, err := r.command(dir, append([]string{"--metadata-file", meta}, flags...)...).CombinedOutput()
	o := outcome{text: string(out), err: err}
	for line := range strings.Lines(o.text) {
		if _, step, ok := strings.Cut(line, " ran "); ok && !strings.Contains(line, "RUN") {
			o.ran = append(o.ran, strings.TrimSpace(step))
		}
	}
	slices.Sort(o.ran)
	if err == nil {
		var m map[string]any
		data, err := os.ReadFile(meta)
		if err == nil {
			err = json.Unmarshal(data, &m)
		}
		if err != nil {
			r.t.Fatal(err)
		}
		o.digest, _ = m["containerimage.digest"].(string)
	}
	return o
}

// keeps reports whether the machine keeps a blob.
func (r runner) keeps(d digest.Digest) bool {
	_, err := os.Stat(filepath.Join(r.root, "blobs/sha256", d.Encoded()))
	return err == nil
}

// must builds, and fails the test where that fails.
func (r runner) must(dir string, flags ...string) outcome {
	r.t.Helper()
	o := r.build(dir, flags...)
	if o.err != nil {
		r.t.Fatalf("kiln build %v: %v\n%s", flags, o.err, o.text)
	}
	return o
}

// tarball gives the flags of an output whose digest can be compared.
func tarball(t *testing.T) []string {
	return []string{"-o", "type=oci,rewrite-timestamp=true,dest=" + filepath.Join(t.TempDir(), "out.tar")}
}

// wanted is the digest of an image that no cache had a part in.
func wanted(t *testing.T, dir string) string {
	t.Helper()
	return newRunner(t).must(dir, tarball(t)...).digest
}

var all = []string{"app", "base", "setup", "tool"}

func (o outcome) check(t *testing.T, ran []string, digest string) {
	t.Helper()
	if !slices.Equal(o.ran, ran) {
		t.Errorf("ran %q, want %q\n%s", o.ran, ran, o.text)
	}
	if o.digest != digest {
		t.Errorf("the image is %s, want %s\n%s", o.digest, digest, o.text)
	}
}

// s3Server starts an S3 server of the test's own.
func s3Server(t *testing.T) *peer.S3 {
	t.Helper()
	s, err := peer.StartS3(t.TempDir(), "../peers/build.sh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// nginxServer starts an nginx of the test's own, and gives its address.
func nginxServer(t *testing.T) string {
	t.Helper()
	n, err := peer.StartNginx(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	return n.Addr
}

// requests gives the lines of a registry's access log from an offset on, and
// where it ends.
func requests(t *testing.T, r *peer.Registry, from int) ([]string, int) {
	t.Helper()
	data, err := os.ReadFile(r.Log)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data[from:])) {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "PATCH"} {
			if _, rest, ok := strings.Cut(line, `"`+method+" /v2/"); ok {
				path, _, _ := strings.Cut(rest, " ")
				lines = append(lines, method+" "+path)
			}
		}
	}
	return lines, len(data)
}

// blobsRead counts the blobs that were fetched of a repository.
func blobsRead(lines []string, repo string) (n int) {
	for _, l := range lines {
		if strings.HasPrefix(l, "GET "+repo+"/blobs/") {
			n++
		}
	}
	return n
}

// proxy stands between kiln and a server, and lets requests fail.
type proxy struct {
	addr string

	mu    sync.Mutex
	count int
	when  func(r *http.Request) bool // which fail; nil is none
	fault func(w http.ResponseWriter, r *http.Request, pass http.Handler)
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	p := new(proxy)
	rp := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: to})
			r.Out.Host = r.In.Host // it may be signed
		},
		Transport:    &http.Transport{DisableCompression: true},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ErrorLog:     log.New(io.Discard, "", 0),
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		var fault func(http.ResponseWriter, *http.Request, http.Handler)
		if r.URL.Path != "/v2/" {
			if p.when != nil && p.when(r) {
				fault = p.fault
			}
			p.count++
		}
		p.mu.Unlock()
		if fault != nil {
			fault(w, r, rp)
			return
		}
		rp.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	p.addr = s.Listener.Addr().String()
	return p
}

// fail lets the nth request fail, counted from now, and those after it too where on
// is set; -1 is none.
func (p *proxy) fail(n int, on bool, fault func(http.ResponseWriter, *http.Request, http.Handler)) {
	p.failWhen(func(*http.Request) bool { return n >= 0 && (p.count == n || on && p.count > n) }, fault)
}

// failWhen lets requests fail for which when says so; it is called by one at a time.
func (p *proxy) failWhen(when func(*http.Request) bool, fault func(http.ResponseWriter, *http.Request, http.Handler)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count, p.when, p.fault = 0, when, fault
}

func (p *proxy) seen() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// bazelServer serves Bazel's HTTP cache protocol, as strictly as a server may: it
// takes blobs only whose name is their digest, and knows GET and PUT alone.
func bazelServer(t *testing.T) *httptest.Server {
	t.Helper()
	var mu sync.Mutex
	stored := map[string][]byte{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/team/"), "/")
		if user, password, _ := r.BasicAuth(); user != "ci" || password != "hidden" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if len(parts) != 2 || parts[0] != "ac" && parts[0] != "cas" || len(parts[1]) != 64 {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		switch r.Method {
		case http.MethodGet:
			data, ok := stored[r.URL.Path]
			if !ok {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			_, _ = w.Write(data)
		case http.MethodPut:
			data, err := io.ReadAll(r.Body)
			if err != nil || parts[0] == "cas" && fmt.Sprintf("%x", sha256.Sum256(data)) != parts[1] {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			stored[r.URL.Path] = data
		default:
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
	}))
	t.Cleanup(s.Close)
	return s
}
