package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
)

// TestLayerBreaksOff has a layer that cannot be read to its end, which costs the record
// that needs it and no other.
func TestLayerBreaksOff(t *testing.T) {
	targets := map[string]func() Target{
		"layout": func() Target { return NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{}) },
		"http": func() Target {
			h, err := NewHTTP(serveMemory(t), "main", 0)
			if err != nil {
				t.Fatal(err)
			}
			return h
		},
	}
	for what, row := range map[string]struct {
		cut    func(io.Reader) io.Reader
		reason string
	}{
		"with an error": {func(r io.Reader) io.Reader {
			return io.MultiReader(io.LimitReader(r, 10), iotest.ErrReader(errors.New("the disk fails")))
		}, "the disk fails"},
		"early": {func(r io.Reader) io.Reader { return io.LimitReader(r, 10) }, "bytes early"},
	} {
		for name, target := range targets {
			c, to := openCache(t), target()
			good := step(t, c, cache.ChainID{}, "good", nil)
			bad := step(t, c, good, "bad", nil)
			top, err := c.Chain(bad)
			if err != nil {
				t.Fatal(err)
			}
			var read atomic.Int64
			whole := forms(&read)
			o := ExportOptions{Forms: func(ctx context.Context, at cache.ChainID, l cache.Layer) (Form, error) {
				f, err := whole(ctx, at, l)
				if open := f.Open; l.ID == top.Layer {
					f.Open = func(ctx context.Context) (io.ReadCloser, error) {
						r, err := open(ctx)
						return io.NopCloser(row.cut(r)), err
					}
				}
				return f, err
			}}
			stats, err := Export(t.Context(), c, to, o, []Entry{entry(1, good), entry(2, bad)}, time.Unix(1000, 0))
			if err != nil || stats.Records != 1 || stats.Skipped != 1 || !strings.Contains(stats.Reason, row.reason) {
				t.Errorf("%s, %s: got %+v, %v; want one record, and the other left out", name, what, stats, err)
			}
			if x, _, err := load(t.Context(), to); err != nil || len(x.Records) != 1 {
				t.Errorf("%s, %s: the cache has %+v, %v", name, what, x, err)
			}
		}
	}
}

// taken is a store in which somebody else has begun to write a blob.
type taken struct {
	Target
	blob blob.Digest
}

func (s *taken) Put(ctx context.Context, d blob.Descriptor, origins []string, open func(context.Context) (io.ReadCloser, error)) error {
	if d.Digest == s.blob {
		return fmt.Errorf("it is not there: %w", ErrTaken)
	}
	return s.Target.Put(ctx, d, origins, open)
}

// TestLayerIsTaken has a layer that somebody else has begun to write, and may never finish.
func TestLayerIsTaken(t *testing.T) {
	c := openCache(t)
	good := step(t, c, cache.ChainID{}, "good", nil)
	bad := step(t, c, good, "bad", nil)
	layers, err := c.Layers(bad)
	if err != nil {
		t.Fatal(err)
	}
	var read atomic.Int64
	f, err := forms(&read)(t.Context(), bad, layers[1])
	if err != nil {
		t.Fatal(err)
	}
	to := &taken{NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{}), f.Blob.Digest}
	stats, err := Export(t.Context(), c, to, ExportOptions{Forms: forms(&read)}, []Entry{entry(1, good), entry(2, bad)}, time.Unix(1000, 0))
	if err != nil || stats.Records != 1 || stats.Skipped != 1 || !strings.Contains(stats.Reason, ErrTaken.Error()) {
		t.Errorf("got %+v, %v; want one record, and the other left out", stats, err)
	}
}

// hangUp is a store that ends each request in the middle, and reads what it has closed.
type hangUp struct{ Target }

var errHungUp = errors.New("the server hung up")

func (hangUp) Put(ctx context.Context, _ blob.Descriptor, _ []string, open func(context.Context) (io.ReadCloser, error)) error {
	r, err := open(ctx)
	if err != nil {
		return err
	}
	buf := make([]byte, 10)
	_, _ = r.Read(buf)
	_ = r.Close()
	_, _ = r.Read(buf)
	return errHungUp
}

// closable cannot be read any more once it is closed.
type closable struct {
	io.Reader
	closed bool
}

func (c *closable) Read(p []byte) (int, error) {
	if c.closed {
		return 0, fs.ErrClosed
	}
	return c.Reader.Read(p)
}

func (c *closable) Close() error {
	c.closed = true
	return nil
}

// TestStoreHangsUp has a store end its requests, which is no fault of the layers.
func TestStoreHangsUp(t *testing.T) {
	c := openCache(t)
	one := step(t, c, cache.ChainID{}, "one", nil)
	var read atomic.Int64
	whole := forms(&read)
	o := ExportOptions{Forms: func(ctx context.Context, at cache.ChainID, l cache.Layer) (Form, error) {
		f, err := whole(ctx, at, l)
		open := f.Open
		f.Open = func(ctx context.Context) (io.ReadCloser, error) {
			r, err := open(ctx)
			return &closable{Reader: r}, err
		}
		return f, err
	}}
	to := hangUp{NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})}
	if stats, err := Export(t.Context(), c, to, o, []Entry{entry(1, one)}, time.Unix(1000, 0)); !errors.Is(err, errHungUp) {
		t.Errorf("got %+v, %v; want the store's error", stats, err)
	}
}
