package remote

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// crowd exports from n machines at once, a record each, and expects all of them in
// the cache afterwards.
func crowd(t *testing.T, n int, target func() Target) {
	t.Helper()
	begin := make(chan struct{})
	var group sync.WaitGroup
	for i := range n {
		c := openCache(t)
		chain := step(t, c, cache.ChainID{}, string(rune('a'+i)), nil)
		to := target()
		group.Go(func() {
			var read atomic.Int64
			x := Begin(t.Context(), c, to, ExportOptions{Forms: forms(&read)})
			defer x.Close()
			<-begin
			if _, err := x.Finish(t.Context(), []Entry{entry(byte(i), chain)}, nil, time.Unix(1000, 0)); err != nil {
				t.Errorf("exporter %d: %v", i, err)
			}
		})
	}
	close(begin)
	group.Wait()
	x, _, err := load(t.Context(), target())
	if err != nil {
		t.Fatal(err)
	}
	if len(x.Records) != n {
		t.Errorf("the cache has %d records, want those of all %d exporters", len(x.Records), n)
	}
}

func TestCrowd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	t.Run("layout", func(t *testing.T) {
		crowd(t, 12, func() Target { return NewLayout(dir, "", blob.Digest{}) })
	})
	t.Run("http", func(t *testing.T) {
		// The protocol has no conditions: what was taken away is put back.
		server := serveMemory(t)
		crowd(t, 6, func() Target {
			h, err := NewHTTP(server, "main", 0)
			if err != nil {
				t.Fatal(err)
			}
			return h
		})
	})
}

// serveMemory serves Bazel's protocol.
func serveMemory(t *testing.T) string {
	t.Helper()
	var mu sync.Mutex
	stored := map[string]string{}
	h := serve(t, func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		have, ok := stored[r.URL.Path]
		switch {
		case err != nil:
			w.WriteHeader(http.StatusBadRequest)
		case r.Method == http.MethodPut:
			stored[r.URL.Path] = string(data)
		case !ok:
			w.WriteHeader(http.StatusNotFound)
		default:
			_, _ = io.WriteString(w, have)
		}
	})
	return h.base.String()
}

// rival is a store in which another export comes first, once.
type rival struct {
	Target
	first func()
	sure  bool
}

func (r *rival) Commit(ctx context.Context, d blob.Descriptor, manifest []byte, old blob.Digest) (bool, error) {
	if first := r.first; first != nil {
		r.first = nil
		first()
	}
	if r.sure {
		return r.Target.Commit(ctx, d, manifest, old)
	}
	// A store that knows no conditions writes over whatever is there.
	now, err := r.Target.Manifest(ctx, blob.Digest{})
	if err == nil {
		old = descriptor(manifestType, now).Digest
	}
	_, err = r.Target.Commit(ctx, d, manifest, old)
	return false, err
}

// TestRival has another export come between the reading and the writing of one.
func TestRival(t *testing.T) {
	for name, sure := range map[string]bool{"with conditions": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			c, other := openCache(t), openCache(t)
			one, two := step(t, c, cache.ChainID{}, "one", nil), step(t, other, cache.ChainID{}, "two", nil)
			store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
			var read atomic.Int64
			o := ExportOptions{Forms: forms(&read)}
			late := make(chan error, 1)
			to := &rival{Target: store, sure: sure, first: func() {
				_, err := Export(t.Context(), other, store, o, []Entry{entry(2, two)}, time.Unix(1000, 0))
				late <- err
			}}
			_, err := Export(t.Context(), c, to, o, []Entry{entry(1, one)}, time.Unix(1000, 0))
			if err != nil {
				t.Fatal(err)
			}
			if err := <-late; err != nil {
				t.Fatal(err)
			}
			x, _, err := load(t.Context(), store)
			if err != nil {
				t.Fatal(err)
			}
			// Where there are no conditions it is the other that has to look again, which
			// it did too early here; the next export of its records puts them back.
			if want := map[bool]int{true: 2, false: 1}[sure]; len(x.Records) != want {
				t.Errorf("%d records, want %d", len(x.Records), want)
			}
		})
	}
}

