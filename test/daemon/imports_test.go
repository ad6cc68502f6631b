package daemon

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
)

// TestImportsOfOneCall has a build function name the cache that its call is to be
// answered from.
func TestImportsOfOneCall(t *testing.T) {
	c, _ := newClient(t)
	st := busybox().Run(llb.Shlex(`sh -c "head -c 16 /dev/urandom | sha256sum > /out/unique"`)).AddMount("/out", llb.Scratch())
	def := marshal(t, st)
	cache := map[string]string{"ref": shared.registry.Addr + "/imports/cache:main"}
	read := func(t *testing.T, imports ...gateway.CacheOptionsEntry) (text string, warnings []string, err error) {
		t.Helper()
		status := make(chan *client.SolveStatus)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for s := range status {
				for _, w := range s.Warnings {
					warnings = append(warnings, string(w.Short))
				}
			}
		}()
		_, err = c.Build(t.Context(), client.SolveOpt{}, "imports", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
			res, err := g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true, CacheImports: imports})
			if err != nil {
				return nil, err
			}
			ref, err := res.SingleRef()
			if err != nil {
				return nil, err
			}
			data, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "unique"})
			text = string(data)
			return res, err
		}, status)
		<-done
		return text, warnings, err
	}
	prune := func() {
		t.Helper()
		if err := c.Prune(t.Context(), nil, client.PruneAll); err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.Solve(t.Context(), def, client.SolveOpt{
		CacheExports: []client.CacheOptionsEntry{{Type: "registry", Attrs: cache}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want, _, err := read(t)
	if err != nil {
		t.Fatal(err)
	}
	prune()
	insecure := map[string]string{"ref": cache["ref"], "registry.insecure": "true"}
	if got, warnings, err := read(t, gateway.CacheOptionsEntry{Type: "registry", Attrs: insecure}); err != nil || got != want || len(warnings) > 0 {
		t.Errorf("got %q, %q, %v; want %q from the cache", got, warnings, err, want)
	}
	prune()
	// One that is not there is a warning, and what cannot be meant an error.
	gone := map[string]string{"ref": shared.registry.Addr + "/imports/none:main"}
	if got, warnings, err := read(t, gateway.CacheOptionsEntry{Type: "registry", Attrs: gone}); err != nil || got == want || len(warnings) != 1 {
		t.Errorf("without the cache: %q, %q, %v", got, warnings, err)
	}
	for _, c := range []struct {
		entry gateway.CacheOptionsEntry
		want  string
	}{
		{gateway.CacheOptionsEntry{Type: "tape"}, "unknown type"},
		// Files of the daemon's machine are nobody's to name.
		{gateway.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": cache["ref"], "verify": "/etc/passwd"}}, "verify"},
	} {
		if _, _, err := read(t, c.entry); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want an error that has %q", c.entry, err, c.want)
		}
	}
}

// TestImportsAreOfTheirBuild has a build that named no cache neither answered from
// another build's nor held up by it.
func TestImportsAreOfTheirBuild(t *testing.T) {
	c, _ := newClient(t)
	unique := func(name string) *llb.Definition {
		return marshal(t, busybox().Run(llb.Shlex(`sh -c "head -c 16 /dev/urandom | sha256sum > /out/`+name+`"`)).AddMount("/out", llb.Scratch()))
	}
	text := func(def *llb.Definition, name string, o client.SolveOpt) string {
		t.Helper()
		dir := t.TempDir()
		o.Exports = toFolder(dir)
		if _, err := c.Solve(t.Context(), def, o, nil); err != nil {
			t.Error(err)
			return ""
		}
		return read(t, filepath.Join(dir, name))
	}
	one, two := unique("one"), unique("two")
	var entries []gateway.CacheOptionsEntry
	was := map[string]string{}
	for name, def := range map[string]*llb.Definition{"one": one, "two": two} {
		attrs := map[string]string{"ref": shared.registry.Addr + "/imports/" + name}
		was[name] = text(def, name, client.SolveOpt{CacheExports: []client.CacheOptionsEntry{{Type: "registry", Attrs: attrs}}})
		entries = append(entries, gateway.CacheOptionsEntry{Type: "registry", Attrs: attrs})
	}
	if err := c.Prune(t.Context(), nil, client.PruneAll); err != nil {
		t.Fatal(err)
	}
	asked, given, release := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var asking, giving sync.Once
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asking.Do(func() { close(asked) })
		select {
		case <-release:
			w.WriteHeader(http.StatusNotFound)
		case <-r.Context().Done():
			giving.Do(func() { close(given) })
		}
	}))
	t.Cleanup(silent.Close)

	_, err := c.Build(t.Context(), client.SolveOpt{}, "imports", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		// The import is open from here on.
		if _, err := g.Solve(ctx, gateway.SolveRequest{Definition: marshal(t, busybox()).ToPB(), CacheImports: entries}); err != nil {
			return nil, err
		}
		if got := text(one, "one", client.SolveOpt{}); got == was["one"] {
			t.Error("a build that named no cache was answered from another build's")
		}
		res, err := g.Solve(ctx, gateway.SolveRequest{Definition: two.ToPB(), Evaluate: true})
		if err != nil {
			return nil, err
		}
		ref, err := res.SingleRef()
		if err != nil {
			return nil, err
		}
		data, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "two"})
		if string(data) != was["two"] {
			t.Errorf("the build that named the cache has %q, want %q", data, was["two"])
		}
		return res, err
	}, nil)
	if err != nil {
		t.Error(err)
	}

	waits := make(chan error, 1)
	go func() {
		_, err := c.Solve(t.Context(), unique("waiting"), client.SolveOpt{
			CacheImports: []client.CacheOptionsEntry{{Type: "http", Attrs: map[string]string{"url": silent.URL, "patience": "10m"}}},
		}, nil)
		waits <- err
	}()
	<-asked
	text(unique("waits-for-nobody"), "waits-for-nobody", client.SolveOpt{})
	select {
	case <-given:
		t.Error("a build that named no cache waited until another gave its cache up")
	default:
	}
	close(release)
	if err := <-waits; err != nil {
		t.Error(err)
	}
}
