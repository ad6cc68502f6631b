package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/registry/registrytest"
)

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// quick are limits with which failures take no time, patient those of tests in
// which nothing hangs: a busy machine must not look like a registry that does.
var (
	quick   = registry.Limits{Attempts: 3, Backoff: time.Millisecond, Stall: 500 * time.Millisecond, Header: 5 * time.Second}
	patient = registry.Limits{Attempts: 3, Backoff: time.Millisecond}
)

func describe(mediaType string, data []byte) blob.Descriptor {
	return blob.Descriptor{MediaType: mediaType, Digest: sha256.Sum256(data), Size: int64(len(data))}
}

func content(data []byte) registry.Content {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// push puts an image of one layer into host/app:1 and gives its parts.
func push(t *testing.T, c *registry.Client, host string, layer []byte) (ref string, manifest, top blob.Descriptor) {
	t.Helper()
	ctx := t.Context()
	ref = host + "/app:1"
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	cd := describe("application/vnd.oci.image.config.v1+json", config)
	top = describe(ociLayer, layer)
	for _, b := range []struct {
		d    blob.Descriptor
		data []byte
	}{{cd, config}, {top, layer}} {
		pushed, err := c.Push(ctx, nil, ref, b.d, nil, content(b.data))
		if err != nil {
			t.Fatal(err)
		}
		if !pushed {
			t.Errorf("the first push of %s sent nothing", b.d.Digest)
		}
		if pushed, err = c.Push(ctx, nil, ref, b.d, nil, content(b.data)); err != nil || pushed {
			t.Errorf("the second push of %s: pushed %v, error %v", b.d.Digest, pushed, err)
		}
	}
	data := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ociManifest, cd.MediaType, cd.Digest, cd.Size, top.MediaType, top.Digest, top.Size)
	manifest = describe(ociManifest, data)
	if err := c.PushManifest(ctx, nil, ref, manifest, data); err != nil {
		t.Fatal(err)
	}
	return ref, manifest, top
}

func TestPushAndFetch(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	reg := registrytest.Start(t, "")
	c := &registry.Client{Limits: patient}
	layer := noise(3 << 20)
	ref, manifest, top := push(t, c, reg.Host, layer)
	ctx := t.Context()

	got, err := c.Resolve(ctx, nil, ref)
	if err != nil || got.Digest != manifest.Digest || got.Size != manifest.Size || got.MediaType != manifest.MediaType {
		t.Errorf("Resolve gave %+v, %v; want %+v", got, err, manifest)
	}
	byDigest := reg.Host + "/app@" + manifest.Digest.String()
	if got, err = c.Resolve(ctx, nil, byDigest); err != nil || got.Digest != manifest.Digest {
		t.Errorf("Resolve by digest gave %+v, %v", got, err)
	}
	d, data, err := c.Manifest(ctx, nil, ref)
	if err != nil || d.Digest != manifest.Digest || blob.Digest(sha256.Sum256(data)) != manifest.Digest {
		t.Errorf("Manifest gave %+v, %v", d, err)
	}
	for _, d := range []blob.Descriptor{manifest, top} {
		r, err := c.Fetch(ctx, nil, ref, d)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || blob.Digest(sha256.Sum256(data)) != d.Digest {
			t.Errorf("fetching %s gave %d bytes, %v", d.Digest, len(data), err)
		}
		r.Close()
	}
	r, err := c.FetchFrom(ctx, nil, ref, top, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); err != nil || !bytes.Equal(data, layer[1<<20:]) {
		t.Errorf("FetchFrom gave %d bytes, %v", len(data), err)
	}
	pushed, err := c.Push(ctx, nil, reg.Host+"/other:1", top, []string{reg.Host + "/app"}, func(context.Context) (io.ReadCloser, error) {
		return nil, errors.New("the content was opened though it could be mounted")
	})
	if err != nil || pushed {
		t.Errorf("mounting: pushed %v, %v", pushed, err)
	}
}

