package kiln

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
)

// standing is a cache whose server never answers.
type standing struct{}

func (standing) Manifest(ctx context.Context, _ blob.Digest) ([]byte, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func (standing) Blob(ctx context.Context, _ blob.Descriptor, _ int64) (io.ReadCloser, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// A build that is interrupted does not wait for a cache that a frontend named, by a call
// that has ended long ago.
func TestInterruptedWhileReadingACache(t *testing.T) {
	e, err := Open(t.Context(), Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	b := e.newBuild(nil)
	defer b.end()
	ctx, interrupt := context.WithCancel(t.Context())
	end := b.openCaches(ctx, nil)
	defer end()
	b.imports.mu.Lock()
	b.importCache(context.Background(), cacheSource{name: "standing", store: standing{}})
	i := b.imports.list[0]
	b.imports.mu.Unlock()
	interrupt()
	var miss *cache.MissError
	if _, err := i.Lookup(cache.Key{1}); !errors.As(err, &miss) {
		t.Errorf("got %v", err)
	}
}
