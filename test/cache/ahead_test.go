package cache

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// aheadDockerfile has a last stage whose layer a cache holds, and which nobody reads
// before the step of another stage has ended. That step asks the test whether it may.
const aheadDockerfile = `ARG BASE
FROM $BASE AS tools
RUN echo tools > /tools
FROM $BASE AS app
COPY app.txt /app.txt
ARG GATE
RUN --network=host wget -q -O /dev/null http://$GATE/ && cp /app.txt /out
FROM tools
COPY --from=app /out /out
`

// copiedDockerfile has a COPY onto a layer that a cache holds, before a process.
const copiedDockerfile = `ARG BASE
FROM $BASE AS tools
RUN echo tools > /tools
FROM $BASE AS app
RUN echo dependencies > /dependencies
COPY app.txt /app.txt
RUN cp /app.txt /out
FROM tools
COPY --from=app /out /out
`

// TestFetchedWhileACopyWaits has no layer come that the COPY waits for until that one is
// asked for too which the last stage will read.
func TestFetchedWhileACopyWaits(t *testing.T) {
	t.Parallel()
	r := registry(t)
	p := newProxy(t, r.Addr)
	dir := t.TempDir()
	write := func(name, data string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("Dockerfile", copiedDockerfile)
	write("app.txt", "one\n")
	newRunner(t).must(dir, "--cache-to", "type=registry,mode=max,ref="+r.Addr+"/cache:main")
	write("app.txt", "two\n")
	var held ocispecs.Manifest
	document(t, r.Addr+"/v2/cache/manifests/main", &held)
	const small = 64 << 10                                // the base is larger, which the layers ahead come after
	asked, both := map[string]bool{}, make(chan struct{}) // closed when those of both stages were asked for
	p.failWhen(func(r *http.Request) bool {
		_, digest, ok := strings.Cut(r.URL.Path, "/v2/cache/blobs/")
		ok = ok && r.Method == http.MethodGet && slices.ContainsFunc(held.Layers, func(d ocispecs.Descriptor) bool {
			return d.Digest.String() == digest && d.Size < small
		})
		if ok {
			if asked[digest] = true; len(asked) == 2 {
				close(both)
			}
		}
		return ok && len(asked) <= 2
	}, func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		select {
		case <-both:
			pass.ServeHTTP(w, r)
		case <-time.After(10 * time.Second):
			t.Error("no second layer was asked for")
			http.Error(w, "it was not asked for", http.StatusForbidden)
		}
	})
	newRunner(t).must(dir, "--cache-from", "type=registry,ref="+p.addr+"/cache:main")
}

// TestFetchedWhileAStepRuns has a step of the second runner that ends only when the layer
// is on its way that the step after it will read.
func TestFetchedWhileAStepRuns(t *testing.T) {
	t.Parallel()
	r := registry(t)
	p := newProxy(t, r.Addr)
	var (
		mu      sync.Mutex // guards what follows
		blobs   = map[string]bool{}
		fetched = make(chan struct{}) // closed when the index and a layer were asked for
	)
	p.fault = func(w http.ResponseWriter, r *http.Request, pass http.Handler) { pass.ServeHTTP(w, r) }
	p.when = func(r *http.Request) bool {
		if _, digest, ok := strings.Cut(r.URL.Path, "/cache/blobs/"); ok && r.Method == http.MethodGet {
			mu.Lock()
			defer mu.Unlock()
			if blobs[digest] = true; len(blobs) == 2 {
				close(fetched)
			}
		}
		return false
	}
	open := true
	gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if open {
			return
		}
		select {
		case <-fetched:
		case <-time.After(30 * time.Second):
			http.Error(w, "the layer was not asked for", http.StatusGatewayTimeout)
		}
	}))
	t.Cleanup(gate.Close)
	dir := t.TempDir()
	write := func(name, data string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("Dockerfile", aheadDockerfile)
	write("app.txt", "one\n")
	flags := []string{"--allow", "network.host", "--build-arg", "GATE=" + gate.Listener.Addr().String()}
	newRunner(t).must(dir, append(flags, "--cache-to", "type=registry,mode=max,ref="+r.Addr+"/cache")...)
	write("app.txt", "two\n")
	open = false
	newRunner(t).must(dir, append(flags, "--cache-from", "type=registry,ref="+p.addr+"/cache")...)
}
