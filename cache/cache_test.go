package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// open opens the state folder dir for a test. Warnings fail it unless o takes them.
func open(t testing.TB, dir string, o Options) *Cache {
	t.Helper()
	if o.Warn == nil {
		o.Warn = func(err error) { t.Errorf("warning: %v", err) }
	}
	c, err := Open(context.Background(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func closeCache(t testing.TB, c *Cache) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// fileEntry is an entry for a file of that content.
func fileEntry(name string, data []byte) tree.Entry {
	return tree.Entry{Name: name, Kind: tree.File, Mode: 0o644, MTime: 1e18, Size: int64(len(data)), Content: sha256.Sum256(data)}
}

// putTree stores a layer that holds the files, path to content, and gives its root.
func putTree(t testing.TB, c *Cache, files map[string]string) tree.Entry {
	t.Helper()
	var b tree.Builder
	for _, name := range sortedKeys(files) {
		for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
			if err := b.Set(dir, tree.Entry{Name: filepath.Base(dir), Kind: tree.Dir, Mode: 0o755}); err != nil {
				t.Fatal(err)
			}
		}
		e := fileEntry(filepath.Base(name), []byte(files[name]))
		if err := b.Set(name, e); err != nil {
			t.Fatal(err)
		}
		if err := c.Pool().Put(context.Background(), e, strings.NewReader(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Root(c)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// putChain puts a layer of these files on top of parent.
func putChain(t testing.TB, c *Cache, parent ChainID, files map[string]string) ChainID {
	t.Helper()
	root := putTree(t, c, files)
	l := Layer{ID: TreeLayerID(root), Root: root}
	for _, f := range files {
		l.Size += int64(len(f))
	}
	if err := c.PutLayer(l); err != nil {
		t.Fatal(err)
	}
	id, err := c.Extend(parent, l.ID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func key(n int) Key { return sha256.Sum256(fmt.Appendf(nil, "key %d", n)) }

func TestRecordsSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{})
	base := putChain(t, c, ChainID{}, map[string]string{"etc/passwd": "root", "bin/sh": "#!"})
	top := putChain(t, c, base, map[string]string{"etc/hosts": "localhost"})
	want := Record{
		Outputs: []ChainID{top, base}, Name: "[1/2] RUN true", Vertex: sha256.Sum256([]byte("op")),
		Inputs: []ContentID{{1}, {2}}, Created: time.Unix(1700000000, 5), Duration: time.Second,
	}
	if err := c.Store(want, key(1), key(2)); err != nil {
		t.Fatal(err)
	}
	if err := c.Bucket("stat").Put([]byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		for _, k := range []Key{key(1), key(2)} {
			got, err := c.Lookup(k)
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if string(got.encode()) != string(want.encode()) {
				t.Errorf("round %d: got %+v, want %+v", round, got, want)
			}
		}
		state, err := c.Merged(top)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"etc/passwd", "etc/hosts", "bin/sh"} {
			if e, err := tree.Lookup(c, state, path); err != nil || e.Kind != tree.File {
				t.Errorf("round %d: looking up %s: got %v, %v", round, path, e.Kind, err)
			} else if !c.Pool().Has(e) {
				t.Errorf("round %d: %s is not in the pool", round, path)
			}
		}
		layers, err := c.Layers(top)
		if err != nil || len(layers) != 2 {
			t.Fatalf("round %d: got %d layers, %v", round, len(layers), err)
		}
		if v, ok := c.Bucket("stat").Get([]byte("k")); !ok || string(v) != "v" {
			t.Errorf("round %d: got %q, %v from the bucket", round, v, ok)
		}
		if _, ok := c.Bucket("sta").Get([]byte("tk")); ok {
			t.Error("buckets run into each other")
		}
		closeCache(t, c)
		c = open(t, dir, Options{})
	}
	closeCache(t, c)
}

func TestLookupMisses(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	var miss *MissError
	if _, err := c.Lookup(key(1)); !errors.As(err, &miss) {
		t.Errorf("nothing stored: got %v, want a MissError", err)
	}
	id := putChain(t, c, ChainID{}, map[string]string{"a": "1"})
	ch, err := c.Chain(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Store(Record{Outputs: []ChainID{id}}, key(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Lookup(key(1)); err != nil {
		t.Errorf("stored: %v", err)
	}
	if err := c.ForgetLayer(ch.Layer); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Lookup(key(1)); !errors.As(err, &miss) {
		t.Errorf("layer forgotten: got %v, want a MissError", err)
	}
	var gone *GoneError
	if _, err := c.Layers(id); !errors.As(err, &gone) || gone.Layer != ch.Layer {
		t.Errorf("layer forgotten: got %v, want a GoneError", err)
	}
	putChain(t, c, ChainID{}, map[string]string{"a": "1"})
	if _, err := c.Lookup(key(1)); err != nil {
		t.Errorf("layer put again: %v", err)
	}
	// A record of a chain that was never made.
	if err := c.Store(Record{Outputs: []ChainID{{7}}}, key(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Lookup(key(2)); !errors.As(err, &miss) {
		t.Errorf("unknown chain: got %v, want a MissError", err)
	}
}

func TestPutLayerMerges(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	diff := blob.Digest{1}
	id := ImageLayerID(diff)
	gz := blob.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: blob.Digest{2}, Size: 3, Annotations: map[string]string{"a": "b"}}
	for _, l := range []Layer{
		{ID: id, DiffID: diff, Blobs: []blob.Descriptor{gz}, Origins: []string{"r/a"}},
		{ID: id, DiffID: diff, Blobs: []blob.Descriptor{gz}, Origins: []string{"r/b", "r/a"}},
	} {
		if err := c.PutLayer(l); err != nil {
			t.Fatal(err)
		}
	}
	chain, err := c.Extend(ChainID{}, id)
	if err != nil {
		t.Fatal(err)
	}
	var packed *NotUnpackedError
	if _, err := c.Merged(chain); !errors.As(err, &packed) || packed.Layer != id {
		t.Errorf("got %v, want a NotUnpackedError", err)
	}
	root := putTree(t, c, map[string]string{"a": "1"})
	if err := c.PutLayer(Layer{ID: id, Root: root, Size: 1}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Layer(id)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Root.Equal(root) || got.DiffID != diff || len(got.Blobs) != 1 || len(got.Origins) != 2 || got.Size != 1 || got.Blobs[0].Annotations["a"] != "b" {
		t.Errorf("got %+v", got)
	}
	if _, err := c.Merged(chain); err != nil {
		t.Error(err)
	}

	// The same files with other times, in a layer that kiln made.
	tl := Layer{ID: TreeLayerID(root), Root: root, DiffID: diff, Blobs: []blob.Descriptor{gz}}
	if err := c.PutLayer(tl); err != nil {
		t.Fatal(err)
	}
	later := root
	later.MTime += 1e9
	if TreeLayerID(later) != tl.ID {
		t.Fatal("times are part of a layer's identity")
	}
	if LayerFolder(later) == LayerFolder(root) {
		t.Error("layers of other times share a folder")
	}
	if err := c.PutLayer(Layer{ID: tl.ID, Root: later}); err != nil {
		t.Fatal(err)
	}
	got, err = c.Layer(tl.ID)
	if err != nil || !got.Root.Equal(later) || !got.DiffID.IsZero() || len(got.Blobs) != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestPutLayerOfOtherTimes: a layer that two machines built has two streams. What one
// cache says of it is not mixed with what another does.
func TestPutLayerOfOtherTimes(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	root := putTree(t, c, map[string]string{"a": "1"})
	id := TreeLayerID(root)
	of := func(n byte) Layer {
		d := blob.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: blob.Digest{n, 1}, Size: 3}
		return Layer{ID: id, DiffID: blob.Digest{n}, Blobs: []blob.Descriptor{d}}
	}
	check := func(what string, put, want Layer) {
		t.Helper()
		if err := c.PutLayer(put); err != nil {
			t.Fatal(err)
		}
		got, err := c.Layer(id)
		if err != nil || got.DiffID != want.DiffID || len(got.Blobs) != 1 || got.Blobs[0].Digest != want.Blobs[0].Digest {
			t.Errorf("%s: got %+v, %v", what, got, err)
		}
	}
	check("the first", of(1), of(1))
	check("another's", of(2), of(2))
	unpacked := of(2)
	unpacked.Root, unpacked.Blobs = root, nil
	check("unpacked", unpacked, of(2))
	// The folder has the times of the second by now.
	check("another's, of what is unpacked", of(3), of(2))
}

func TestStateWithMissingNodes(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	base := putChain(t, c, ChainID{}, map[string]string{"a": "1"})
	top := putChain(t, c, base, map[string]string{"b": "2"})
	// The state of the chain below leads to a node that is not here.
	lost := tree.Entry{Kind: tree.Dir, Mode: 0o755, Children: tree.Ref{ID: tree.ID{1}, Addr: tree.Addr{1}}}
	if err := c.SetMerged(base, lost); err != nil {
		t.Fatal(err)
	}
	state, err := c.Merged(top)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"a", "b"} {
		if _, err := tree.Lookup(c, state, path); err != nil {
			t.Error(err)
		}
	}
}

func TestDeepChains(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	roots := []tree.Entry{putTree(t, c, map[string]string{"a": "1"}), putTree(t, c, map[string]string{"b": "2"})}
	ids := make([]LayerID, 2)
	for i, r := range roots {
		ids[i] = TreeLayerID(r)
		if err := c.PutLayer(Layer{ID: ids[i], Root: r}); err != nil {
			t.Fatal(err)
		}
	}
	const depth = 100_000
	var id ChainID
	for i := range depth {
		var err error
		if id, err = c.Extend(id, ids[i%2]); err != nil {
			t.Fatal(err)
		}
	}
	if ch, err := c.Chain(id); err != nil || ch.Depth != depth {
		t.Fatalf("got depth %d, %v", ch.Depth, err)
	}
	if err := c.Store(Record{Outputs: []ChainID{id}}, key(1)); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if _, err := c.Lookup(key(1)); err != nil {
			t.Fatal(err)
		}
	}
	layers, err := c.Layers(id)
	if err != nil || len(layers) != depth || layers[0].ID != ids[0] || layers[depth-1].ID != ids[1] {
		t.Fatalf("got %d layers, %v", len(layers), err)
	}
	state, err := c.Merged(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Lookup(c, state, "b"); err != nil {
		t.Error(err)
	}
}

func TestNodesAreVerified(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{})
	good := []byte("a node")
	a := tree.Addr(sha256.Sum256(good))
	if err := c.db.put(dbKey(prefixNode, (*[32]byte)(&a)), []byte("another")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Node(a); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want an error that wraps fs.ErrNotExist", err)
	}
	// It can be put again.
	if err := c.PutNode(a, good); err != nil {
		t.Fatal(err)
	}
	c.nodes.clear()
	if b, err := c.Node(a); err != nil || string(b) != string(good) {
		t.Errorf("put again: got %q, %v", b, err)
	}
	if _, err := c.Node(tree.Addr{1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want an error that wraps fs.ErrNotExist", err)
	}
	closeCache(t, c)
	if _, err := os.Stat(filepath.Join(dir, "version")); err != nil {
		t.Error(err)
	}
}

func sum(s string) [32]byte { return sha256.Sum256([]byte(s)) }

// A folder that was removed under an open cache ends with it: Badger alone would try
// to write into it for ever.
func TestCloseWithoutFolder(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{Warn: func(error) {}})
	putNodes(t, c, 0, 10<<10)
	if err := os.RemoveAll(filepath.Join(dir, "db")); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that the folder is not there", err)
	}
}
