package cache

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// badgerFiles are the files of the database that are Badger's.
func badgerFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	paths, err := glob(filepath.Join(dir, "db"), "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if filepath.Base(p) != recentFile {
			names = append(names, filepath.Base(p))
		}
	}
	return names
}

// TestShortProcessesLeaveBadgerAlone writes little in each of many processes, which
// find all that was written, and no Badger until it has become much.
func TestShortProcessesLeaveBadgerAlone(t *testing.T) {
	dir := t.TempDir()
	value := strings.Repeat("v", recentBytes/8)
	const processes = 20
	settled := 0
	for i := range processes {
		c := open(t, dir, Options{LazyClose: true})
		b := c.Bucket("time")
		for k := range i {
			if v, ok := b.Get(fmt.Appendf(nil, "k%02d", k)); ok != (k%3 != 1) || ok && string(v) != fmt.Sprint(k, value) {
				t.Fatalf("process %d: key %d has %d bytes, %v", i, k, len(v), ok)
			}
		}
		if err := b.Put(fmt.Appendf(nil, "k%02d", i), fmt.Append(nil, i, value)); err != nil {
			t.Fatal(err)
		}
		if i%3 == 1 {
			if err := b.Delete(fmt.Appendf(nil, "k%02d", i)); err != nil {
				t.Fatal(err)
			}
		}
		closeCache(t, c)
		if names := badgerFiles(t, dir); i < 6 && len(names) > 0 {
			t.Fatalf("process %d has made %q", i, names)
		}
		if _, err := os.Lstat(c.Path("db", recentFile)); err != nil {
			settled++
		}
	}
	if settled == 0 || settled > processes/5 {
		t.Errorf("of %d processes %d have written to Badger", processes, settled)
	}
	c := open(t, dir, Options{LazyClose: true})
	defer closeCache(t, c)
	var keys []string
	err := c.Bucket("time").Each(nil, func(k, v []byte) error {
		keys = append(keys, string(k))
		return nil
	})
	if err != nil || len(keys) != 13 || !slices.IsSorted(keys) {
		t.Errorf("got %q, %v", keys, err)
	}
}

