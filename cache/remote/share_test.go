package remote

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

func openCache(t *testing.T) *cache.Cache {
	t.Helper()
	c, err := cache.Open(t.Context(), t.TempDir(), cache.Options{LazyClose: true})
	if err != nil {
		t.Fatal(err)
	}
	lease := c.Lease()
	t.Cleanup(func() {
		lease.Release()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// step puts a layer with one directory, or what change makes of it, on a chain.
func step(t *testing.T, c *cache.Cache, on cache.ChainID, name string, change func(*tree.Builder)) cache.ChainID {
	t.Helper()
	var b tree.Builder
	if err := b.Set(name, tree.Entry{Name: name, Kind: tree.Dir, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&b)
	}
	root, err := b.Root(c)
	if err != nil {
		t.Fatal(err)
	}
	l := cache.Layer{ID: cache.TreeLayerID(root), Root: root}
	if err := c.PutLayer(l); err != nil {
		t.Fatal(err)
	}
	id, err := c.Extend(on, l.ID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// forms makes a blob of a layer's name, and counts the blobs that were read.
func forms(read *atomic.Int64) Forms {
	return func(_ context.Context, _ cache.ChainID, l cache.Layer) (Form, error) {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: l.ID.String() + "/", Mode: 0o755}), w.Close()); err != nil {
			return Form{}, err
		}
		d := blob.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: sha256.Sum256(buf.Bytes()), Size: int64(buf.Len())}
		return Form{DiffID: d.Digest, Blob: d, Open: func(context.Context) (io.ReadCloser, error) {
			read.Add(1)
			return io.NopCloser(&buf), nil
		}}, nil
	}
}

func entry(key byte, outputs ...cache.ChainID) Entry {
	return Entry{Keys: []cache.Key{{key}}, Record: cache.Record{Outputs: outputs, Name: "step", Created: time.Unix(100, 0), Duration: time.Second}}
}

func importFrom(t *testing.T, c *cache.Cache, s Store, o Options) *Import {
	t.Helper()
	i := Open(t.Context(), c, s, o, func(err error) {
		if err != nil {
			t.Errorf("opening the cache: %v", err)
		}
	})
	t.Cleanup(i.Close)
	return i
}

func TestExportAndImport(t *testing.T) {
	from, to := openCache(t), openCache(t)
	one := step(t, from, cache.ChainID{}, "one", nil)
	two := step(t, from, one, "two", nil)
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	var read atomic.Int64
	entries := []Entry{entry(1, one), entry(2, two, cache.ChainID{})}
	stats, err := Export(t.Context(), from, store, ExportOptions{Forms: forms(&read), Created: func(cache.LayerID) time.Time { return time.Unix(7, 0) }}, entries, time.Unix(1000, 0))
	if err != nil || stats.Records != 2 || stats.Sent != 2 || read.Load() != 2 {
		t.Fatalf("got %+v and %d blobs read, %v; want 2 of each", stats, read.Load(), err)
	}
	created := map[cache.LayerID]time.Time{}
	i := importFrom(t, to, store, Options{Origin: "host/cache", Created: func(id cache.LayerID, at time.Time) { created[id] = at }})
	r, err := i.Lookup(cache.Key{2})
	if err != nil || !slices.Equal(r.Outputs, []cache.ChainID{two, {}}) || r.Name != "step" || r.Duration != time.Second {
		t.Fatalf("got %+v, %v", r, err)
	}
	layers, err := to.Layers(two)
	if err != nil || len(layers) != 2 || layers[0].Root.Kind != tree.None || !slices.Equal(layers[0].Origins, []string{"host/cache"}) {
		t.Fatalf("the layers are %+v, %v; want two that are not unpacked", layers, err)
	}
	if len(created) != 2 || created[layers[0].ID] != time.Unix(7, 0) {
		t.Errorf("created %v", created)
	}
	body, err := i.Blob(t.Context(), layers[0].Blobs[0], 100)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if rest, err := io.ReadAll(body); err != nil || int64(len(rest)) != layers[0].Blobs[0].Size-100 {
		t.Errorf("read %d bytes from 100 on, %v", len(rest), err)
	}
	var miss *cache.MissError
	if _, err := i.Lookup(cache.Key{3}); !errors.As(err, &miss) {
		t.Errorf("got %v for an unknown key, want a miss", err)
	}
	// A second export reads nothing, and the same again writes nothing.
	name, err := os.ReadFile(filepath.Join(store.dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if stats, err = Export(t.Context(), from, store, ExportOptions{Forms: forms(&read), Created: func(cache.LayerID) time.Time { return time.Unix(7, 0) }}, entries, time.Unix(1000, 0)); err != nil || read.Load() != 2 || stats.Sent != 0 {
		t.Errorf("the second export: %+v and %d blobs read, %v", stats, read.Load(), err)
	}
	if again, err := os.ReadFile(filepath.Join(store.dir, "index.json")); err != nil || !bytes.Equal(again, name) {
		t.Errorf("the same export again changed the cache: %v", err)
	}
}

func TestLost(t *testing.T) {
	from, to := openCache(t), openCache(t)
	var chains []cache.ChainID
	var entries []Entry
	for n, name := range []string{"a", "b", "c", "d"} {
		chains = append(chains, step(t, from, cache.ChainID{}, name, nil))
		entries = append(entries, entry(byte(n), chains[n]))
	}
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	var read atomic.Int64
	if _, err := Export(t.Context(), from, store, ExportOptions{Forms: forms(&read), Created: func(cache.LayerID) time.Time { return time.Unix(7, 0) }}, entries, time.Unix(1000, 0)); err != nil {
		t.Fatal(err)
	}
	i := importFrom(t, to, store, Options{})
	layerOf := func(n int) cache.LayerID {
		if _, err := i.Lookup(cache.Key{byte(n)}); err != nil {
			t.Fatal(err)
		}
		l, err := to.Chain(chains[n])
		if err != nil {
			t.Fatal(err)
		}
		return l.Layer
	}
	a, b, c := layerOf(0), layerOf(1), layerOf(2)
	if others := i.Lost(cache.LayerID{1}); others != nil || !i.Holds(a) {
		t.Errorf("a layer that the cache does not list cost it %v", others)
	}
	if others := i.Lost(a); len(others) != 0 || i.Holds(a) || !i.Holds(b) {
		t.Errorf("the first lost layer cost %v", others)
	}
	if _, err := i.Lookup(cache.Key{0}); err == nil {
		t.Error("a record was found whose layer was lost")
	}
	if _, err := i.Lookup(cache.Key{3}); err != nil {
		t.Errorf("another record: %v", err)
	}
	others := i.Lost(b)
	if len(others) != 3 || !slices.Contains(others, c) || !slices.Contains(others, a) || i.Holds(c) {
		t.Errorf("the second lost layer cost %v, want all that are not unpacked", others)
	}
	if _, err := i.Lookup(cache.Key{2}); err == nil {
		t.Error("a record was found in a cache that lost two layers")
	}
}

// TestImageLayersStand has a cache lie about a layer that an image has.
func TestImageLayersStand(t *testing.T) {
	c := openCache(t)
	x := sample(1)
	x.Layers[0].Held, x.Layers[0].Blobs = true, []blob.Descriptor{{MediaType: "tar", Digest: blob.Digest{66}, Size: 6}}
	want := cache.Layer{
		ID: cache.LayerID(x.Layers[0].ID), DiffID: blob.Digest{1}, Origins: []string{"host/base"},
		Blobs: []blob.Descriptor{{MediaType: "tar", Digest: blob.Digest{11}, Size: 5}},
	}
	if err := c.PutLayer(want); err != nil {
		t.Fatal(err)
	}
	i := importFrom(t, c, write(t, x), Options{Origin: "host/liar"})
	if _, err := i.Lookup(cache.Key{1}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Layer(want.ID)
	if err != nil || len(got.Blobs) != 1 || got.Blobs[0].Digest != want.Blobs[0].Digest || !slices.Equal(got.Origins, want.Origins) {
		t.Errorf("the layer is now %+v, %v", got, err)
	}
}

// write makes a cache of an index as it is.
func write(t *testing.T, x *index) *Layout {
	t.Helper()
	s := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	put := func(mediaType string, v any, then func(blob.Descriptor, []byte) error) {
		data, err := json.Marshal(v)
		if err == nil {
			err = then(descriptor(mediaType, data), data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put(plainIndexType, x, func(config blob.Descriptor, data []byte) error {
		open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
		if err := s.Put(t.Context(), config, nil, open); err != nil {
			return err
		}
		put(manifestType, document{ArtifactType: ArtifactType, Config: &config}, func(d blob.Descriptor, data []byte) error {
			_, err := s.Commit(t.Context(), d, data, blob.Digest{})
			return err
		})
		return nil
	})
	return s
}

func TestLeftOut(t *testing.T) {
	c := openCache(t)
	good := step(t, c, cache.ChainID{}, "good", nil)
	socket := step(t, c, good, "bad", func(b *tree.Builder) {
		if err := b.Set("bad/s", tree.Entry{Name: "s", Kind: tree.Socket, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	})
	root := step(t, c, good, "mode", func(b *tree.Builder) {
		if err := b.Set("", tree.Entry{Kind: tree.Dir, Mode: 0o700}); err != nil {
			t.Fatal(err)
		}
	})
	var read atomic.Int64
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	entries := []Entry{entry(1, good), entry(2, socket), entry(3, root)}
	stats, err := Export(t.Context(), c, store, ExportOptions{Forms: forms(&read), Created: func(cache.LayerID) time.Time { return time.Unix(7, 0) }}, entries, time.Unix(1000, 0))
	if err != nil || stats.Records != 1 || stats.Skipped != 2 || !strings.Contains(stats.Reason, "cannot hold") {
		t.Errorf("got %+v, %v; want one record and two that were left out", stats, err)
	}
}

func TestToward(t *testing.T) {
	c := openCache(t)
	one := step(t, c, cache.ChainID{}, "one", nil)
	two := step(t, c, one, "two", nil)
	other := step(t, c, one, "other", nil)
	got, err := Toward(c, []Entry{entry(1, one), entry(2, two), entry(3, other), entry(4, one, other)}, []cache.ChainID{two})
	if err != nil || len(got) != 3 || got[0].Keys[0] != (cache.Key{1}) || got[1].Keys[0] != (cache.Key{2}) || got[2].Keys[0] != (cache.Key{4}) {
		t.Errorf("got %+v, %v; want all but the one that leads elsewhere with all of its outputs", got, err)
	}
}

func TestInlineHasNoTimes(t *testing.T) {
	c := openCache(t)
	one := step(t, c, cache.ChainID{}, "one", nil)
	other := step(t, c, cache.ChainID{}, "other", nil)
	config := []byte(`{"os":"linux","x":1}`)
	late := entry(1, one)
	late.Record.Created = time.Unix(200, 0)
	a, err := Inline(c, config, one, []Entry{entry(1, one), entry(2, other)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Inline(c, config, one, []Entry{late})
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("got %s, then %s, %v", a, b, err)
	}
	if none, err := Inline(c, config, one, []Entry{entry(2, other)}); err != nil || !bytes.Equal(none, config) {
		t.Errorf("an image without records has the config %s, %v", none, err)
	}
}

// A record one of whose outputs is not in the image serves the others, in every
// image that is made with it, and is in no cache that has records whole.
func TestInlineOfSomeOutputs(t *testing.T) {
	from, to := openCache(t), openCache(t)
	one := step(t, from, cache.ChainID{}, "one", nil)
	other := step(t, from, cache.ChainID{}, "other", nil)
	var read atomic.Int64
	layers, err := from.Layers(one)
	if err != nil {
		t.Fatal(err)
	}
	f, err := forms(&read)(t.Context(), one, layers[0])
	if err != nil {
		t.Fatal(err)
	}
	config := []byte(`{"rootfs":{"type":"layers","diff_ids":["` + f.DiffID.String() + `"]}}`)
	image, err := Inline(from, config, one, []Entry{entry(1, other, one), entry(2, other), entry(3, other, cache.ChainID{})})
	if err != nil {
		t.Fatal(err)
	}
	store := NewLayout(filepath.Join(t.TempDir(), "image"), "", blob.Digest{})
	desc := descriptor("application/vnd.oci.image.config.v1+json", image)
	manifest, err := json.Marshal(document{SchemaVersion: 2, MediaType: manifestType, Config: &desc, Layers: []blob.Descriptor{f.Blob}})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), desc, nil, opener(image)); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Commit(t.Context(), descriptor(manifestType, manifest), manifest, blob.Digest{}); err != nil {
		t.Fatal(err)
	}
	i := importFrom(t, to, store, Options{})
	r, err := i.Lookup(cache.Key{1})
	if err != nil || !slices.Equal(r.Outputs, []cache.ChainID{cache.Absent, one}) || r.Whole() {
		t.Fatalf("got %+v, %v; want the first output absent", r, err)
	}
	for _, k := range []byte{2, 3} {
		if _, err := i.Lookup(cache.Key{k}); err == nil {
			t.Errorf("record %d leads to nothing that is in the image, and is there", k)
		}
	}
	if err := to.Store(r, cache.Key{1}); err != nil {
		t.Fatal(err)
	}
	if r, err = to.Lookup(cache.Key{1}); err != nil || r.Outputs[0] != cache.Absent || r.Outputs[1] != one {
		t.Errorf("the state folder gives %+v, %v", r, err)
	}
	again, err := Inline(to, config, one, []Entry{{Keys: []cache.Key{{1}}, Record: r}})
	if err != nil || !bytes.Equal(again, image) {
		t.Errorf("an image made with it has the config %s, %v; want %s", again, err, image)
	}
	cached := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	stats, err := Export(t.Context(), to, cached, ExportOptions{Forms: forms(&read)}, []Entry{{Keys: []cache.Key{{1}}, Record: r}}, time.Unix(1000, 0))
	if err != nil || stats.Records != 0 || stats.Skipped != 0 {
		t.Errorf("exporting it: %+v, %v; want it left out", stats, err)
	}
}

// TestEnvelopes writes a cache as each kind of manifest, over the kind before.
func TestEnvelopes(t *testing.T) {
	from := openCache(t)
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	var read atomic.Int64
	var at cache.ChainID
	for n, c := range []struct {
		envelope  Envelope
		mediaType string
		listed    int // blobs of layers
	}{
		{Image, manifestType, 1},
		{Index, indexType, 2},
		{List, dockerListType, 3},
		{Image, manifestType, 4},
	} {
		at = step(t, from, at, fmt.Sprint(n), nil)
		key := byte(n + 1)
		stats, err := Export(t.Context(), from, store, ExportOptions{Forms: forms(&read), Envelope: c.envelope}, []Entry{entry(key, at)}, time.Unix(1000, 0))
		if err != nil || stats.Manifest.MediaType != c.mediaType || stats.Replaced != nil || stats.Sent != 1 {
			t.Fatalf("%d: got %+v, %v; want one layer sent, and %s", n, stats, err, c.mediaType)
		}
		data, err := store.Manifest(t.Context(), blob.Digest{})
		if err != nil {
			t.Fatal(err)
		}
		var m document
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		if got := max(len(m.Layers), len(m.Manifests)-1); m.MediaType != c.mediaType || got != c.listed || bytes.Contains(data, []byte("null")) {
			t.Errorf("%d: the manifest is %s", n, data)
		}
		i := importFrom(t, openCache(t), store, Options{})
		for k := byte(1); k <= key; k++ {
			if _, err := i.Lookup(cache.Key{k}); err != nil {
				t.Errorf("%d: record %d: %v", n, k, err)
			}
		}
		// What is there is not written anew for the sake of its form.
		again := Index
		stats, err = Export(t.Context(), from, store, ExportOptions{Forms: forms(&read), Envelope: again}, []Entry{entry(key, at)}, time.Unix(1000, 0))
		if err != nil || stats.Manifest.MediaType != c.mediaType {
			t.Errorf("%d: nothing to add: %+v, %v", n, stats, err)
		}
	}
}
