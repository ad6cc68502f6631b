package tree

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// rounds is how many random trees each property is tried on.
func rounds(t testing.TB) int {
	if testing.Short() {
		return 100
	}
	return 400
}

func mustVerify(t *testing.T, n Nodes, root Entry) {
	t.Helper()
	if err := Verify(n, root); err != nil {
		t.Fatalf("verifying: %v", err)
	}
}

func wantTree(t *testing.T, n Nodes, got Entry, want model, what string) {
	t.Helper()
	if d := read(t, n, got).diffs(want); len(d) > 0 {
		t.Fatalf("%s: %v", what, d)
	}
	mustVerify(t, n, got)
}

// A tree has one form, whichever order its entries came in, and whether a
// Builder made it or an Editor changed another one into it.
func TestCanonical(t *testing.T) {
	for seed := range rounds(t) {
		r := rand.New(rand.NewPCG(1, uint64(seed)))
		n := NewMemNodes()
		m := randomModel(r, seed%2 == 0)
		a := m.build(t, n, r)
		wantTree(t, n, a, m, "built")
		if b := m.build(t, n, r); b.Children != a.Children {
			t.Fatalf("seed %d: another order gives another tree", seed)
		}
		to := m.clone()
		to.mutate(r, 1+r.IntN(40), 30, seed%2 == 0)
		if r.IntN(4) == 0 {
			for p := range to { // empties most of the large directory
				if len(p) > 4 && p[:4] == "big/" && r.IntN(40) > 0 {
					to.remove(p)
				}
			}
		}
		got := editInto(t, n, r, a, m, to)
		wantTree(t, n, got, to, "edited")
		if want := to.build(t, n, r); !got.Equal(want) {
			t.Fatalf("seed %d: edited tree differs in form from the built one", seed)
		}
	}
}

// editInto changes root, which is from, into to.
func editInto(t *testing.T, n Nodes, r *rand.Rand, root Entry, from, to model) Entry {
	t.Helper()
	ed := Edit(n, root)
	check := func(err error) {
		if err != nil {
			t.Fatalf("editing: %v", err)
		}
	}
	for _, p := range from.paths() {
		if _, keep := to[p]; keep || p == "" {
			continue
		}
		if dir, _ := split(p); dir != "" {
			if _, ok := to[dir]; !ok {
				continue // went with its directory
			}
		}
		check(ed.Remove(p))
	}
	for _, p := range to.paths() {
		e, old := to[p], from[p]
		switch {
		case old.Equal(e) && old.Kind != None:
			continue
		case old.Kind == Dir && e.Kind == Dir:
			check(ed.SetMeta(p, e))
		default:
			check(ed.Set(p, e))
		}
		if r.IntN(20) == 0 { // settling in between changes nothing
			_, err := ed.Get(p)
			check(err)
			_, err = ed.Root()
			check(err)
		}
	}
	got, err := ed.Root()
	check(err)
	return got
}

// Apply does what the model does, Diff is its inverse, Squash its associate.
func TestLayers(t *testing.T) {
	for seed := range rounds(t) {
		r := rand.New(rand.NewPCG(2, uint64(seed)))
		n := NewMemNodes()
		lower := randomModel(r, false)
		state := lower.build(t, n, r)
		layers := []Entry{}
		for range 1 + r.IntN(3) {
			layer := randomModel(r, true)
			if r.IntN(2) == 0 { // near what it lies on
				layer = lower.clone()
				layer.mutate(r, 1+r.IntN(30), 30, true)
			}
			l := layer.build(t, n, r)
			layers = append(layers, l)
			next, err := Apply(n, state, l)
			if err != nil {
				t.Fatal(err)
			}
			want := lower.apply(layer)
			wantTree(t, n, next, want, "applied")
			if next.Children.ID.marked() {
				t.Fatalf("seed %d: a state is marked", seed)
			}
			tidy, err := Tidy(n, state, l)
			if err != nil {
				t.Fatal(err)
			}
			mustVerify(t, n, tidy)
			if again, err := Apply(n, state, tidy); err != nil || !again.Equal(next) {
				t.Fatalf("seed %d: Apply(lower, Tidy(lower, layer)) = %v, %v, want %v", seed, again, err, next)
			}
			err = Walk(n, tidy, func(p string, e Entry) error {
				if _, err := Lookup(n, state, p); e.Kind == Whiteout && err != nil {
					return fmt.Errorf("the whiteout of %q hides nothing: %w", p, err)
				}
				return nil
			})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			d, err := Diff(n, state, next, ByAddr)
			if err != nil {
				t.Fatal(err)
			}
			mustVerify(t, n, d)
			if again, err := Apply(n, state, d); err != nil || !again.Equal(next) {
				t.Fatalf("seed %d: Apply(lower, Diff(lower, upper)) = %v, %v, want %v", seed, again, err, next)
			}
			byID, err := Diff(n, state, next, ByID)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := Apply(n, state, byID); err != nil || again.ID() != next.ID() {
				t.Fatalf("seed %d: by identity: Apply(lower, Diff(lower, upper)) = %v, %v, want %v", seed, again, err, next)
			}
			lower, state = want, next
		}
		checkSquash(t, n, r, layers)
	}
}

