package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// clock is a clock that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// random gives n bytes that no file system makes smaller.
func random(seed uint64, n int) string {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return string(b)
}

// build records a chain under key n, with a folder and a blob for its layer.
func build(t testing.TB, c *Cache, n int, parent ChainID, files map[string]string) ChainID {
	t.Helper()
	id := putChain(t, c, parent, files)
	ch, err := c.Chain(id)
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.Layer(ch.Layer)
	if err != nil {
		t.Fatal(err)
	}
	folder := c.Path("layers", LayerFolder(l.Root))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	err = tree.Walk(c, l.Root, func(path string, e tree.Entry) error {
		if e.Kind == tree.File && !strings.Contains(path, "/") {
			if err := c.Pool().Link(e, dir, path); !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	data := random(uint64(n)+1000, 10_000)
	d := blob.Digest(sum(data))
	if err := c.Blobs().Put(context.Background(), d, int64(len(data)), strings.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	l.Blobs = []blob.Descriptor{{MediaType: "x", Digest: d, Size: int64(len(data))}}
	if err := c.PutLayer(l); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Merged(id); err != nil {
		t.Fatal(err)
	}
	r := Record{Outputs: []ChainID{id}, Name: fmt.Sprintf("step %d", n), Created: c.opt.Clock(), Duration: time.Second}
	if err := c.Store(r, key(n), key(n+1_000_000)); err != nil {
		t.Fatal(err)
	}
	return id
}

// wholeness checks that all that a record promises is here.
func wholeness(t testing.TB, c *Cache, n int) {
	t.Helper()
	r, err := c.Lookup(key(n))
	if err != nil {
		t.Errorf("record %d: %v", n, err)
		return
	}
	for _, id := range r.Outputs {
		layers, err := c.Layers(id)
		if err != nil {
			t.Errorf("record %d: %v", n, err)
		}
		for _, l := range layers {
			for _, b := range l.Blobs {
				if !c.Blobs().Has(b.Digest) {
					t.Errorf("record %d: blob %s is gone", n, b.Digest)
				}
			}
			err := tree.Walk(c, l.Root, func(path string, e tree.Entry) error {
				if e.Kind == tree.File && !c.Pool().Has(e) {
					return fmt.Errorf("%s is not in the pool", path)
				}
				return nil
			})
			if err != nil {
				t.Errorf("record %d: %v", n, err)
			}
			if _, err := os.Stat(c.Path("layers", LayerFolder(l.Root))); err != nil {
				t.Errorf("record %d: %v", n, err)
			}
		}
		if _, err := c.Merged(id); err != nil {
			t.Errorf("record %d: %v", n, err)
		}
	}
}

func missing(t testing.TB, c *Cache, n int) {
	t.Helper()
	var miss *MissError
	if _, err := c.Lookup(key(n)); !errors.As(err, &miss) {
		t.Errorf("record %d: got %v, want a MissError", n, err)
	}
}

func prune(t testing.TB, c *Cache, o PruneOptions) []Usage {
	t.Helper()
	gone, err := c.Prune(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return gone
}

func diskUsed(t testing.TB, c *Cache) int64 {
	t.Helper()
	n, err := c.DiskUsage()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func countFiles(t testing.TB, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestPruneAllEmpties(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	var id ChainID
	for i := range 20 {
		id = build(t, c, i, id, map[string]string{fmt.Sprintf("f%d", i): random(uint64(i), 50_000), "shared": "same"})
	}
	if _, release, err := c.CacheMount("go-build", nil); err != nil {
		t.Fatal(err)
	} else {
		release()
	}
	if err := c.Bucket("stat").Put([]byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	before := diskUsed(t, c)
	gone := prune(t, c, PruneOptions{All: true})
	if len(gone) != 21 {
		t.Errorf("%d lines went, want 21", len(gone))
	}
	usage, err := c.Usage(context.Background())
	if err != nil || len(usage) != 0 {
		t.Errorf("left: %v, %v", usage, err)
	}
	for _, dir := range []string{"files", "blobs", "layers", "chunks", "recipes", "mounts", "partial", "tmp"} {
		if n := countFiles(t, c.Path(dir)); n != 0 {
			t.Errorf("%d files are left in %s", n, dir)
		}
	}
	if after := diskUsed(t, c); after > 2<<20 {
		t.Errorf("the folder has %d bytes, before %d", after, before)
	}
	missing(t, c, 3)
	// The folder can be used on.
	build(t, c, 1, ChainID{}, map[string]string{"f": "again"})
	wholeness(t, c, 1)
}

// onlyLoose lets go what no record leads to.
func onlyLoose(u Usage) bool { return u.Kind == KindInternal }

func TestPruneLooseKeepsRecords(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	base := build(t, c, 1, ChainID{}, map[string]string{"a": "1"})
	build(t, c, 2, base, map[string]string{"b": "2"})
	loose := putTree(t, c, map[string]string{"loose": "layer"})
	if err := c.PutLayer(Layer{ID: TreeLayerID(loose), Root: loose}); err != nil {
		t.Fatal(err)
	}
	putTree(t, c, map[string]string{"nobody's": "file"})
	w, err := c.Blobs().Ingest(context.Background(), sum("abc"), 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	gone := prune(t, c, PruneOptions{Filter: onlyLoose})
	if len(gone) != 1 || gone[0].Kind != "internal" {
		t.Errorf("went: %+v, want the loose layer", gone)
	}
	wholeness(t, c, 1)
	wholeness(t, c, 2)
	if n := countFiles(t, c.Path("files")); n != 2 {
		t.Errorf("%d files are in the pool, want 2", n)
	}
	if n := countFiles(t, c.Path("partial")); n != 0 {
		t.Errorf("%d partial downloads are left", n)
	}
}

func TestPruneBounds(t *testing.T) {
	ck := &clock{now: time.Unix(1_700_000_000, 0)}
	c := open(t, t.TempDir(), Options{Clock: ck.Now})
	defer closeCache(t, c)
	for i := range 10 {
		ck.add(time.Hour)
		// Each has half a megabyte of its own and as much with its neighbour.
		build(t, c, i, ChainID{}, map[string]string{
			"own": random(uint64(i), 500_000), "left": random(uint64(100+i/2), 500_000),
		})
	}
	ck.add(time.Hour)
	if _, err := c.Lookup(key(0)); err != nil { // the oldest was used last
		t.Fatal(err)
	}
	usage, err := c.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, u := range usage {
		sum += u.Size
		if !u.Shared && (u.Size < 500_000 || u.Size > 1_100_000) {
			t.Errorf("%s has %d bytes, want half a megabyte or one", u.Description, u.Size)
		}
		want := 1
		if u.Description == "step 0" {
			want = 2
		}
		if u.Uses != want {
			t.Errorf("%s: %d uses, want %d", u.Description, u.Uses, want)
		}
	}

	if sum < 15*500_000 || sum > 16*500_000 {
		t.Errorf("all have %d bytes together, want about 7,500,000", sum)
	}

	// Longest unused first, until the folder is small enough.
	const limit = 6 << 20
	before := diskUsed(t, c)
	gone := prune(t, c, PruneOptions{MaxUsed: limit})
	if got := diskUsed(t, c); got > limit || before <= limit || got < limit-2<<20 {
		t.Errorf("the folder has %d bytes of %d, the limit is %d", got, before, limit)
	}
	for i, u := range gone {
		if want := fmt.Sprintf("step %d", i+1); u.Description != want {
			t.Errorf("%s went as number %d, want %s", u.Description, i, want)
		}
	}
	wholeness(t, c, 0)
	missing(t, c, 1)
	for i := len(gone) + 1; i < 10; i++ {
		wholeness(t, c, i)
	}

	// Older than three hours; looking them up above used them all.
	ck.add(2 * time.Hour)
	wholeness(t, c, 9)
	ck.add(2 * time.Hour)
	prune(t, c, PruneOptions{KeepDuration: 3 * time.Hour})
	wholeness(t, c, 9)
	missing(t, c, 8)

	// Only what the filter lets through.
	build(t, c, 20, ChainID{}, map[string]string{"x": "y"})
	prune(t, c, PruneOptions{All: true, Filter: func(u Usage) bool { return u.Description == "step 9" }})
	missing(t, c, 9)
	wholeness(t, c, 20)
}

func TestPruneKeepsLeased(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	build(t, c, 1, ChainID{}, map[string]string{"a": "1"})
	build(t, c, 2, ChainID{}, map[string]string{"b": "2"})
	held := putChain(t, c, ChainID{}, map[string]string{"held": "x"})
	unused := fileEntry("unused", []byte("unused"))
	if err := c.Pool().Put(context.Background(), unused, strings.NewReader("unused")); err != nil {
		t.Fatal(err)
	}

	l := c.Lease()
	if _, err := c.Lookup(key(1)); err != nil { // found under the lease
		t.Fatal(err)
	}
	l.Hold(held)
	putTree(t, c, map[string]string{"put": "under the lease"})
	if !c.Pool().Has(fileEntry("unused", []byte("unused"))) {
		t.Fatal("the file is not in the pool")
	}
	path, release, err := c.CacheMount("m", func(dir string) error { return os.WriteFile(filepath.Join(dir, "f"), nil, 0o644) })
	if err != nil {
		t.Fatal(err)
	}
	usage, err := c.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range usage {
		if want := u.Description != "step 2"; u.InUse != want {
			t.Errorf("%s: in use is %v, want %v", u.Description, u.InUse, want)
		}
	}
	prune(t, c, PruneOptions{All: true})
	wholeness(t, c, 1)
	missing(t, c, 2)
	if _, err := c.Merged(held); err != nil {
		t.Errorf("held: %v", err)
	}
	put := fileEntry("put", []byte("under the lease"))
	if !c.Pool().Has(put) || !c.Pool().Has(unused) {
		t.Error("files that were used under the lease are gone")
	}
	if _, err := os.Stat(filepath.Join(path, "f")); err != nil {
		t.Errorf("a cache mount in use is gone: %v", err)
	}
	release()
	l.Release()
	prune(t, c, PruneOptions{All: true})
	missing(t, c, 1)
	if c.Pool().Has(put) || c.Pool().Has(unused) {
		t.Error("files are left after the lease")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the cache mount is left")
	}
}

// TestPruneWhileBuilding builds with leases in several goroutines while another
// prunes everything over and over: what a build has found or made must be whole
// until its lease ends.
func TestPruneWhileBuilding(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	stop := make(chan struct{})
	var pruner, builders sync.WaitGroup
	pruner.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := c.Prune(context.Background(), PruneOptions{All: true}); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for b := range 4 {
		builders.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(b)))
			for range 60 {
				l := c.Lease()
				var id ChainID
				var made []int
				for step := range 1 + r.IntN(4) {
					n := r.IntN(3) + 10*step
					files := map[string]string{}
					for f := range 3 {
						files[fmt.Sprintf("d%d/f%d", n, f)] = fmt.Sprintf("content %d", r.IntN(4))
					}
					files["top"] = fmt.Sprint(n)
					id = build(t, c, n+100*b, id, files)
					l.Hold(id)
					made = append(made, n+100*b)
				}
				for _, n := range made {
					wholeness(t, c, n)
				}
				l.Release()
			}
		})
	}
	builders.Wait()
	close(stop)
	pruner.Wait()
	prune(t, c, PruneOptions{All: true})
	if n := countFiles(t, c.Path("files")); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

// TestBucketsAreBounded has one bucket outgrow a limit: it is emptied, and no other.
func TestBucketsAreBounded(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	for i := range 100 {
		for name, size := range map[string]int{"large": 1000, "larger names": 1000, "small": 10} {
			if err := c.Bucket(name).Put([]byte{byte(i)}, bytes.Repeat([]byte{1}, size)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.boundBuckets(50_000); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"large": 0, "larger names": 0, "small": 100} {
		got := 0
		if err := c.Bucket(name).Each(nil, func(_, _ []byte) error { got++; return nil }); err != nil || got != want {
			t.Errorf("the bucket %q has %d values, %v; want %d", name, got, err, want)
		}
	}
}