// TestRivalLeavesNoIndex has another export come between, whose index is gone by then:
// its manifest is replaced.
func TestRivalLeavesNoIndex(t *testing.T) {
	c, other := openCache(t), openCache(t)
	one, two := step(t, c, cache.ChainID{}, "one", nil), step(t, other, cache.ChainID{}, "two", nil)
	dir := filepath.Join(t.TempDir(), "c")
	store := NewLayout(dir, "", blob.Digest{})
	var read atomic.Int64
	o := ExportOptions{Forms: forms(&read)}
	to := &rival{Target: store, sure: true, first: func() {
		if _, err := Export(t.Context(), other, store, o, []Entry{entry(2, two)}, time.Unix(1000, 0)); err != nil {
			t.Error(err)
		}
		manifest, err := store.Manifest(t.Context(), blob.Digest{})
		var m document
		if err == nil {
			err = json.Unmarshal(manifest, &m)
		}
		if err == nil {
			err = os.Remove(filepath.Join(dir, "blobs/sha256", hex.EncodeToString(m.index().Digest[:])))
		}
		if err != nil {
			t.Error(err)
		}
	}}
	if _, err := Export(t.Context(), c, to, o, []Entry{entry(1, one)}, time.Unix(1000, 0)); err != nil {
		t.Fatal(err)
	}
	x, _, err := load(t.Context(), store)
	if err != nil || len(x.Records) != 1 {
		t.Errorf("got %+v, %v; want the one record", x, err)
	}
}

// TestNothingNew has the same records exported again within a day, and later.
func TestNothingNew(t *testing.T) {
	c := openCache(t)
	one := step(t, c, cache.ChainID{}, "one", nil)
	two := step(t, c, one, "two", nil)
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	var read atomic.Int64
	export := func(at int64, entries ...Entry) blob.Digest {
		t.Helper()
		s, err := Export(t.Context(), c, store, ExportOptions{Forms: forms(&read)}, entries, time.Unix(at, 0))
		if err != nil {
			t.Fatal(err)
		}
		return s.Manifest.Digest
	}
	first := export(1e6, entry(1, one), entry(2, two))
	if again := export(1e6+3600, entry(2, two)); again != first {
		t.Error("an export of what was there an hour before changed the cache")
	}
	if later := export(1e6+25*3600, entry(2, two)); later == first {
		t.Error("a record that was met a day later is as old as before")
	}
	x, _, err := load(t.Context(), store)
	if err != nil || len(x.Records) != 2 {
		t.Errorf("got %+v, %v; want both records", x, err)
	}
}

// mute is a store that answers nothing.
type mute struct{ Target }

func (mute) Manifest(ctx context.Context, _ blob.Digest) ([]byte, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// TestCloseDoesNotWait ends an export whose cache is still being read by an import.
func TestCloseDoesNotWait(t *testing.T) {
	c, to := openCache(t), mute{}
	i := Open(t.Context(), c, to, Options{}, func(error) {})
	x := Begin(t.Context(), c, to, ExportOptions{Import: i})
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		x.Close()
	}()
	select {
	case <-closed:
	case <-time.After(loadTimeout / 3):
		t.Error("the export waits for a server that says nothing")
	}
	i.Close()
	<-closed
}

func TestCutShort(t *testing.T) {
	c := openCache(t)
	chain := step(t, c, cache.ChainID{}, "one", func(b *tree.Builder) {})
	ctx, cancel := context.WithCancel(t.Context())
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	x := Begin(ctx, c, store, ExportOptions{Forms: func(ctx context.Context, _ cache.ChainID, _ cache.Layer) (Form, error) {
		cancel() // in the middle of the work
		<-ctx.Done()
		return Form{}, ctx.Err()
	}})
	x.Add(chain)
	_, err := x.Finish(ctx, []Entry{entry(1, chain)}, nil, time.Unix(1000, 0))
	x.Close()
	if err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	if _, err := store.Manifest(t.Context(), blob.Digest{}); !isMissing(err) {
		t.Errorf("something was written: %v", err)
	}
}