// checkSquash checks that layers squashed do what they do in turn, over any state.
func checkSquash(t *testing.T, n Nodes, r *rand.Rand, layers []Entry) {
	t.Helper()
	one, err := Squash(n, layers...)
	if err != nil {
		t.Fatal(err)
	}
	mustVerify(t, n, one)
	base := randomModel(r, false).build(t, n, r)
	want := base
	for _, l := range layers {
		if want, err = Apply(n, want, l); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Apply(n, base, one); err != nil || !got.Equal(want) {
		t.Fatalf("squashed layers give %v, %v, want %v", got, err, want)
	}
}

// Changed reports exactly the paths that differ.
func TestChanged(t *testing.T) {
	for seed := range rounds(t) {
		r := rand.New(rand.NewPCG(3, uint64(seed)))
		n := NewMemNodes()
		a := randomModel(r, false)
		b := a.clone()
		b.mutate(r, r.IntN(20), 30, false)
		want := map[string]bool{}
		for p, e := range a {
			dir, _ := split(p)
			if x, ok := b[p]; ok && !e.Equal(x) || !ok && b[dir].Kind == Dir && a[dir].Kind == Dir {
				want[p] = true
			}
		}
		for p := range b {
			dir, _ := split(p)
			if _, ok := a[p]; !ok && a[dir].Kind == Dir && b[dir].Kind == Dir {
				want[p] = true
			}
		}
		last := ""
		err := Changed(n, a.build(t, n, r), b.build(t, n, r), ByAddr, func(path string, old, new Entry) error {
			if !want[path] {
				t.Errorf("seed %d: %q reported, and is the same", seed, path)
			}
			if delete(want, path); (old.Kind == None) == (new.Kind == None) && old.Equal(new) {
				t.Errorf("seed %d: %q reported as %v and %v", seed, path, old, new)
			}
			last = path
			return nil
		})
		if err != nil || len(want) > 0 {
			t.Fatalf("seed %d: not reported: %v, %v (last was %q)", seed, want, err, last)
		}
	}
}

// Map and Filter do what they do to a model.
func TestReshape(t *testing.T) {
	for seed := range rounds(t) {
		r := rand.New(rand.NewPCG(4, uint64(seed)))
		n := NewMemNodes()
		m := randomModel(r, false)
		root := m.build(t, n, r)
		want := model{}
		for p, e := range m {
			e.UID, e.MTime = 7, 9
			want[p] = e
		}
		got, err := Map(n, root, func(_ string, e Entry) (Entry, error) {
			e.UID, e.MTime = 7, 9
			return e, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		wantTree(t, n, got, want, "mapped")
		if same, err := Map(n, root, func(_ string, e Entry) (Entry, error) { return e, nil }); err != nil || !same.Equal(root) {
			t.Fatalf("seed %d: mapping to itself gives %v, %v, want %v", seed, same, err, root)
		}
		keep := func(e Entry) bool { return e.UID == 0 }
		want = model{"": m[""]}
		for p, e := range m {
			if e.Kind == Dir || !keep(e) {
				continue
			}
			for p != "" {
				want[p] = m[p]
				p, _ = split(p)
			}
		}
		got, err = Filter(n, root, func(_ string, e Entry) Verdict {
			switch {
			case e.Kind == Dir:
				return Probe
			case keep(e):
				return Keep
			}
			return Drop
		})
		if err != nil {
			t.Fatal(err)
		}
		wantTree(t, n, got, want, "filtered")
	}
}
