package fault

import (
	"net/http"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/registry/registrytest"
)

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }

func isManifest(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }

// TestRegistryThatFails builds on a registry that does not do as it should. The
// same state folder serves as soon as the registry does.
func TestRegistryThatFails(t *testing.T) {
	login := http.Header{"Www-Authenticate": {`Basic realm="a test"`}}
	for _, tt := range []struct {
		name  string
		fault func(r *http.Request, n int) registrytest.Fault
		want  []string // patterns of standard error; none where the build gets over it
	}{
		{"errors of its own", func(*http.Request, int) registrytest.Fault {
			return registrytest.Fault{Status: http.StatusServiceUnavailable}
		}, []string{"has an error of its own", "503"}},
		{"wants a login", func(*http.Request, int) registrytest.Fault {
			return registrytest.Fault{Status: http.StatusUnauthorized, Header: login}
		}, []string{"401", "docker login 127"}},
		{"wants another login", func(*http.Request, int) registrytest.Fault {
			return registrytest.Fault{Status: http.StatusForbidden}
		}, []string{"403", "docker login 127"}},
		{"wants a login for layers", func(r *http.Request, _ int) registrytest.Fault {
			if isBlob(r) {
				return registrytest.Fault{Status: http.StatusForbidden}
			}
			return registrytest.Fault{}
		}, []string{"403", "docker login 127"}},
		{"lost its layers", func(r *http.Request, _ int) registrytest.Fault {
			if isBlob(r) {
				return registrytest.Fault{Status: http.StatusNotFound}
			}
			return registrytest.Fault{}
		}, []string{"404", "sha256:"}},
		{"sends wrong manifests", func(r *http.Request, _ int) registrytest.Fault {
			return registrytest.Fault{Corrupt: isManifest(r), After: 20}
		}, []string{"digest|manifest"}},
		{"sends wrong layers", func(r *http.Request, _ int) registrytest.Fault {
			return registrytest.Fault{Corrupt: isBlob(r), After: 30}
		}, []string{"sent bytes with the digest sha256:[0-9a-f]{64} instead of sha256:"}},
		{"cuts every connection", func(r *http.Request, _ int) registrytest.Fault {
			return registrytest.Fault{Cut: true}
		}, []string{"EOF|reset|does not answer"}},
		{"cuts every layer in the middle", func(r *http.Request, _ int) registrytest.Fault {
			return registrytest.Fault{Cut: isBlob(r), After: 50}
		}, []string{"sha256:"}},
		{"cuts connections now and then", func(r *http.Request, n int) registrytest.Fault {
			return registrytest.Fault{Cut: n%2 == 0, After: 200_000}
		}, nil},
		{"fails once", func(r *http.Request, n int) registrytest.Fault {
			if n == 1 {
				return registrytest.Fault{Status: http.StatusBadGateway}
			}
			return registrytest.Fault{}
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			proxy := registrytest.NewProxy(t, registry.Addr)
			state := t.TempDir()
			dir := dockerfile(t, "FROM %s/busybox\nRUN echo step\n", proxy.Host)
			proxy.Break(tt.fault)
			got := run(t, state, nil, "build", "--progress", "plain", dir)
			if tt.want == nil {
				got.worked(t)
			} else {
				got.failed(t, 1, append(tt.want, `Dockerfile:[12]\b`, proxy.Host)...)
			}
			clean(t, state)
			proxy.Break(nil)
			run(t, state, nil, "build", "--progress", "plain", dir).worked(t)
		})
	}
}

// TestRegistryThatIsDown builds on an address where nothing listens, and on one
// with a name that nobody has.
func TestRegistryThatIsDown(t *testing.T) {
	state := t.TempDir()
	for _, tt := range []struct{ image, want string }{
		{"127.0.0.1:1/image", "the registry 127.0.0.1:1 does not answer.*check that it runs"},
		{"registry.invalid/image", "the registry registry.invalid does not answer.*check that it runs"},
	} {
		run(t, state, nil, "build", dockerfile(t, "FROM %s\n", tt.image)).failed(t, 1, tt.want, "Dockerfile:1")
	}
	run(t, state, nil, "build", dockerfile(t, "FROM %s/busybox\n", registry.Addr)).worked(t)
}

// TestPushThatFails pushes to a registry that does not take it.
func TestPushThatFails(t *testing.T) {
	state := t.TempDir()
	proxy := registrytest.NewProxy(t, registry.Addr)
	dir := dockerfile(t, "FROM %s/busybox\nRUN echo pushed > /pushed\n", registry.Addr)
	push := []string{"build", "-t", proxy.Host + "/pushed:1", "--push", dir}
	proxy.Break(func(r *http.Request, _ int) registrytest.Fault {
		if r.Method == http.MethodPut || r.Method == http.MethodPost {
			return registrytest.Fault{Status: http.StatusForbidden}
		}
		return registrytest.Fault{}
	})
	run(t, state, nil, push...).failed(t, 1, "docker login 127", "pushed")
	proxy.Break(func(r *http.Request, _ int) registrytest.Fault {
		if r.Method == http.MethodPut && isManifest(r) {
			return registrytest.Fault{Status: http.StatusInsufficientStorage}
		}
		return registrytest.Fault{}
	})
	run(t, state, nil, push...).failed(t, 1, "pushed", "507")
	clean(t, state)
	proxy.Break(nil)
	run(t, state, nil, push...).worked(t)
}
