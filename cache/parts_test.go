package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
)

func TestBuckets(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{})
	b := c.Bucket("stat")
	for i := range 2000 {
		if err := b.Put(fmt.Appendf(nil, "k%04d", i), fmt.Appendf(nil, "v%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.db.flush(); err != nil {
		t.Fatal(err)
	}
	key := []byte("k0007")
	value := []byte("changed")
	if err := b.Put(key, value); err != nil {
		t.Fatal(err)
	}
	value[0] = 'X' // what was put must not follow
	if v, ok := b.Get(key); !ok || string(v) != "changed" {
		t.Errorf("got %q, %v", v, ok)
	}
	if err := b.Delete([]byte("k0008")); err != nil {
		t.Fatal(err)
	}
	if err := b.Put([]byte("empty"), nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b = c.Bucket("stat")
		if v, ok := b.Get([]byte("empty")); !ok || len(v) != 0 {
			t.Errorf("got %q, %v, want an empty value", v, ok)
		}
		if _, ok := b.Get([]byte("k0008")); ok {
			t.Error("a deleted value is here")
		}
		var keys []string
		err := b.Each([]byte("k"), func(k, v []byte) error {
			keys = append(keys, string(k))
			if got, ok := b.Get(k); !ok || !bytes.Equal(got, v) {
				t.Errorf("%s: got %q, %v, want %q", k, got, ok, v)
			}
			return nil
		})
		slices.Sort(keys)
		if err != nil || len(keys) != 1999 || len(slices.Compact(keys)) != 1999 {
			t.Errorf("got %d keys, %v", len(keys), err)
		}
		closeCache(t, c)
		c = open(t, dir, Options{})
	}
	closeCache(t, c)
}

func TestShortProcessesLeaveFewTables(t *testing.T) {
	dir := t.TempDir()
	const processes = 4 * maxLevel0
	for i := range processes {
		c := open(t, dir, Options{noRecent: true})
		if err := c.Bucket("time").Put(fmt.Appendf(nil, "k%d", i), []byte("v")); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		tables, err := filepath.Glob(filepath.Join(dir, "db", "*.sst"))
		if err != nil {
			t.Fatal(err)
		}
		// A merge leaves one table.
		if len(tables) > maxLevel0+1 {
			t.Fatalf("%d tables after %d processes, want %d at most", len(tables), i+1, maxLevel0+1)
		}
	}
	c := open(t, dir, Options{})
	defer c.Close()
	for i := range processes {
		if v, ok := c.Bucket("time").Get(fmt.Appendf(nil, "k%d", i)); !ok || string(v) != "v" {
			t.Errorf("key %d: got %q, %v", i, v, ok)
		}
	}
}

func TestCacheMounts(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{})
	broken := errors.New("filling broke")
	if _, _, err := c.CacheMount("m", func(string) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	filled := 0
	fill := func(dir string) error {
		filled++
		return os.WriteFile(filepath.Join(dir, "seed"), nil, 0o644)
	}
	var paths []string
	for range 3 {
		path, release, err := c.CacheMount("m", fill)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
		release()
		release() // the second call does nothing
	}
	if filled != 1 || paths[0] != paths[2] || len(c.mounts) != 0 {
		t.Errorf("filled %d times, paths %v, %d in use", filled, paths, len(c.mounts))
	}
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			path, release, err := c.CacheMount("../../etc/passwd", nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			if filepath.Dir(path) != c.Path("mounts") {
				t.Errorf("the mount is at %s", path)
			}
		})
	}
	g.Wait()
	closeCache(t, c)

	c = open(t, dir, Options{})
	defer closeCache(t, c)
	if path, release, err := c.CacheMount("m", fill); err != nil || filled != 1 || path != paths[0] {
		t.Errorf("reopened: %s, filled %d times, %v", path, filled, err)
	} else {
		release()
	}
	usage, err := c.Usage(t.Context())
	if err != nil || len(usage) != 2 || usage[0].Kind != "exec.cachemount" {
		t.Errorf("got %+v, %v", usage, err)
	}
}

// TestShrink writes in bulk, gives the memory back, and finds everything.
func TestShrink(t *testing.T) {
	c := open(t, t.TempDir(), Options{LazyClose: true})
	defer closeCache(t, c)
	const n = 5000
	for round := range 3 {
		for i := range n {
			node := nodeOf(uint64(round*n + i))
			if err := c.PutNode(sha256.Sum256(node), node); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.db.flush(); err != nil {
			t.Fatal(err)
		}
		if c.db.load != heavy {
			t.Error("bulk writes went to small memtables")
		}
		c.nodes.clear()
		if err := c.db.shrink(); err != nil || c.db.load != light {
			t.Fatalf("the load is %v, %v", c.db.load, err)
		}
		for i := range (round + 1) * n {
			if _, err := c.Node(sha256.Sum256(nodeOf(uint64(i)))); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestUsesSurviveTornRows(t *testing.T) {
	u := usedLog{path: filepath.Join(t.TempDir(), "used")}
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	for i := range 3 {
		u.note(&[32]byte{byte(i)}, at(int64(100+i)))
		u.note(&[32]byte{9}, at(int64(200+i)))
		if err := u.flush(); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(u.path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("torn")); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	u.note(&[32]byte{9}, at(150)) // a clock that went back
	check := func() {
		t.Helper()
		uses, err := u.read()
		if err != nil || len(uses) != 4 {
			t.Fatalf("got %v, %v", uses, err)
		}
		if got := uses[[16]byte{9}]; !got.last.Equal(at(202)) || got.count != 4 {
			t.Errorf("got %v", got)
		}
	}
	check()
	if err := u.rewrite(func([16]byte) bool { return true }); err != nil {
		t.Fatal(err)
	}
	check()
	if err := u.rewrite(func(id [16]byte) bool { return id[0] == 9 }); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(u.path); err != nil || st.Size() != usedRow {
		t.Errorf("the file has %d bytes, %v", st.Size(), err)
	}
}

// FuzzDecode feeds the values of the database to what reads them.
func FuzzDecode(f *testing.F) {
	l := Layer{DiffID: blob.Digest{1}, Size: 5, Origins: []string{"r"}, Blobs: []blob.Descriptor{{MediaType: "m", Size: 1, Annotations: map[string]string{"k": "v"}}}}
	r := Record{Name: "n", Outputs: []ChainID{{1}}, Inputs: []ContentID{{2}}, Created: time.Unix(1, 2), Duration: 3}
	f.Add(l.encode())
	f.Add(r.encode())
	f.Add(epochNote{closed: 3, since: 4, boot: "b"}.encode())
	f.Add(appendUses(nil, map[[16]byte]use{{1}: {time.Unix(5, 0), 6}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := decodeLayer(LayerID{}, b); err == nil {
			if again, err := decodeLayer(LayerID{}, l.encode()); err != nil || !bytes.Equal(again.encode(), l.encode()) {
				t.Errorf("a layer changes when it is written and read: %v", err)
			}
		}
		if r, err := decodeRecord(b); err == nil {
			if again, err := decodeRecord(r.encode()); err != nil || !bytes.Equal(again.encode(), r.encode()) {
				t.Errorf("a record changes when it is written and read: %v", err)
			}
		}
		_, _ = decodeEpochNote(b)
		_, _, _ = decodeMount(b)
		parseUses(b)
	})
}
