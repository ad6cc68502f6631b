package cache

import (
	"fmt"
	"io"
	"maps"
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

// hang answers nothing. It takes the body: the end of a connection whose body nobody
// reads shows nowhere.
func hang(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
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

// backend is a server of caches, and how a cache of a name on it is reached at addr.
type backend struct {
	addr string
	ref  func(addr, name string) string
}

// backends start servers.
var backends = map[string]func(t *testing.T) backend{
	"registry": func(t *testing.T) backend {
		return backend{registry(t).Addr, func(addr, name string) string { return "type=registry,ref=" + addr + "/" + name }}
	},
	"http": func(t *testing.T) backend {
		return backend{bazelServer(t).Listener.Addr().String(), func(addr, name string) string {
			return "type=http,url=http://ci:hidden@" + addr + "/team,name=" + name
		}}
	},
	"s3": func(t *testing.T) backend {
		s := s3Server(t)
		// Each name has blobs of its own, or there would be nothing to write.
		return backend{s.Addr, func(addr, name string) string { return s.Attrs(addr) + ",name=" + name + ",prefix=" + name + "/" }}
	},
	"azblob": func(t *testing.T) backend {
		// Each name has blobs of its own, as above.
		return backend{startAzure(t).Listener.Addr().String(), func(addr, name string) string { return azureRef(addr, "faults", name) }}
	},
	"gha": func(t *testing.T) backend {
		return backend{startActions(t).Listener.Addr().String(), func(addr, name string) string {
			return "type=gha,url_v2=http://" + addr + ",token=" + actionsToken("main") + ",scope=" + name
		}}
	},
}

// TestServersFail has each request of a build fail in turn that imports a cache and
// exports to another: that one alone, or it and all that follow. The build is to
// succeed with the right image.
func TestServersFail(t *testing.T) {
	t.Parallel()
	dir, changed := smallContext(t, "one\n"), smallContext(t, "two\n")
	want := wanted(t, changed)
	for k, name := range slices.Sorted(maps.Keys(backends)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := backends[name](t)
			p := newProxy(t, b.addr)
			newRunner(t).must(dir, "--cache-to", b.ref(p.addr, "warm")+",mode=max")
			n := 1
			for i := 0; i < n; i++ {
				// Each server meets the faults at other requests than the others do.
				f, on := faults[(i+2*k)%len(faults)], (i+k)%2 == 0
				p.fail(i, on, f.do)
				to := b.ref(p.addr, fmt.Sprintf("to%d", i))
				o := newRunner(t).build(changed, append(tarball(t), "--cache-from", b.ref(p.addr, "warm"), "--cache-to", to+",mode=max")...)
				n = max(n, min(p.seen(), 24))
				p.fail(-1, false, nil)
				if o.err != nil || o.digest != want {
					t.Errorf("request %d %s: %v, the image is %s, want %s\n%s", i, f.name, o.err, o.digest, want, o.text)
				}
				if i%6 != 0 {
					continue
				}
				// What it left there spoils no other build.
				o = newRunner(t).build(changed, append(tarball(t), "--cache-from", to)...)
				if o.err != nil || o.digest != want {
					t.Errorf("after request %d was %s: %v, the image is %s, want %s\n%s", i, f.name, o.err, o.digest, want, o.text)
				}
			}
			if n < 8 {
				t.Errorf("a build makes %d requests: it does not use the cache", n)
			}
		})
	}
}

// TestServersHang has servers that answer nothing any more: from the first request
// on, when the first layer is asked for, and when something is written.
func TestServersHang(t *testing.T) {
	t.Parallel()
	dir, changed := smallContext(t, "one\n"), smallContext(t, "two\n")
	want := wanted(t, changed)
	var group sync.WaitGroup
	for name, start := range backends {
		b := start(t)
		newRunner(t).must(dir, "--cache-to", b.ref(b.addr, "warm")+",mode=max")
		for _, from := range []string{"start", "layer", "write"} {
			p, gets := newProxy(t, b.addr), 0
			p.failWhen(func(r *http.Request) bool {
				if r.Method == http.MethodGet || r.Method == http.MethodHead || strings.Contains(r.URL.Path, "GetCacheEntry") {
					gets++
					return from == "start" || from == "layer" && gets > 3
				}
				return true
			}, hang)
			flags := append(tarball(t), "--cache-from", b.ref(p.addr, "warm"), "--cache-to", b.ref(p.addr, "to-"+from)+",mode=max")
			runner := newRunner(t)
			group.Go(func() {
				o := runner.build(changed, flags...)
				if o.err != nil || o.digest != want {
					t.Errorf("%s hangs at %s: %v, the image is %s, want %s\n%s", name, from, o.err, o.digest, want, o.text)
				}
				if !strings.Contains(o.text, "the cache was not exported") {
					t.Errorf("%s hangs at %s: nothing is said of it\n%s", name, from, o.text)
				}
			})
		}
	}
	group.Wait()
}

// TestInterrupted ends a build whose cache stands still while it is written. Nothing
// is harmed: what was built is there, and so is what the cache held.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	b := backends["http"](t)
	p := newProxy(t, b.addr)
	ref := b.ref(p.addr, "app")
	newRunner(t).must(smallContext(t, "one\n"), "--cache-to", ref+",mode=max")
	stuck := make(chan struct{}, 100)
	p.failWhen(func(r *http.Request) bool { return r.Method == http.MethodPut }, func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		stuck <- struct{}{}
		hang(w, r, pass)
	})
	r := newRunner(t)
	changed := smallContext(t, "two\n")
	cmd := r.command(changed, "--cache-from", ref, "--cache-to", ref+",mode=max")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-stuck
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Errorf("a build that was interrupted succeeded\n%s", out.String())
	}
	p.failWhen(func(*http.Request) bool { return false }, nil)
	o := newRunner(t).must(changed, append(tarball(t), "--cache-from", ref)...)
	o.check(t, []string{"app"}, wanted(t, changed))
	r.must(changed, append(tarball(t), "--cache-from", ref)...)
}
