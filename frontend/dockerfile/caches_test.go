package dockerfile

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/kiln-build/kiln/frontend"
)

// cacheBridge notes the caches that a frontend names.
type cacheBridge struct {
	fakeBridge
	refs []string
}

func (b *cacheBridge) ReadCaches(_ context.Context, caches []frontend.Cache) error {
	for _, c := range caches {
		b.refs = append(b.refs, c.Type+":"+c.Attrs["ref"])
	}
	return nil
}

// TestCacheFrom names caches as the clients of old do.
func TestCacheFrom(t *testing.T) {
	folders := map[string]fstest.MapFS{"local://dockerfile": {"Dockerfile": {Data: []byte("FROM scratch\n")}}}
	b := &cacheBridge{fakeBridge: fakeBridge{folders: folders}}
	req := frontend.Request{Machine: amd64, Opts: opts("cache-from=r/a:1,r/b")}
	if _, err := New().Build(t.Context(), req, b); err != nil {
		t.Fatal(err)
	}
	if want := []string{"registry:r/a:1", "registry:r/b"}; !slices.Equal(b.refs, want) {
		t.Errorf("the engine reads %q, want %q", b.refs, want)
	}
	// An engine without caches must not be silent about it.
	_, err := New().Build(t.Context(), req, &fakeBridge{folders: folders})
	if err == nil || !strings.Contains(err.Error(), "cache-from") {
		t.Errorf("without caches: %v, want an error that names cache-from", err)
	}
}
