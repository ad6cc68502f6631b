package tree

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// model is a tree as a plain map from path to entry, the root at "". Children
// are left out: the paths say them.
type model map[string]Entry

func newModel() model { return model{"": {Kind: Dir, Mode: 0o755}} }

// read gives the model of a stored tree.
func read(t testing.TB, n Nodes, root Entry) model {
	t.Helper()
	m := model{}
	if err := Walk(n, root, func(path string, e Entry) error {
		e.Children = Ref{}
		m[path] = e
		return nil
	}); err != nil {
		t.Fatalf("walking: %v", err)
	}
	return m
}

// build stores a model by a Builder, its entries in random order.
func (m model) build(t testing.TB, n Nodes, r *rand.Rand) Entry {
	t.Helper()
	paths := m.paths()
	r.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	var b Builder
	for _, p := range paths {
		if err := b.Set(p, m[p]); err != nil {
			t.Fatalf("setting %q: %v", p, err)
		}
	}
	root, err := b.Root(n)
	if err != nil {
		t.Fatalf("building: %v", err)
	}
	return root
}

func (m model) paths() []string {
	ps := make([]string, 0, len(m))
	for p := range m {
		ps = append(ps, p)
	}
	slices.Sort(ps)
	return ps
}

func (m model) clone() model {
	c := make(model, len(m))
	for p, e := range m {
		c[p] = e
	}
	return c
}

// remove removes path and all below it.
func (m model) remove(path string) {
	delete(m, path)
	for p := range m {
		if strings.HasPrefix(p, path+"/") {
			delete(m, p)
		}
	}
}

// set puts e at path, with the name that belongs there.
func (m model) set(path string, e Entry) {
	if path != "" {
		_, e.Name = split(path)
	}
	m[path] = e
}

// apply puts a layer over m, the slow and plain way.
func (m model) apply(layer model) model {
	out := m.clone()
	for _, p := range layer.paths() { // parents before what is in them
		e := layer[p]
		old, there := out[p]
		switch {
		case e.Kind == Whiteout:
			out.remove(p)
			continue
		case there && (e.Kind != Dir || old.Kind != Dir):
			out.remove(p)
		case there && e.Opaque && p == "":
			clear(out)
		case there && e.Opaque:
			out.remove(p)
		}
		e.Opaque = false
		out[p] = e
	}
	return out
}

func (m model) diffs(o model) []string {
	var out []string
	for p, e := range m {
		if x, ok := o[p]; !ok {
			out = append(out, "only left: "+p)
		} else if !e.Equal(x) {
			out = append(out, fmt.Sprintf("%q: %+v != %+v", p, e, x))
		}
	}
	for p := range o {
		if _, ok := m[p]; !ok {
			out = append(out, "only right: "+p)
		}
	}
	slices.Sort(out)
	return out[:min(len(out), 10)]
}

// randomEntry makes an entry of a random kind; few values, so that equal ones
// come up. In layers whiteouts come up too.
func randomEntry(r *rand.Rand, layer bool) Entry {
	e := Entry{Mode: uint32(r.IntN(2))*0o111 + 0o644, UID: uint32(r.IntN(3)) * 40000, GID: uint32(r.IntN(2)), MTime: int64(r.IntN(3)) - 1}
	if r.IntN(8) == 0 {
		e.Xattrs = []Xattr{{"security.capability", "\x01\x00"}, {"user.x", strings.Repeat("v", r.IntN(300))}}
	}
	kinds := []Kind{File, File, File, Dir, Dir, Symlink, Fifo, CharDev, BlockDev, Socket}
	if layer {
		kinds = append(kinds, Whiteout, Whiteout, Whiteout)
	}
	switch e.Kind = kinds[r.IntN(len(kinds))]; e.Kind {
	case File:
		e.Size, e.Tag = int64(r.IntN(3))<<20, uint64(r.IntN(2))
		e.Content[0] = byte(r.IntN(4))
	case Dir:
		e.Opaque = layer && r.IntN(4) == 0
	case Symlink:
		e.Mode, e.Target = 0o777, []string{"a", "../b", "/c"}[r.IntN(3)]
	case CharDev, BlockDev:
		e.Dev = uint64(r.IntN(300))
	case Whiteout:
		e = Entry{Kind: Whiteout}
	}
	return e
}

// mutate makes count random changes.
func (m model) mutate(r *rand.Rand, count, names int, layer bool) {
	dirs := func() []string {
		var ds []string
		for _, p := range m.paths() {
			if m[p].Kind == Dir {
				ds = append(ds, p)
			}
		}
		return ds
	}
	ds := dirs()
	for range count {
		d := ds[r.IntN(len(ds))]
		p := join(d, fmt.Sprintf("n%0*d", 1+r.IntN(3), r.IntN(names)))
		if old, ok := m[p]; ok && (r.IntN(3) == 0 || old.Kind == Dir) {
			if r.IntN(4) == 0 || old.Kind != Dir {
				m.remove(p)
			} else {
				old.MTime++
				m[p] = old
			}
		} else if e := randomEntry(r, layer); !ok || e.Kind != Dir {
			m.remove(p)
			m.set(p, e)
		}
		ds = dirs()
	}
}

func randomModel(r *rand.Rand, layer bool) model {
	m := newModel()
	m.mutate(r, r.IntN(60), 1+r.IntN(30), layer)
	if r.IntN(6) == 0 { // a directory of several nodes
		for i := range 200 + r.IntN(1500) {
			e := randomEntry(r, layer)
			m.set(fmt.Sprintf("big/%x", i*7919%4001), e)
		}
		m.set("big", Entry{Kind: Dir, Mode: 0o700})
	}
	return m
}
