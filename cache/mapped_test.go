package cache

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// residentFiles gives how many kilobytes of each of the database's files are in the
// process's memory.
func residentFiles(t *testing.T, c *Cache) map[string]int {
	t.Helper()
	dir, err := realPath(c.db.dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	kilobytes := map[string]int{}
	path := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if at, _, _ := strings.Cut(line, " "); !strings.HasSuffix(at, ":") {
			_, path, _ = strings.Cut(line, "/")
		}
		var n int
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &n); err == nil && filepath.Dir("/"+path) == dir {
			kilobytes[filepath.Base(path)] += n
		}
	}
	return kilobytes
}

// TestMappedPagesAreLetGo fills tables and the value log, lets go of what is mapped
// of them, and finds everything then.
func TestMappedPagesAreLetGo(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{LazyClose: true})
	nodes := putBulk(t, c, 0)
	closeCache(t, c)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	c = open(t, link, Options{LazyClose: true})
	defer closeCache(t, c)
	c.db.mapped = func() int64 { return 0 }
	if n := findAll(t, c, nodes); n != 0 {
		t.Fatalf("%d of %d nodes are not here", n, len(nodes))
	}
	kinds := map[string]bool{}
	for name, kb := range residentFiles(t, c) {
		kinds[filepath.Ext(name)] = kinds[filepath.Ext(name)] || kb > 0
	}
	if !kinds[".sst"] || !kinds[".vlog"] {
		t.Fatalf("mapped, before: %v", residentFiles(t, c))
	}
	c.db.flushMu.Lock()
	c.db.unmapPages()
	c.db.flushMu.Unlock()
	for name, kb := range residentFiles(t, c) {
		if ext := filepath.Ext(name); kb > 0 && (ext == ".sst" || ext == ".vlog") {
			t.Errorf("%d kB of %s are mapped still", kb, name)
		}
	}
	c.nodes.clear()
	if n := findAll(t, c, nodes); n != 0 {
		t.Errorf("%d of %d nodes are not here any more", n, len(nodes))
	}
}

// TestLettingGoWhileTablesAreMerged lets go at every chance, while tables are written,
// merged and removed, logs filled and the database compacted, and reads everything all
// the time.
func TestLettingGoWhileTablesAreMerged(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{LazyClose: true})
	c.db.mapped = func() int64 { return math.MaxInt64 }
	nodes := putBulk(t, c, 0)
	var readers sync.WaitGroup
	done := make(chan struct{})
	early := nodes
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				c.nodes.clear()
				if n := findAll(t, c, early); n != 0 {
					t.Errorf("%d of %d nodes are not here", n, len(early))
					return
				}
			}
		})
	}
	for range 12 {
		nodes = append(nodes, putNodes(t, c, uint64(len(nodes)), 2<<20)...)
		if err := c.db.flush(); err != nil {
			t.Error(err)
		}
	}
	if err := c.db.shrink(); err != nil {
		t.Error(err)
	}
	close(done)
	readers.Wait()
	if n := findAll(t, c, nodes); n != 0 {
		t.Errorf("%d of %d nodes are not here", n, len(nodes))
	}
	closeCache(t, c)
	c = open(t, dir, Options{LazyClose: true})
	defer closeCache(t, c)
	if n := findAll(t, c, nodes); n != 0 {
		t.Errorf("%d of %d nodes are not here later", n, len(nodes))
	}
}
