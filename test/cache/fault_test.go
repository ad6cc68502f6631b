package cache

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fault is what happens to one request, or to it and all that follow.
type fault struct {
	name string
	do   func(w http.ResponseWriter, r *http.Request, pass http.Handler)
}

func status(code int, header ...string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.Copy(io.Discard, r.Body)
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

var faults = []fault{
	{"dropped", func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }},
	{"delayed", func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		time.Sleep(300 * time.Millisecond)
		pass.ServeHTTP(w, r)
	}},
	{"truncated", func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		pass.ServeHTTP(&changer{ResponseWriter: w, cut: true}, r)
	}},
	{"corrupted", func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		pass.ServeHTTP(&changer{ResponseWriter: w}, r)
	}},
	{"401", status(http.StatusUnauthorized)},
	{"404", status(http.StatusNotFound)},
	{"429", status(http.StatusTooManyRequests, "Retry-After", "1")},
	{"429 for an hour", status(http.StatusTooManyRequests, "Retry-After", "3600")},
	{"500", status(http.StatusInternalServerError)},
}

// changer changes a byte of a body, or cuts the body off.
type changer struct {
	http.ResponseWriter
	cut, done bool
}

func (c *changer) Write(p []byte) (int, error) {
	if len(p) == 0 || c.done {
		return c.ResponseWriter.Write(p)
	}
	c.done = true
	if c.cut {
		_, _ = c.ResponseWriter.Write(p[:len(p)/2])
		panic(http.ErrAbortHandler)
	}
	p = slices.Clone(p)
	p[len(p)/2] ^= 1
	return c.ResponseWriter.Write(p)
}

// small is a build of two steps and a file, so that many can be made.
const small = `ARG BASE
FROM $BASE
RUN echo "ran base" && echo base > /base
COPY app.txt /
RUN echo "ran app" && cat /base /app.txt > /out
`

func smallContext(t *testing.T, app string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{"Dockerfile": small, "app.txt": app} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// servers are the caches that have a server, behind proxies. Each has a fresh one:
// faults may leave things in it.
var servers = map[string]func(t *testing.T) (p *proxy, ref string){
	"registry": func(t *testing.T) (*proxy, string) {
		p := newProxy(t, registry(t).Addr)
		return p, "type=registry,ref=" + p.addr + "/cache"
	},
	"http": func(t *testing.T) (*proxy, string) {
		p := newProxy(t, bazelServer(t).Listener.Addr().String())
		return p, "type=http,url=http://ci:hidden@" + p.addr + "/team"
	},
	"s3": func(t *testing.T) (*proxy, string) {
		s := s3Server(t)
		p := newProxy(t, s.Addr)
		return p, s.Attrs(p.addr)
	},
	"gha": func(t *testing.T) (*proxy, string) {
		a := startActions(t)
		p := newProxy(t, a.Listener.Addr().String())
		a.URL = "http://" + p.addr // also of what it signs
		return p, "type=gha,url_v2=http://" + p.addr + ",token=" + actionsToken("main")
	},
}

// TestServersFail has each request of a build fail in turn that imports a cache and
// adds to it: that one alone, or it and all that follow. The build is to succeed
// with the right image, and what it leaves in the cache is to spoil no other.
func TestServersFail(t *testing.T) {
	t.Parallel()
	for name, serve := range servers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, ref := serve(t)
			dir := smallContext(t, "one\n")
			newRunner(t).must(dir, "--cache-to", ref+",mode=max")
			n := 0
			for i := 0; i == 0 || i < n; i++ {
				// Each request meets two of the faults.
				for j := range 2 {
					f := faults[(2*i+j)%len(faults)]
					changed := smallContext(t, fmt.Sprintf("%d %d\n", i, j))
					want := wanted(t, changed)
					p.fail(i, (i+j)%2 == 0, f.do)
					r := newRunner(t)
					o := r.build(changed, append(tarball(t), "--cache-from", ref, "--cache-to", ref+",mode=max")...)
					n = max(n, min(p.seen(), 24))
					p.fail(-1, false, nil)
					if o.err != nil || o.digest != want {
						t.Errorf("request %d %s: %v, the image is %s, want %s\n%s", i, f.name, o.err, o.digest, want, o.text)
					}
					if j == 1 {
						continue
					}
					o = newRunner(t).build(changed, append(tarball(t), "--cache-from", ref)...)
					if o.err != nil || o.digest != want {
						t.Errorf("after request %d was %s: %v, the image is %s, want %s\n%s", i, f.name, o.err, o.digest, want, o.text)
					}
				}
			}
			if n < 6 {
				t.Errorf("a build makes %d requests: it does not use the cache", n)
			}
		})
	}
}

// TestServersHang has servers that answer nothing any more: from the first request
// on, when the first layer is asked for, and when something is written.
func TestServersHang(t *testing.T) {
	t.Parallel()
	hang := func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }
	var group sync.WaitGroup
	for name, serve := range servers {
		for _, from := range []string{"GET", "layer", "write"} {
			p, ref := serve(t)
			dir, changed := smallContext(t, "one\n"), smallContext(t, "two\n")
			newRunner(t).must(dir, "--cache-to", ref+",mode=max")
			want := wanted(t, changed)
			gets := 0
			p.failWhen(func(r *http.Request) bool {
				switch {
				case r.Method == http.MethodPost && strings.Contains(r.URL.Path, "GetCacheEntry"), r.Method == http.MethodGet:
					gets++
					return from == "GET" || from == "layer" && gets > 2
				case r.Method == http.MethodHead:
					return from == "GET"
				}
				return true
			}, hang)
			runner, out := newRunner(t), tarball(t)
			group.Go(func() {
				o := runner.build(changed, append(out, "--cache-from", ref, "--cache-to", ref+",mode=max")...)
				if o.err != nil || o.digest != want {
					t.Errorf("%s hangs at %s: %v, the image is %s, want %s\n%s", name, from, o.err, o.digest, want, o.text)
				}
				if !strings.Contains(o.text, "the cache was not exported") && !strings.Contains(o.text, "is not used") {
					t.Errorf("%s hangs at %s: nothing is said of it\n%s", name, from, o.text)
				}
			})
		}
	}
	group.Wait()
}
