package tree

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// names gives count entries in name order.
func names(count int) []Entry {
	es := make([]Entry, count)
	for i := range es {
		es[i] = Entry{Name: fmt.Sprintf("%06d", i), Kind: File, Mode: 0o644}
	}
	return es
}

func putDir(t *testing.T, n Nodes, es []Entry) Ref {
	t.Helper()
	ref, err := PutDir(n, es)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// A directory of three levels takes the form that its names say, whichever of
// them go, come or change.
func TestCanonicalLarge(t *testing.T) {
	n := NewMemNodes()
	for seed := range rounds(t) / 2 {
		r := rand.New(rand.NewPCG(8, uint64(seed)))
		from := names(3000 + r.IntN(9000))
		keep := r.IntN(100) // percent of names in the range that changes
		if r.IntN(2) == 0 {
			keep = 0
		}
		lo, hi := r.IntN(len(from)+1), r.IntN(len(from)+1)
		if r.IntN(2) == 0 {
			hi = min(lo+r.IntN(300), len(from))
		}
		if lo > hi {
			lo, hi = hi, lo
		}
		ed := Edit(n, Entry{Kind: Dir, Children: putDir(t, n, from)})
		to := slices.Clone(from[:lo])
		for _, e := range from[lo:hi] {
			var err error
			switch {
			case r.IntN(100) >= keep:
				err = ed.Remove(e.Name)
			case r.IntN(2) == 0:
				e.MTime++
				err = ed.Set(e.Name, e)
				to = append(to, e)
			default:
				x := Entry{Name: e.Name + "x", Kind: Fifo}
				err = ed.Set(x.Name, x)
				to = append(to, e, x)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		to = append(to, from[hi:]...)
		got, err := ed.Root()
		if err != nil {
			t.Fatal(err)
		}
		if want := putDir(t, n, to); got.Children != want {
			t.Fatalf("seed %d: %d names, %d to %d of them changed, %d left: another form", seed, len(from), lo, hi, len(to))
		}
	}
}

// Where a level's last node has a single item, and all before it goes, the root
// is not a node of one item but what that item stands for.
func TestCollapse(t *testing.T) {
	n := NewMemNodes()
	for count := 6000; count < 40_000; count += 25 {
		ref := putDir(t, n, names(count))
		root, err := load(n, ref.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if root.level < 2 {
			continue
		}
		last, err := loadChild(n, &root, root.count-1)
		if err != nil {
			t.Fatal(err)
		}
		if last.count > 1 {
			continue
		}
		leaf, err := loadChild(n, &last, 0)
		if err != nil {
			t.Fatal(err)
		}
		ed := Edit(n, Entry{Kind: Dir, Children: ref})
		for _, e := range names(count - leaf.count) {
			if err := ed.Remove(e.Name); err != nil {
				t.Fatal(err)
			}
		}
		got, err := ed.Root()
		if err != nil {
			t.Fatal(err)
		}
		if want := putDir(t, n, names(count)[count-leaf.count:]); got.Children != want {
			t.Errorf("of %d names the last %d are left: another form", count, leaf.count)
		}
		return
	}
	t.Fatal("no directory whose last node has a single item was found")
}

// Two large directories are compared right, whatever the difference, and a layer
// over one of them is too.
func TestLargeDiff(t *testing.T) {
	n := NewMemNodes()
	for seed := range rounds(t) / 10 {
		r := rand.New(rand.NewPCG(9, uint64(seed)))
		all := names(2000 + r.IntN(6000))
		side := func() []Entry {
			lo := r.IntN(len(all))
			drop := r.IntN(100)
			return slices.DeleteFunc(slices.Clone(all[lo:]), func(Entry) bool { return drop < 50 && r.IntN(100) < drop })
		}
		a := Entry{Kind: Dir, Children: putDir(t, n, side())}
		b := Entry{Kind: Dir, Children: putDir(t, n, side())}
		layer, err := Diff(n, a, b, ByAddr)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Apply(n, a, layer); err != nil || !got.Equal(b) {
			t.Fatalf("seed %d: Apply(a, Diff(a, b)) = %v, %v, want %v", seed, got, err, b)
		}
		union, err := Apply(n, a, b) // a state is a layer that hides nothing
		if err != nil {
			t.Fatal(err)
		}
		m, want := read(t, n, union), read(t, n, a).apply(read(t, n, b))
		if d := m.diffs(want); len(d) > 0 {
			t.Fatalf("seed %d: Apply(a, b): %v", seed, d)
		}
	}
}