// TestNewerThanBadger has values and deletions in the file of what is recent of which
// Badger has other ones, lets Badger take them over, and finds the newer all the time.
func TestNewerThanBadger(t *testing.T) {
	dir := t.TempDir()
	write := func(o Options, values map[string]string) {
		t.Helper()
		c := open(t, dir, o)
		defer closeCache(t, c)
		for k, v := range values {
			var err error
			if v == "" {
				err = c.Bucket("time").Delete([]byte(k))
			} else {
				err = c.Bucket("time").Put([]byte(k), []byte(v))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	want := map[string]string{"b": "new", "c": "old", "d": "new"}
	check := func(when string) {
		t.Helper()
		c := open(t, dir, Options{LazyClose: true})
		defer closeCache(t, c)
		got := map[string]string{}
		if err := c.Bucket("time").Each(nil, func(k, v []byte) error { got[string(k)] = string(v); return nil }); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got, want) || c.Bucket("time").Has([]byte("a")) || !c.Bucket("time").Has([]byte("b")) {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
	}
	write(Options{LazyClose: true, noRecent: true}, map[string]string{"a": "old", "b": "old", "c": "old"})
	write(Options{LazyClose: true}, map[string]string{"a": "", "b": "new", "d": "new"})
	check("beside Badger")
	write(Options{LazyClose: true, noRecent: true}, map[string]string{"e": "x"})
	want["e"] = "x"
	check("in Badger")
	if _, err := os.Lstat(filepath.Join(dir, "db", recentFile)); err == nil {
		t.Error("what Badger has taken over is there still")
	}
}

// TestTornRecent cuts the file of what is recent at each byte and damages each: what
// comes before is found, and what is written then too.
func TestTornRecent(t *testing.T) {
	first := encodeBatch(map[string][]byte{"a": []byte("1"), "b": {}}, []string{"a", "b"})
	second := encodeBatch(map[string][]byte{"a": nil, "c": []byte("3")}, []string{"a", "c"})
	whole := slices.Concat(first, second)
	path := filepath.Join(t.TempDir(), recentFile)
	check := func(what string, file []byte, batches int) {
		t.Helper()
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		want := []map[string][]byte{{}, {"a": []byte("1"), "b": {}}, {"a": nil, "b": {}, "c": []byte("3")}}[batches]
		equal := func(v, w []byte) bool { return bytes.Equal(v, w) && (v == nil) == (w == nil) }
		r, values, err := openRecent(path)
		if err != nil || !maps.EqualFunc(values, want, equal) {
			t.Fatalf("%s: got %q, %v, want %q", what, values, err, want)
		}
		if err := r.append(encodeBatch(map[string][]byte{"d": []byte("4")}, []string{"d"})); err != nil {
			t.Fatal(err)
		}
		if err := r.close(); err != nil {
			t.Fatal(err)
		}
		want = maps.Clone(want)
		want["d"] = []byte("4")
		if _, values, err := openRecent(path); err != nil || !maps.EqualFunc(values, want, equal) {
			t.Fatalf("%s, and written to: got %q, %v, want %q", what, values, err, want)
		}
	}
	for n := range len(whole) + 1 {
		batches := 0
		if n >= len(first) {
			batches++
		}
		if n == len(whole) {
			batches++
		}
		check(fmt.Sprintf("cut at %d", n), whole[:n], batches)
		check(fmt.Sprintf("zeros from %d on", n), append(slices.Clone(whole[:n]), make([]byte, 64)...), batches)
	}
	for n := range whole {
		damaged := slices.Clone(whole)
		damaged[n] ^= 0x40
		batches := 0
		if n >= len(first) {
			batches++
		}
		check(fmt.Sprintf("byte %d damaged", n), damaged, batches)
	}
}

// TestCrashAfterSettling has the machine go down after Badger took over what an
// epoch's closing had made durable: that is found, and what came later is not.
func TestCrashAfterSettling(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{bootID: "first"})
	build(t, c, 1, ChainID{}, map[string]string{"durable": "1"})
	closeCache(t, c)
	if names := badgerFiles(t, dir); len(names) > 0 {
		t.Fatalf("a small build has made %q", names)
	}
	c = open(t, dir, Options{bootID: "first", LazyClose: true, noRecent: true})
	build(t, c, 2, ChainID{}, map[string]string{"open": "2"})
	crash(t, c)
	c = open(t, dir, Options{bootID: "second", LazyClose: true})
	defer closeCache(t, c)
	wholeness(t, c, 1)
	missing(t, c, 2)
}

// TestKilledWithLargeMemtable leaves the log of a large memtable, as a process that is
// killed while it writes much does.
func TestKilledWithLargeMemtable(t *testing.T) {
	dir, killed := t.TempDir(), t.TempDir()
	c := open(t, dir, Options{LazyClose: true})
	nodes := putNodes(t, c, 0, 3*lightMemTable)
	if c.db.load != heavy {
		t.Fatalf("the load is %v, want heavy", c.db.load)
	}
	// The copy is what a process that is killed now leaves.
	if err := os.CopyFS(filepath.Join(killed, "db"), os.DirFS(filepath.Join(dir, "db"))); err != nil {
		t.Fatal(err)
	}
	closeCache(t, c)
	if err := writeVersion(filepath.Join(killed, "version")); err != nil {
		t.Fatal(err)
	}
	c = open(t, killed, Options{LazyClose: true})
	defer closeCache(t, c)
	if n := findAll(t, c, nodes); n != 0 {
		t.Errorf("%d of %d nodes are not here", n, len(nodes))
	}
}

// FuzzRecent feeds the file of what is recent to what reads it.
func FuzzRecent(f *testing.F) {
	f.Add(encodeBatch(map[string][]byte{"a": []byte("1"), "b": {}, "c": nil}, []string{"a", "b", "c"})[recentHead:])
	f.Add([]byte{1, 'a', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		values := map[string][]byte{}
		if !readBatch(b, values) && len(values) > 0 {
			t.Errorf("a batch that is damaged gave %q", values)
		}
		again := map[string][]byte{}
		if len(values) == 0 {
			return
		}
		batch := encodeBatch(values, sortedKeys(values))
		if n := readBatches(batch, again); n != len(batch) || len(again) != len(values) {
			t.Errorf("%q becomes %q", values, again)
		}
	})
}
