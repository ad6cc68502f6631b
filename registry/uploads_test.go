package registry_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/registry/registrytest"
)

// uploaded counts the requests that ended uploads in a proxy's log.
func uploaded(p *registrytest.Proxy) (n int) {
	for _, line := range p.Log() {
		if strings.HasPrefix(line, "PUT ") {
			n++
		}
	}
	return n
}

// TestUploadsAreShared pushes a blob to two repositories of a registry, by two
// clients, at the same time and one after the other: the bytes go there once.
func TestUploadsAreShared(t *testing.T) {
	reg := registrytest.Start(t, "")
	p := registrytest.NewProxy(t, reg.Host)
	uploads := new(registry.Uploads)
	images := &registry.Client{Limits: patient, Uploads: uploads}
	caches := &registry.Client{Limits: patient, Uploads: uploads}
	data := noise(1 << 20)
	d := describe(ociLayer, data)
	ctx := t.Context()

	// The first is held until the second has asked whether the blob is there.
	asked := make(chan struct{})
	p.Break(func(r *http.Request, _ int) registrytest.Fault {
		if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/second/") {
			close(asked)
		}
		return registrytest.Fault{}
	})
	begun := make(chan struct{})
	var begin sync.Once
	var group sync.WaitGroup
	group.Go(func() {
		pushed, err := caches.Push(ctx, nil, p.Host+"/first:1", d, nil, func(context.Context) (io.ReadCloser, error) {
			begin.Do(func() { close(begun) })
			<-asked
			return content(data)(ctx)
		})
		if err != nil || !pushed {
			t.Errorf("the first push: pushed %v, %v", pushed, err)
		}
	})
	<-begun
	if pushed, err := images.Push(ctx, nil, p.Host+"/second:1", d, nil, content(data)); err != nil || pushed {
		t.Errorf("the push at the same time: pushed %v, %v", pushed, err)
	}
	group.Wait()
	if pushed, err := images.Push(ctx, nil, p.Host+"/third:1", d, nil, content(data)); err != nil || pushed {
		t.Errorf("the push afterwards: pushed %v, %v", pushed, err)
	}
	if n := uploaded(p); n != 1 {
		t.Errorf("the blob was sent %d times:\n%s", n, strings.Join(p.Log(), "\n"))
	}
	for _, repo := range []string{"first", "second", "third"} {
		if r, err := images.Fetch(ctx, nil, p.Host+"/"+repo, d); err != nil {
			t.Errorf("%s: %v", repo, err)
		} else {
			r.Close()
		}
	}
}

// TestUploadsThatFail pushes beside an upload that fails, one that never ends, and
// one whose repository may not be mounted from.
func TestUploadsThatFail(t *testing.T) {
	reg := registrytest.Start(t, "")
	p := registrytest.NewProxy(t, reg.Host)
	ctx := t.Context()
	for _, row := range []struct {
		name  string
		fault func(r *http.Request) registrytest.Fault
		ends  bool // the first push, by itself
	}{
		{"refused", func(r *http.Request) registrytest.Fault {
			if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/slow") {
				return registrytest.Fault{Status: http.StatusForbidden}
			}
			return registrytest.Fault{}
		}, true},
		{"hangs", func(r *http.Request) registrytest.Fault {
			if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/slow") {
				return registrytest.Fault{Hang: true}
			}
			return registrytest.Fault{}
		}, false},
		{"no mounting", func(r *http.Request) registrytest.Fault {
			if r.URL.Query().Has("mount") {
				return registrytest.Fault{Status: http.StatusForbidden}
			}
			return registrytest.Fault{}
		}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.Break(func(r *http.Request, _ int) registrytest.Fault { return row.fault(r) })
			c := &registry.Client{Limits: patient, Uploads: new(registry.Uploads)}
			data := append(noise(1<<20), row.name...)
			d := describe(ociLayer, data)
			first, cancel := context.WithCancel(ctx)
			begun := make(chan struct{})
			var begin sync.Once
			var group sync.WaitGroup
			group.Go(func() {
				_, _ = c.Push(first, nil, p.Host+"/slow-"+row.name[:2]+":1", d, nil, func(ctx context.Context) (io.ReadCloser, error) {
					begin.Do(func() { close(begun) })
					return content(data)(ctx)
				})
			})
			<-begun
			if pushed, err := c.Push(ctx, nil, p.Host+"/other:1", d, nil, content(data)); err != nil || !pushed {
				t.Errorf("pushed %v, %v", pushed, err)
			}
			if !row.ends {
				cancel()
			}
			group.Wait()
			cancel()
			if row.ends && !slices.ContainsFunc(p.Log(), func(l string) bool { return strings.HasPrefix(l, "PUT /v2/other/") }) {
				t.Errorf("the blob was not sent:\n%s", strings.Join(p.Log(), "\n"))
			}
		})
	}
}

// TestPushNew pushes blobs that are new, known to another repository, and there
// already: the upload that was begun for the last is ended.
func TestPushNew(t *testing.T) {
	reg := registrytest.Start(t, "")
	p := registrytest.NewProxy(t, reg.Host)
	c := &registry.Client{Limits: patient, Uploads: new(registry.Uploads)}
	data := noise(1 << 20)
	d := describe(ociLayer, data)
	methods := func() (out []string) {
		for _, line := range p.Log() {
			method, _, _ := strings.Cut(line, " ")
			out = append(out, method)
		}
		slices.Sort(out)
		return out
	}
	for _, row := range []struct {
		name, repo string
		client     *registry.Client
		fault      func(r *http.Request, n int) registrytest.Fault
		pushed     bool
		want       []string
	}{
		{"new", "/first", c, nil, true, []string{"HEAD", "POST", "PUT"}},
		{"sent to another repository", "/second", c, nil, false, []string{"HEAD", "POST"}},
		{"there", "/first", &registry.Client{Limits: patient}, nil, false, []string{"DELETE", "HEAD", "POST"}},
		{"there, and no upload can be begun", "/first", &registry.Client{Limits: patient}, func(r *http.Request, _ int) registrytest.Fault {
			if r.Method == http.MethodPost {
				return registrytest.Fault{Status: http.StatusForbidden}
			}
			return registrytest.Fault{}
		}, false, []string{"HEAD", "POST"}},
		{"no upload can be begun at first", "/third", &registry.Client{Limits: patient}, func(r *http.Request, n int) registrytest.Fault {
			if r.Method == http.MethodPost && n < 2 {
				return registrytest.Fault{Status: http.StatusForbidden}
			}
			return registrytest.Fault{}
		}, true, []string{"HEAD", "POST", "POST", "PUT"}},
	} {
		p.Break(row.fault)
		pushed, err := row.client.PushNew(t.Context(), nil, p.Host+row.repo, d, content(data))
		if err != nil || pushed != row.pushed {
			t.Errorf("%s: pushed %v, %v", row.name, pushed, err)
		}
		if got := methods(); !slices.Equal(got, row.want) {
			t.Errorf("%s: the requests are %v, want %v", row.name, got, row.want)
		}
		if r, err := c.Fetch(t.Context(), nil, p.Host+row.repo, d); err != nil {
			t.Errorf("%s: %v", row.name, err)
		} else {
			r.Close()
		}
	}
	p.Break(func(*http.Request, int) registrytest.Fault { return registrytest.Fault{Status: http.StatusForbidden} })
	if _, err := c.PushNew(t.Context(), nil, p.Host+"/denied", describe(ociLayer, data[1:]), content(data[1:])); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("where all is denied: %v", err)
	}
}