// fault is what goes wrong once, or every time, and what comes of the latter.
var faults = []struct {
	name  string
	fault registrytest.Fault
	want  error  // when it happens every time
	says  string // part of that error
}{
	{"401", registrytest.Fault{Status: 401}, registry.ErrDenied, "docker login"},
	{"403", registrytest.Fault{Status: 403}, registry.ErrDenied, "docker login"},
	{"404", registrytest.Fault{Status: 404}, registry.ErrNotFound, "does not have"},
	{"429", registrytest.Fault{Status: 429, Header: http.Header{"Retry-After": {"0"}}}, registry.ErrDown, "too often"},
	{"500", registrytest.Fault{Status: 500}, registry.ErrDown, "error of its own"},
	{"503", registrytest.Fault{Status: 503}, registry.ErrDown, "error of its own"},
	{"cut", registrytest.Fault{Cut: true}, registry.ErrDown, ""},
	{"cut at 100,000", registrytest.Fault{Cut: true, After: 100_000}, registry.ErrDown, "broke off"},
	{"hang", registrytest.Fault{Hang: true}, registry.ErrDown, ""},
	{"hang at 100,000", registrytest.Fault{Hang: true, After: 100_000}, registry.ErrDown, "broke off"},
	{"corrupt", registrytest.Fault{Corrupt: true, After: 100}, registry.ErrCorrupt, "digest"},
}

func TestFaultsAtEveryRequest(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	reg := registrytest.Start(t, "")
	ref, manifest, top := push(t, &registry.Client{Limits: patient}, reg.Host, noise(1<<20))
	_ = ref
	proxy := registrytest.NewProxy(t, reg.Host)
	ref = proxy.Host + "/app:1"
	steps := []struct {
		name string
		do   func(c *registry.Client) error
	}{
		{"Resolve", func(c *registry.Client) error { _, err := c.Resolve(t.Context(), nil, ref); return err }},
		{"Manifest", func(c *registry.Client) error { _, _, err := c.Manifest(t.Context(), nil, ref); return err }},
		{"FetchManifest", func(c *registry.Client) error { return fetch(t.Context(), c, ref, manifest) }},
		{"FetchBlob", func(c *registry.Client) error { return fetch(t.Context(), c, ref, top) }},
	}
	for _, step := range steps {
		for _, f := range faults {
			if step.name == "Resolve" && f.fault.Status == 0 || step.name != "FetchBlob" && f.fault.After > 1000 {
				continue // there is no body, or not so much of it
			}
			passes := f.want == registry.ErrDown
			limits := quick
			if f.fault.Hang {
				limits.Header = time.Second // is waited for
			}
			t.Run(step.name+"/"+f.name, func(t *testing.T) {
				proxy.Break(func(_ *http.Request, n int) registrytest.Fault {
					if n == 0 {
						return f.fault
					}
					return registrytest.Fault{}
				})
				if err := step.do(&registry.Client{Limits: limits}); (err == nil) != passes {
					t.Errorf("once: got %v, and success is %v", err, passes)
				}
				proxy.Break(func(*http.Request, int) registrytest.Fault { return f.fault })
				err := step.do(&registry.Client{Limits: limits})
				if f.fault.After > 0 && f.want == registry.ErrDown {
					// Each connection brings 100,000 bytes, which is progress.
					if err != nil {
						t.Errorf("every time: got %v, and each time some came", err)
					}
					return
				}
				if !errors.Is(err, f.want) || !strings.Contains(err.Error(), f.says) {
					t.Errorf("every time: got %v, want %v saying %q", err, f.want, f.says)
				}
				if err != nil && !strings.Contains(err.Error(), proxy.Host) {
					t.Errorf("the error does not name the host: %v", err)
				}
			})
		}
	}
}

