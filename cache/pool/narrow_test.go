package pool

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// folders gives what the folders of a pool take, without their files.
func folders(t *testing.T, p *Pool) (n int, bytes int64) {
	t.Helper()
	entries, err := os.ReadDir(p.root.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(p.root.Name(), e.Name()), &st); err != nil {
			t.Fatal(err)
		}
		n, bytes = n+1, bytes+st.Blocks*512
	}
	return n, bytes
}

// TestNarrow fills folders, empties most of them, and narrows them while files are
// put: the folders get small, and no file is lost.
func TestNarrow(t *testing.T) {
	p, _ := openPool(t, Options{})
	file := func(i int) (string, []byte) { return fmt.Sprintf("f%d", i), fmt.Appendf(nil, "content %d", i) }
	for i := range 20_000 {
		name, data := file(i)
		put(t, p, entry(name, data), data)
	}
	keep := map[FileID]bool{}
	for i := range 40 {
		keep[IDOf(entry(file(i)))] = true
	}
	if _, err := p.Sweep(func(id FileID) bool { return keep[id] }); err != nil {
		t.Fatal(err)
	}
	_, before := folders(t, p)
	var puts sync.WaitGroup
	for w := range 2 {
		puts.Go(func() {
			for i := range 500 {
				name, data := file(100_000 + 1000*w + i)
				put(t, p, entry(name, data), data)
			}
		})
	}
	for range 3 {
		if err := p.Narrow(); err != nil {
			t.Error(err)
		}
	}
	puts.Wait()
	check := func(i int) {
		if e := entry(file(i)); string(read(t, p, e)) != fmt.Sprintf("content %d", i) {
			t.Errorf("file %d is another", i)
		}
	}
	for i := range 40 {
		check(i)
	}
	for w := range 2 {
		for i := range 500 {
			check(100_000 + 1000*w + i)
		}
	}
	if _, after := folders(t, p); after > before/2 {
		t.Errorf("the folders take %d bytes, before %d", after, before)
	}
	if _, err := p.Sweep(func(FileID) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if err := p.Narrow(); err != nil {
		t.Fatal(err)
	}
	if n, _ := folders(t, p); n != 0 {
		t.Errorf("%d folders are left without files", n)
	}
	name, data := file(1)
	put(t, p, entry(name, data), data)
	check(1)
}
