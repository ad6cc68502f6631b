package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
)

// putNodes puts and flushes nodes of so many bytes, numbered from first on.
func putNodes(t *testing.T, c *Cache, first uint64, bytes int) (nodes []uint64) {
	t.Helper()
	for n := first; bytes > 0; n++ {
		node := nodeOf(n)
		if err := c.PutNode(sha256.Sum256(node), node); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
		bytes -= len(node)
	}
	if err := c.db.flush(); err != nil {
		t.Fatal(err)
	}
	return nodes
}

// putBulk makes Badger's load bulk, after less than it takes otherwise, and puts
// nodes before and after that. It gives the numbers of the nodes, which begin with first.
func putBulk(t *testing.T, c *Cache, first uint64) (nodes []uint64) {
	t.Helper()
	c.db.bulkAfter, c.db.recentMax = 200<<10, 0
	nodes = putNodes(t, c, first, 150<<10)
	nodes = append(nodes, putNodes(t, c, first+uint64(len(nodes)), 150<<10)...)
	if c.db.load != bulk {
		t.Fatalf("the load is %v, want bulk", c.db.load)
	}
	return nodes
}

// logs gives the sizes of the files of the value log that hold something.
func logs(t *testing.T, dir string) (sizes []int64) {
	t.Helper()
	paths, err := glob(filepath.Join(dir, "db"), "*.vlog")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() >= bulkValue {
			sizes = append(sizes, st.Size())
		}
	}
	return sizes
}

// findAll looks for nodes, and gives how many are not here.
func findAll(t *testing.T, c *Cache, nodes []uint64) (missing int) {
	t.Helper()
	c.nodes.clear()
	for _, n := range nodes {
		want := nodeOf(n)
		got, err := c.Node(sha256.Sum256(want))
		if errors.Is(err, fs.ErrNotExist) {
			missing++
		} else if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("node %d: %v", n, err)
		}
	}
	return missing
}

// TestBulk writes in bulk in more processes than the log may have files, and
// finds everything after each.
func TestBulk(t *testing.T) {
	dir := patternDir(t)
	var nodes []uint64
	most := 0
	for range maxLogs + 5 {
		c := open(t, dir, Options{LazyClose: true})
		nodes = append(nodes, putBulk(t, c, uint64(len(nodes)))...)
		closeCache(t, c)
		sizes := logs(t, dir)
		most = max(most, len(sizes))
		if len(sizes) == 0 {
			t.Fatal("a bulk write left nothing in the value log")
		}
	}
	// The one that is being written counts as a full one.
	if most > maxLogs+2 {
		t.Errorf("the value log had %d files, want %d at most", most, maxLogs+2)
	}
	if n := len(logs(t, dir)); n >= maxLogs {
		t.Errorf("the value log has %d files: they were not merged", n)
	}
	c := open(t, dir, Options{LazyClose: true})
	defer closeCache(t, c)
	if n := findAll(t, c, nodes); n != 0 {
		t.Errorf("%d of %d nodes are not here", n, len(nodes))
	}
}

// TestCrashInBulk loses what a bulk write had not brought to the disk: a part of
// the value log that tables point into.
func TestCrashInBulk(t *testing.T) {
	for _, row := range []struct {
		name string
		lose func(path string, size int64) error
	}{
		// The file's size did not reach the disk.
		{"cut", func(path string, size int64) error { return os.Truncate(path, size/2) }},
		// Its size did, and its pages did not.
		{"zeros", func(path string, size int64) error {
			return errors.Join(os.Truncate(path, size/2), os.Truncate(path, size))
		}},
		// Nothing of it did.
		{"empty", func(path string, _ int64) error { return os.Truncate(path, 0) }},
		{"gone", func(path string, _ int64) error { return os.Remove(path) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			c := open(t, dir, Options{bootID: "first"})
			build(t, c, 1, ChainID{}, map[string]string{"durable": "1"})
			if err := c.closeEpoch(); err != nil {
				t.Fatal(err)
			}
			nodes := putBulk(t, c, 0)
			build(t, c, 2, ChainID{}, map[string]string{"open": "2"})
			crash(t, c)
			paths, err := filepath.Glob(filepath.Join(dir, "db", "*.vlog"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range paths {
				st, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := row.lose(path, st.Size()); err != nil {
					t.Fatal(err)
				}
			}

			c = open(t, dir, Options{bootID: "second", Warn: func(err error) { t.Errorf("warned: %v", err) }})
			defer closeCache(t, c)
			wholeness(t, c, 1)
			missing(t, c, 2)
			lost := findAll(t, c, nodes)
			if lost == 0 {
				t.Error("nothing was lost, so that nothing was tested")
			}
			// What was lost is written again.
			for _, n := range nodes {
				node := nodeOf(n)
				if err := c.PutNode(tree.Addr(sha256.Sum256(node)), node); err != nil {
					t.Fatal(err)
				}
			}
			if n := findAll(t, c, nodes); n != 0 {
				t.Errorf("%d nodes are not here though they were put again", n)
			}
		})
	}
}

// patternDir is a state folder whose path is like a pattern of names.
func patternDir(t *testing.T) string { return filepath.Join(t.TempDir(), "job[1]*") }

// TestFolderLikeAPattern has what earlier processes left behind found in such a folder:
// what they had thrown away, a database that was set aside, a log that a crash emptied.
func TestFolderLikeAPattern(t *testing.T) {
	dir := patternDir(t)
	c := open(t, dir, Options{})
	build(t, c, 1, ChainID{}, map[string]string{"a": "1"})
	closeCache(t, c)
	for _, name := range []string{"trash-1", "db.corrupt-1", "db/000099.vlog"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c = open(t, dir, Options{Warn: func(err error) { t.Error(err) }})
	wholeness(t, c, 1)
	if _, err := c.Prune(t.Context(), PruneOptions{Filter: onlyLoose}); err != nil {
		t.Error(err)
	}
	closeCache(t, c)
	left, err := glob(dir, "trash-*", "db.corrupt-*")
	if err != nil || len(left) > 0 {
		t.Errorf("left are %q, %v", left, err)
	}
}