func fetch(ctx context.Context, c *registry.Client, ref string, d blob.Descriptor) error {
	r, err := c.Fetch(ctx, nil, ref, d)
	if err != nil {
		return err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err == nil && blob.Digest(sha256.Sum256(data)) != d.Digest {
		return fmt.Errorf("wrong bytes without an error")
	}
	return err
}

func TestResumeAsksForTheRest(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	reg := registrytest.Start(t, "")
	_, _, top := push(t, &registry.Client{Limits: patient}, reg.Host, noise(1<<20))
	proxy := registrytest.NewProxy(t, reg.Host)
	var ranges []string
	proxy.Break(func(r *http.Request, n int) registrytest.Fault {
		ranges = append(ranges, r.Header.Get("Range"))
		return registrytest.Fault{Cut: n < 2, After: 300_000}
	})
	if err := fetch(t.Context(), &registry.Client{Limits: patient}, proxy.Host+"/app", top); err != nil {
		t.Fatal(err)
	}
	if want := []string{"", "bytes=300000-", "bytes=600000-"}; fmt.Sprint(ranges) != fmt.Sprint(want) {
		t.Errorf("got the ranges %q, want %q", ranges, want)
	}
}

func TestGivesUpWithoutProgress(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	reg := registrytest.Start(t, "")
	_, _, top := push(t, &registry.Client{Limits: patient}, reg.Host, noise(1<<20))
	proxy := registrytest.NewProxy(t, reg.Host)
	for _, f := range []registrytest.Fault{{Cut: true, After: 1000}, {Hang: true, After: 1000}} {
		proxy.Break(func(*http.Request, int) registrytest.Fault { return f })
		err := fetch(t.Context(), &registry.Client{Limits: quick}, proxy.Host+"/app", top)
		if !errors.Is(err, registry.ErrDown) || !strings.Contains(err.Error(), "3 times in a row") {
			t.Errorf("%+v: got %v", f, err)
		}
	}
}

func TestPushFaults(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	reg := registrytest.Start(t, "")
	proxy := registrytest.NewProxy(t, reg.Host)
	data := noise(200_000)
	d := describe(ociLayer, data)
	// The requests of a push: HEAD, POST, PUT. Each of them fails once.
	for n := range 3 {
		for _, f := range []registrytest.Fault{{Status: 500}, {Status: 429}, {Status: 503}} {
			repo := fmt.Sprintf("%s/push%d-%d", proxy.Host, n, f.Status)
			proxy.Break(func(_ *http.Request, i int) registrytest.Fault {
				if i == n {
					return f
				}
				return registrytest.Fault{}
			})
			if _, err := (&registry.Client{Limits: patient}).Push(t.Context(), nil, repo, d, nil, content(data)); err != nil {
				t.Errorf("request %d fails once with %d: %v", n, f.Status, err)
			}
			if err := fetch(t.Context(), &registry.Client{Limits: patient}, repo, d); err != nil {
				t.Errorf("after request %d failed once with %d: %v", n, f.Status, err)
			}
		}
	}
	// The answer is lost every time: what arrived is not sent again.
	proxy.Break(func(r *http.Request, _ int) registrytest.Fault {
		return registrytest.Fault{Lost: r.Method == http.MethodPut}
	})
	if _, err := (&registry.Client{Limits: patient}).Push(t.Context(), nil, proxy.Host+"/answerless", d, nil, content(data)); err != nil {
		t.Errorf("pushing without answers: %v", err)
	}
	sent := slices.DeleteFunc(proxy.Log(), func(line string) bool { return !strings.HasPrefix(line, "PUT ") })
	if len(sent) != 1 {
		t.Errorf("without answers the bytes were sent by %q", sent)
	}
	// A registry takes its time to put a large blob in its place.
	proxy.Break(func(r *http.Request, _ int) registrytest.Fault {
		if r.Method == http.MethodPut {
			return registrytest.Fault{Late: 2 * time.Second}
		}
		return registrytest.Fault{}
	})
	large := noise(80 << 20)
	limits := patient
	limits.Header = time.Second
	if _, err := (&registry.Client{Limits: limits}).Push(t.Context(), nil, proxy.Host+"/late", describe(ociLayer, large), nil, content(large)); err != nil {
		t.Errorf("pushing what is answered late: %v", err)
	}
	if sent := slices.DeleteFunc(proxy.Log(), func(line string) bool { return !strings.HasPrefix(line, "PUT ") }); len(sent) != 1 {
		t.Errorf("what is answered late was sent by %q", sent)
	}
	// A server that takes no large requests gets pieces.
	proxy.Break(func(r *http.Request, _ int) registrytest.Fault {
		if r.Method == http.MethodPut && r.ContentLength > 0 {
			return registrytest.Fault{Status: 413}
		}
		return registrytest.Fault{}
	})
	big := noise(33 << 20)
	bd := describe(ociLayer, big)
	if _, err := (&registry.Client{Limits: patient}).Push(t.Context(), nil, proxy.Host+"/pieces", bd, nil, content(big)); err != nil {
		t.Fatalf("pushing in pieces: %v", err)
	}
	if err := fetch(t.Context(), &registry.Client{Limits: patient}, proxy.Host+"/pieces", bd); err != nil {
		t.Errorf("fetching what was pushed in pieces: %v", err)
	}
	// Reading the content fails: no fault of the registry's, and not tried again.
	proxy.Break(nil)
	lost := errors.New("the layer is lost")
	opened := 0
	_, err := (&registry.Client{Limits: patient}).Push(t.Context(), nil, proxy.Host+"/lost", d, nil, func(context.Context) (io.ReadCloser, error) {
		opened++
		return io.NopCloser(io.MultiReader(bytes.NewReader(data[:1000]), &failing{lost})), nil
	})
	if !errors.Is(err, lost) || opened != 1 {
		t.Errorf("got %v after %d openings, want the content's own error after one", err, opened)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestRegistryThatIsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	_, err = (&registry.Client{Limits: quick}).Resolve(t.Context(), registry.Anonymous{}, host+"/app:1")
	if !errors.Is(err, registry.ErrDown) || !strings.Contains(err.Error(), host) || !strings.Contains(err.Error(), "check that it runs") {
		t.Errorf("got %v", err)
	}
}

func TestMirrors(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	reg := registrytest.Start(t, "")
	ref, manifest, top := push(t, &registry.Client{Limits: patient}, reg.Host, noise(1<<20))
	mirror := registrytest.NewProxy(t, reg.Host)
	c := &registry.Client{Limits: quick, Hosts: map[string]registry.HostConfig{reg.Host: {Mirrors: []string{mirror.Host}}}}
	for _, f := range []struct {
		name  string
		fault registrytest.Fault
	}{
		{"works", registrytest.Fault{}},
		{"has nothing", registrytest.Fault{Status: 404}},
		{"is broken", registrytest.Fault{Status: 502}},
		{"cuts", registrytest.Fault{Cut: true, After: 1000}},
		{"hangs", registrytest.Fault{Hang: true}},
	} {
		mirror.Break(func(*http.Request, int) registrytest.Fault { return f.fault })
		if d, err := c.Resolve(t.Context(), nil, ref); err != nil || d.Digest != manifest.Digest {
			t.Errorf("a mirror that %s: resolving: %v", f.name, err)
		}
		if err := fetch(t.Context(), c, ref, top); err != nil {
			t.Errorf("a mirror that %s: fetching: %v", f.name, err)
		}
		if len(mirror.Log()) < 2 {
			t.Errorf("a mirror that %s was not asked: %v", f.name, mirror.Log())
		}
		for _, r := range mirror.Log() {
			if !strings.Contains(r, "ns="+reg.Host) {
				t.Errorf("the mirror is not told for whom it stands: %s", r)
			}
		}
	}
	mirror.Break(func(*http.Request, int) registrytest.Fault { return registrytest.Fault{Status: 500} })
	_, err := c.Resolve(t.Context(), nil, reg.Host+"/nothing:1")
	if !errors.Is(err, registry.ErrNotFound) || !strings.Contains(err.Error(), mirror.Host) {
		t.Errorf("got %v, want not found, and a word about the mirror", err)
	}
}

func TestCancel(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	reg := registrytest.Start(t, "")
	_, _, top := push(t, &registry.Client{Limits: patient}, reg.Host, noise(1<<20))
	proxy := registrytest.NewProxy(t, reg.Host)
	proxy.Break(func(*http.Request, int) registrytest.Fault { return registrytest.Fault{Hang: true, After: 1000} })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	c := &registry.Client{} // with limits of half a minute
	began := time.Now()
	if err := fetch(ctx, c, proxy.Host+"/app", top); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s to cancel", took)
	}
}
