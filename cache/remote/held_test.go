package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
)

const tarType = "application/vnd.oci.image.layer.v1.tar"

// zstdForms makes other blobs of the same layers.
func zstdForms(whole Forms) Forms {
	return func(ctx context.Context, at cache.ChainID, l cache.Layer) (Form, error) {
		f, err := whole(ctx, at, l)
		if err != nil {
			return f, err
		}
		r, err := f.Open(ctx)
		if err != nil {
			return f, err
		}
		data, err := io.ReadAll(r)
		if err == nil {
			data, err = packSmall(data)
		}
		f.Blob, f.Open = descriptor(tarType+"+zstd", data), opener(data)
		return f, err
	}
}

// remove takes the blobs that a folder holds of layers out of it.
func remove(t *testing.T, s *Layout, layers ...cache.LayerID) {
	t.Helper()
	x, _, err := load(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range layers {
		for _, l := range x.Layers {
			if l.ID != id(want) {
				continue
			}
			if err := os.Remove(filepath.Join(s.dir, blobPath(l.Blobs[0].Digest))); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// wholeIn has a machine that starts empty read all layers of a chain from a cache.
func wholeIn(t *testing.T, s Store, k cache.Key, at cache.ChainID) error {
	t.Helper()
	c := openCache(t)
	i := importFrom(t, c, s, Options{})
	if _, err := i.Lookup(k); err != nil {
		return err
	}
	layers, err := c.Layers(at)
	if err != nil {
		return err
	}
	for _, l := range layers {
		r, err := i.Blob(t.Context(), l.Blobs[0], 0)
		if err != nil {
			return err
		}
		data, err := io.ReadAll(r)
		r.Close()
		if err == nil && sha256.Sum256(data) != l.Blobs[0].Digest {
			err = errors.New("it is another blob")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TestLostIsSentAgain has layers vanish from a cache. A build that finds out runs the
// steps again, and its export sends the layers, so that the next machine has them.
func TestLostIsSentAgain(t *testing.T) {
	names := []string{"a", "b", "c"}
	for _, row := range []struct {
		what  string
		lost  int  // layers that the build finds missing; three are
		late  bool // it finds out when the export has counted on them
		other bool // it makes other blobs of them
		sent  int
	}{
		{"one", 1, false, false, 1},
		{"one, found out late", 1, true, false, 1},
		{"one, as another blob", 1, false, true, 1},
		{"one, late and as another blob", 1, true, true, 1},
		{"all of them, of which two are enough to know it", 2, false, true, 3},
		{"all of them, found out late", 2, true, true, 3},
	} {
		var read atomic.Int64
		from, c := openCache(t), openCache(t)
		store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
		var entries []Entry
		var chains []cache.ChainID
		var layers []cache.LayerID
		for n, name := range names {
			at := step(t, from, cache.ChainID{}, name, nil)
			top, err := from.Chain(at)
			if err != nil {
				t.Fatal(err)
			}
			chains, layers, entries = append(chains, at), append(layers, top.Layer), append(entries, entry(byte(n), at))
		}
		if _, err := Export(t.Context(), from, store, ExportOptions{Forms: forms(&read)}, entries, time.Unix(1000, 0)); err != nil {
			t.Fatal(err)
		}
		remove(t, store, layers...)

		i := importFrom(t, c, store, Options{})
		for n := range names {
			if _, err := i.Lookup(cache.Key{byte(n)}); err != nil {
				t.Fatal(err)
			}
		}
		o := ExportOptions{Forms: forms(&read), Import: i}
		if row.other {
			o.Forms = zstdForms(o.Forms)
		}
		x := Begin(t.Context(), c, store, o)
		if row.late {
			for _, at := range chains {
				x.Add(at)
			}
			if err := x.group.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		for n, l := range layers[:row.lost] {
			for _, gone := range append(i.Lost(l), l) {
				if err := c.ForgetLayer(gone); err != nil {
					t.Fatal(err)
				}
			}
			step(t, c, cache.ChainID{}, names[n], nil)
		}
		if row.lost > 1 {
			for _, name := range names {
				step(t, c, cache.ChainID{}, name, nil)
			}
		}
		stats, err := x.Finish(t.Context(), entries, nil, time.Unix(2000, 0))
		x.Close()
		if err != nil || stats.Sent != row.sent || stats.Records != len(names) || stats.Replaced != nil {
			t.Errorf("%s: got %+v, %v; want %d layers sent", row.what, stats, err, row.sent)
		}
		for n := range row.sent {
			if err := wholeIn(t, store, cache.Key{byte(n)}, chains[n]); err != nil {
				t.Errorf("%s: the next machine: layer %d: %v", row.what, n, err)
			}
		}
	}
}

// asking counts what a store is asked of layers.
type asking struct {
	*Layout
	asked atomic.Int64
}

func (a *asking) Put(ctx context.Context, d blob.Descriptor, origins []string, open func(context.Context) (io.ReadCloser, error)) error {
	if strings.HasPrefix(d.MediaType, tarType) {
		a.asked.Add(1)
	}
	return a.Layout.Put(ctx, d, origins, open)
}

// TestAskedForOnceADay has a layer vanish from a cache, of which all builds need the
// records alone: once a day an export finds out.
func TestAskedForOnceADay(t *testing.T) {
	broken := errors.New("its files are gone too")
	var read atomic.Int64
	for what, row := range map[string]struct {
		forms   Forms // of the later exports
		skipped int
	}{
		"the same blob again": {forms(&read), 0},
		"another blob":        {zstdForms(forms(&read)), 0},
		"none": {func(context.Context, cache.ChainID, cache.Layer) (Form, error) {
			return Form{}, broken
		}, 1},
	} {
		c := openCache(t)
		one := step(t, c, cache.ChainID{}, "one", nil)
		two := step(t, c, one, "two", nil)
		top, err := c.Chain(two)
		if err != nil {
			t.Fatal(err)
		}
		store := &asking{Layout: NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})}
		export := func(at int64, forms Forms) (Stats, int64) {
			t.Helper()
			before := store.asked.Load()
			s, err := Export(t.Context(), c, store, ExportOptions{Forms: forms}, []Entry{entry(1, one), entry(2, two)}, time.Unix(at, 0))
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			return s, store.asked.Load() - before
		}
		const day = 24 * 3600
		export(day, forms(&read))
		remove(t, store.Layout, top.Layer)
		if _, asked := export(day+3600, row.forms); asked != 0 {
			t.Errorf("%s: an hour later %d layers were asked for", what, asked)
		}
		s, asked := export(2*day+1, row.forms)
		if asked < 2 || s.Skipped != row.skipped || s.Records != 2-row.skipped {
			t.Errorf("%s: a day later %d layers were asked for: %+v", what, asked, s)
		}
		if row.skipped > 0 {
			if !strings.Contains(s.Reason, broken.Error()) {
				t.Errorf("%s: %s", what, s.Reason)
			}
			continue
		}
		if err := wholeIn(t, store, cache.Key{2}, two); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, asked := export(2*day+3600, row.forms); asked != 0 {
			t.Errorf("%s: in the hour after that %d layers were asked for", what, asked)
		}
	}
}

// TestLostCopyIsSentAgain has the copy of an image's layer vanish, which costs a build
// nothing but time: the next export sends it again.
func TestLostCopyIsSentAgain(t *testing.T) {
	c := openCache(t)
	own := blob.Descriptor{MediaType: tarType + "+gzip", Digest: sha256.Sum256([]byte("own")), Size: 3}
	l := cache.Layer{DiffID: sha256.Sum256([]byte("stream")), Blobs: []blob.Descriptor{own}, Origins: []string{"host/base"}}
	l.ID = cache.ImageLayerID(l.DiffID)
	if err := c.PutLayer(l); err != nil {
		t.Fatal(err)
	}
	at, err := c.Extend(cache.ChainID{}, l.ID)
	if err != nil {
		t.Fatal(err)
	}
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	for n, text := range []string{"a copy", "another copy"} {
		copied := descriptor(tarType+"+zstd", []byte(text))
		i := Open(t.Context(), c, store, Options{Copies: true}, func(error) {})
		<-i.loaded
		if n > 0 {
			d, ok := i.Passing(l)
			if !ok {
				t.Fatal("the cache lists no copy")
			}
			if err := os.Remove(filepath.Join(store.dir, blobPath(d.Digest))); err != nil {
				t.Fatal(err)
			}
			if _, err := i.Blob(t.Context(), d, 0); !isMissing(err) {
				t.Fatalf("got %v, want that it is missing", err)
			}
		}
		o := ExportOptions{Import: i, Copy: func(context.Context, cache.ChainID, cache.Layer) (Form, bool) {
			return Form{DiffID: l.DiffID, Blob: copied, Open: opener([]byte(text))}, true
		}}
		if _, err := Export(t.Context(), c, store, o, []Entry{entry(1, at)}, time.Unix(1000, 0)); err != nil {
			t.Fatal(err)
		}
		i.Close()
		next := importFrom(t, openCache(t), store, Options{Copies: true})
		<-next.loaded
		d, ok := next.Passing(l)
		if !ok || d.Digest != copied.Digest {
			t.Fatalf("%q: got %v, %v", text, d, ok)
		}
		r, err := next.Blob(t.Context(), d, 0)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		r.Close()
	}
}

// refusing is a store that does not take a manifest, once.
type refusing struct {
	Target
	err error
}

func (r *refusing) Commit(ctx context.Context, d blob.Descriptor, manifest []byte, old blob.Digest) (bool, error) {
	if err := r.err; err != nil {
		r.err = nil
		return false, err
	}
	return r.Target.Commit(ctx, d, manifest, old)
}

// TestManifestIsNotTaken has a store not take a manifest. An error that may pass costs one
// export; what others have put into the cache goes where blobs of it are gone alone.
func TestManifestIsNotTaken(t *testing.T) {
	passing := errors.New("503")
	refused := fmt.Errorf("%w: 400", ErrRefused)
	for _, row := range []struct {
		err      error
		fails    bool
		has, not byte
	}{
		{passing, true, 1, 2},
		{refused, false, 2, 1},
	} {
		var read atomic.Int64
		other, c := openCache(t), openCache(t)
		one, two := step(t, other, cache.ChainID{}, "one", nil), step(t, c, cache.ChainID{}, "two", nil)
		store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
		o := ExportOptions{Forms: forms(&read)}
		if _, err := Export(t.Context(), other, store, o, []Entry{entry(1, one)}, time.Unix(1000, 0)); err != nil {
			t.Fatal(err)
		}
		stats, err := Export(t.Context(), c, &refusing{store, row.err}, o, []Entry{entry(2, two)}, time.Unix(1000, 0))
		if (err != nil) != row.fails || err == nil && !errors.Is(stats.Replaced, row.err) {
			t.Errorf("%v: got %+v, %v", row.err, stats, err)
		}
		i := importFrom(t, openCache(t), store, Options{})
		if _, err := i.Lookup(cache.Key{row.has}); err != nil {
			t.Errorf("%v: record %d: %v", row.err, row.has, err)
		}
		if _, err := i.Lookup(cache.Key{row.not}); err == nil {
			t.Errorf("%v: record %d is there", row.err, row.not)
		}
	}
}
