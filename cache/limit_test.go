package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/tree"
)

// du is what du -s says of a folder, in bytes.
func du(t testing.TB, dir string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", "--block-size=1", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// breakdown is what takes the space of a state folder, for messages.
func breakdown(c *Cache) string {
	out, _ := exec.Command("sh", "-c", "cd "+c.dir+" && du -k --max-depth=1 . && ls -ls db").CombinedOutput()
	return string(out)
}

// zeros reads as zeros.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// sparse records a layer of one file, a quarter of a gigabyte of zeros with a
// megabyte of data at its end.
func sparse(t testing.TB, c *Cache, n int) {
	t.Helper()
	const size, data = 1 << 28, 1 << 20
	content := func() io.Reader {
		return io.MultiReader(io.LimitReader(zeros{}, size-data), strings.NewReader(random(uint64(n), data)))
	}
	h := sha256.New()
	if _, err := io.Copy(h, content()); err != nil {
		t.Fatal(err)
	}
	e := tree.Entry{Name: "sparse", Kind: tree.File, Mode: 0o644, Size: size, Content: [32]byte(h.Sum(nil))}
	if err := c.Pool().Put(context.Background(), e, content()); err != nil {
		t.Fatal(err)
	}
	var b tree.Builder
	if err := b.Set("sparse", e); err != nil {
		t.Fatal(err)
	}
	root, err := b.Root(c)
	if err != nil {
		t.Fatal(err)
	}
	l := Layer{ID: TreeLayerID(root), Root: root}
	if err := c.PutLayer(l); err != nil {
		t.Fatal(err)
	}
	id, err := c.Extend(ChainID{}, l.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Store(Record{Name: "sparse", Outputs: []ChainID{id}, Created: c.opt.Clock()}, key(n)); err != nil {
		t.Fatal(err)
	}
}

// TestLimit fills a folder with what is hard to count: thousands of small records
// and files, hard links, holes, blobs, values in the database that were removed.
// Whatever limit it is given then, du finds it below.
func TestLimit(t *testing.T) {
	ck := &clock{now: time.Unix(1_700_000_000, 0)}
	c := open(t, t.TempDir(), Options{Clock: ck.Now})
	defer closeCache(t, c)
	var id ChainID
	for i := range 300 {
		ck.add(time.Minute)
		files := map[string]string{"shared": "same", "own": random(uint64(i), 20_000)}
		for f := range 20 {
			files[fmt.Sprintf("d/%d", f)] = fmt.Sprint(i, f)
		}
		if i%10 == 0 {
			id = ChainID{}
		}
		id = build(t, c, i, id, files)
	}
	for i := range 3000 {
		ck.add(time.Second)
		r := Record{Name: fmt.Sprintf("small %d", i), Outputs: []ChainID{id}, Created: ck.Now(), Inputs: []ContentID{sum(fmt.Sprint(i))}}
		if err := c.Store(r, key(10_000+i)); err != nil {
			t.Fatal(err)
		}
	}
	ck.add(time.Hour)
	many := map[string]string{}
	for i := range 20_000 {
		many[fmt.Sprintf("dir%d/file%d", i/100, i)] = fmt.Sprint(i)
	}
	build(t, c, 9000, ChainID{}, many)
	ck.add(time.Hour)
	sparse(t, c, 9001)
	bucket := c.Bucket("stat")
	for i := range 20_000 {
		if err := bucket.Put(fmt.Appendf(nil, "key %d", i), bytes.Repeat([]byte("x"), 100)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.db.flush(); err != nil {
		t.Fatal(err)
	}
	before := du(t, c.dir)
	if got := diskUsed(t, c); got < before-8192 || got > before+8192 {
		t.Errorf("DiskUsage says %d, du %d", got, before)
	}
	t.Logf("%d MB at first\n%s", before>>20, breakdown(c))
	for _, limit := range []int64{before * 9 / 10, before / 2, before / 4, 20 << 20, 8 << 20, 4 << 20, 2 << 20} {
		start := time.Now()
		gone := prune(t, c, PruneOptions{MaxUsed: limit})
		got := du(t, c.dir)
		t.Logf("limit %d: %d, %d items went, %v", limit, got, len(gone), time.Since(start))
		if got > limit {
			t.Errorf("the folder has %d bytes, the limit is %d\n%s", got, limit, breakdown(c))
		}
	}
	t.Logf("%s", breakdown(c))
}
