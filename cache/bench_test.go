package cache

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
)

// warm makes a folder with n nodes of about a kilobyte and as many records.
func warm(b *testing.B, n int) string {
	dir := b.TempDir()
	c := open(b, dir, Options{})
	root := putTree(b, c, map[string]string{"a": "1"})
	l := Layer{ID: TreeLayerID(root), Root: root}
	if err := c.PutLayer(l); err != nil {
		b.Fatal(err)
	}
	var id ChainID
	for i := range n {
		node := nodeOf(uint64(i))
		if err := c.PutNode(sha256.Sum256(node), node); err != nil {
			b.Fatal(err)
		}
		var err error
		if id, err = c.Extend(id, l.ID); err != nil {
			b.Fatal(err)
		}
		if err := c.Store(Record{Outputs: []ChainID{id}, Name: "step"}, key(i)); err != nil {
			b.Fatal(err)
		}
	}
	closeCache(b, c)
	return dir
}

func nodeOf(i uint64) []byte {
	b := make([]byte, 1000)
	binary.LittleEndian.PutUint64(b, i)
	return b
}

// BenchmarkOpen opens a folder, finds a record, and closes it: what a build that
// is all cached does with its state.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{0, 1000, 50_000} {
		b.Run(fmt.Sprintf("records=%d", n), func(b *testing.B) {
			dir := warm(b, n)
			b.ResetTimer()
			for range b.N {
				c := open(b, dir, Options{})
				if n > 0 {
					if _, err := c.Lookup(key(0)); err != nil {
						b.Fatal(err)
					}
				}
				closeCache(b, c)
			}
		})
	}
}

func BenchmarkPutNode(b *testing.B) {
	c := open(b, b.TempDir(), Options{LazyClose: true})
	defer closeCache(b, c)
	nodes := make([][]byte, b.N)
	for i := range nodes {
		nodes[i] = nodeOf(uint64(i))
	}
	b.SetBytes(1000)
	b.ResetTimer()
	for _, n := range nodes {
		if err := c.PutNode(sha256.Sum256(n), n); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNode(b *testing.B) {
	c := open(b, b.TempDir(), Options{LazyClose: true})
	defer closeCache(b, c)
	const n = 50_000
	addrs := make([]tree.Addr, n)
	for i := range addrs {
		node := nodeOf(uint64(i))
		addrs[i] = sha256.Sum256(node)
		if err := c.PutNode(addrs[i], node); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.db.flush(); err != nil {
		b.Fatal(err)
	}
	for _, in := range []struct {
		name string
		n    int
	}{{"memory", 1000}, {"database", n}} {
		b.Run(in.name, func(b *testing.B) {
			for i := range b.N {
				if _, err := c.Node(addrs[i%in.n]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	c := open(b, warm(b, 10_000), Options{LazyClose: true})
	defer closeCache(b, c)
	b.ResetTimer()
	for i := range b.N {
		if _, err := c.Lookup(key(i % 10_000)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStore(b *testing.B) {
	c := open(b, b.TempDir(), Options{LazyClose: true})
	defer closeCache(b, c)
	for i := range b.N {
		if err := c.Store(Record{Name: "step", Duration: 1, Vertex: key(i)}, key(2*i), key(2*i+1)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUsage lists and prunes a folder with a layer of 20,000 files.
func BenchmarkUsage(b *testing.B) {
	c := open(b, b.TempDir(), Options{LazyClose: true})
	defer closeCache(b, c)
	files := map[string]string{}
	for i := range 20_000 {
		files[fmt.Sprintf("d%d/f%d", i/100, i)] = fmt.Sprint(i)
	}
	build(b, c, 1, ChainID{}, files)
	b.ResetTimer()
	b.Run("usage", func(b *testing.B) {
		for range b.N {
			if _, err := c.Usage(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("prune", func(b *testing.B) {
		for range b.N {
			prune(b, c, PruneOptions{Filter: onlyLoose})
		}
	})
}
