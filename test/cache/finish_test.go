package cache

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// committed is closed when somebody puts the manifest of the repository cache.
type committed struct {
	once sync.Once
	done chan struct{}
}

func newCommitted() *committed { return &committed{done: make(chan struct{})} }

// see looks at a request.
func (c *committed) see(r *http.Request) {
	if r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/v2/cache/manifests/") {
		c.once.Do(func() { close(c.done) })
	}
}

// then answers once the cache's manifest was put, or in the negative where it is not.
func (c *committed) then(answer func(http.ResponseWriter, *http.Request, http.Handler)) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		select {
		case <-c.done:
			answer(w, r, pass)
		case <-time.After(30 * time.Second):
			http.Error(w, "the cache was not written", http.StatusForbidden)
		}
	}
}

// TestCacheIsWrittenBesideAPush has a registry take an image's manifest only once the
// cache has its own: neither waits for the other.
func TestCacheIsWrittenBesideAPush(t *testing.T) {
	t.Parallel()
	r := registry(t)
	p := newProxy(t, r.Addr)
	c := newCommitted()
	p.failWhen(func(r *http.Request) bool {
		c.see(r)
		return r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/v2/app/manifests/")
	}, c.then(func(w http.ResponseWriter, r *http.Request, pass http.Handler) { pass.ServeHTTP(w, r) }))
	dir := context(t, "one\n")
	cache := "type=registry,ref=" + p.addr + "/cache:main"
	o := newRunner(t).must(dir, "--cache-to", cache+",mode=max", "-o", "type=registry,name="+p.addr+"/app:latest")
	newRunner(t).must(dir, "--cache-from", cache, "-o", "type=registry,name="+r.Addr+"/app:latest").check(t, nil, o.digest)
}

// TestLayerGoneAfterTheCacheWasWritten has a layer that only the cache holds go missing
// when the push wants it, and the cache has been written by then: the build is solved
// again, and writes the cache again.
func TestLayerGoneAfterTheCacheWasWritten(t *testing.T) {
	t.Parallel()
	r, far := registry(t), registry(t)
	p := newProxy(t, r.Addr)
	dir := t.TempDir()
	write := func(name, data string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Nothing reads the lower layer: with --link the upper one stands for itself.
	write("Dockerfile", "ARG BASE\nFROM $BASE\nRUN echo \"ran low\" && echo low > /low\nCOPY --link app.txt /app.txt\n")
	write("app.txt", "one\n")
	cache := "type=registry,ref=" + p.addr + "/cache:main"
	flags := []string{"--build-arg", "SOURCE_DATE_EPOCH=", "--cache-to", cache + ",mode=max"}
	newRunner(t).must(dir, flags...)

	write("app.txt", "two\n")
	var held ocispecs.Manifest
	document(t, r.Addr+"/v2/cache/manifests/main", &held)
	c := newCommitted()
	p.failWhen(func(r *http.Request) bool {
		c.see(r)
		_, digest, ok := strings.Cut(r.URL.Path, "/v2/cache/blobs/")
		return ok && r.Method == http.MethodGet && slices.ContainsFunc(held.Layers, func(d ocispecs.Descriptor) bool { return d.Digest.String() == digest })
	}, c.then(status(http.StatusNotFound)))
	o := newRunner(t).must(dir, append(flags, "--cache-from", cache, "-o", "type=registry,name="+far.Addr+"/app:latest")...)
	if want := []string{"low"}; !slices.Equal(o.ran, want) {
		t.Errorf("ran %q, want %q\n%s", o.ran, want, o.text)
	}
	p.failWhen(nil, nil)
	again := newRunner(t).must(dir, "--cache-from", cache)
	if len(again.ran) > 0 {
		t.Errorf("ran %q, and the cache was to have all\n%s", again.ran, again.text)
	}
}
