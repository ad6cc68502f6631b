package tree

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// FuzzNode reads hostile bytes as a node in every way there is: nothing panics,
// and what CheckNode lets through is canonical.
func FuzzNode(f *testing.F) {
	n := NewMemNodes()
	flat(f, n, 1000)
	sample(f, n)
	randomModel(rand.New(rand.NewPCG(5, 5)), true).build(f, n, rand.New(rand.NewPCG(1, 1)))
	for _, b := range n.nodes {
		f.Add(b)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		ref := Ref{ID: ID{1}, Addr: sha256.Sum256(b)}
		n := NewMemNodes()
		if err := n.PutNode(ref.Addr, b); err != nil {
			t.Fatal(err)
		}
		root := Entry{Kind: Dir, Children: ref}
		for _, path := range []string{"a", "file000500", "zz/y"} {
			_, _ = Lookup(n, root, path)
			_, _ = Resolve(n, root, path, true)
		}
		entries := 0
		for e, err := range NodeEntries(b) {
			if err == nil && e.Kind == None {
				t.Errorf("an entry of no kind: %v", e)
			}
			entries++
		}
		for r, err := range Refs(b) {
			if err == nil && r == (Ref{}) {
				t.Error("a zero Ref")
			}
		}
		small := newModel()
		small.set("a", Entry{Kind: File})
		other := small.build(t, n, rand.New(rand.NewPCG(1, 1)))
		_, _ = Apply(n, other, root)
		_, _ = Apply(n, root, other)
		_, _ = Diff(n, root, other, ByAddr)
		_, _ = Squash(n, root, other)
		_ = Walk(n, root, func(string, Entry) error { return nil })
		ed := Edit(n, root)
		if ed.Set("m", Entry{Kind: File}) == nil {
			_, _ = ed.Root()
		}
		if d, err := openNode(b); err == nil && len(d.ident) > 0 {
			ref.ID = idOf(&d)
			if CheckNode(ref, b) == nil && d.level == 0 && entries != d.count {
				t.Errorf("a checked node of %d entries gives %d", d.count, entries)
			}
		}
	})
}

// idOf gives the identity of a node that may be malformed.
func idOf(d *node) ID {
	marked := false
	for i := range d.count {
		if it, err := d.item(i); err == nil {
			marked = marked || it.markedAt(d.level)
		}
	}
	return ID(sha256.Sum256(d.ident)).setMarked(marked)
}

// FuzzEntry: what DecodeEntry reads, AppendEncode writes.
func FuzzEntry(f *testing.F) {
	r := rand.New(rand.NewPCG(6, 6))
	for range 50 {
		e := randomEntry(r, true)
		e.Name = "name"
		f.Add(e.AppendEncode(nil))
	}
	f.Add(Entry{Kind: Dir, Children: Ref{ID{1}, Addr{2}}}.AppendEncode(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v does not wrap ErrCorrupt", err)
			}
			return
		}
		again, err := DecodeEntry(e.AppendEncode(nil))
		if err != nil || !again.Equal(e) || again.Name != e.Name {
			t.Errorf("%x decodes to %v, and again to %v, %v", b, e, again, err)
		}
	})
}

// FuzzPath: a path that is let in can be set, looked up and resolved to itself.
func FuzzPath(f *testing.F) {
	for _, p := range []string{"", ".", "a/b", "../x", "a//b", "a\x00", "\xff/é"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, path string) {
		n := NewMemNodes()
		var b Builder
		err := b.Set(path, Entry{Kind: Dir, Mode: 0o123})
		if (err == nil) != (CheckPath(path) == nil) {
			t.Fatalf("Set: %v, CheckPath: %v", err, CheckPath(path))
		}
		if err != nil {
			return
		}
		root, err := b.Root(n)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := Lookup(n, root, path); err != nil || e.Mode != 0o123 {
			t.Errorf("Lookup: %v, %v", e, err)
		}
		if got, err := Resolve(n, root, path, true); err != nil || !isRoot(path) && got.Path != path {
			t.Errorf("Resolve: %v, %v", got, err)
		}
	})
}

func TestEncodeRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for range 2000 {
		e := randomEntry(r, true)
		e.Name = []string{"", "n", "\xff"}[r.IntN(3)]
		got, err := DecodeEntry(e.AppendEncode([]byte("before"))[len("before"):])
		if err != nil || !got.Equal(e) || got.Mode != e.Mode || got.Size != e.Size {
			t.Fatalf("%v comes back as %v, %v", e, got, err)
		}
	}
}

// Every way to break a node is seen by CheckNode.
func TestCheckNode(t *testing.T) {
	n := NewMemNodes()
	root := sample(t, n)
	good, err := n.Node(root.Children.Addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckNode(root.Children, good); err != nil {
		t.Fatalf("a good node: %v", err)
	}
	if err := CheckNode(Ref{ID: ID{1}, Addr: root.Children.Addr}, good); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another identity: %v", err)
	}
	for i := range good {
		for _, bit := range []byte{1, 0x10, 0x80} {
			bad := bytes.Clone(good)
			bad[i] ^= bit
			if err := CheckNode(root.Children, bad); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %#x of byte %d: %v", bit, i, err)
			}
			// The same with the hashes made to fit: either the node is malformed,
			// or it is another good node, with its own names.
			ref := Ref{Addr: sha256.Sum256(bad)}
			if d, err := openNode(bad); err == nil {
				ref.ID = idOf(&d)
			}
			if err := CheckNode(ref, bad); err == nil && ref == root.Children {
				t.Fatalf("bit %#x of byte %d: a changed node has the same names", bit, i)
			}
		}
	}
	for i := range good {
		if err := CheckNode(Ref{Addr: sha256.Sum256(good[:i])}, good[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
}

// A node whose entries are in a wrong order, though all its hashes fit.
func TestCheckNodeOrder(t *testing.T) {
	p := page{}
	for _, name := range []string{"b", "a"} {
		r := newRecord(&Entry{Name: name, Kind: File})
		p.add(&r, false)
	}
	id, b := p.encode()
	if err := CheckNode(Ref{ID: id, Addr: sha256.Sum256(b)}, b); !errors.Is(err, ErrCorrupt) {
		t.Errorf("unsorted: %v", err)
	}
	p = page{}
	for i := range leafMax + 1 {
		r := newRecord(&Entry{Name: fmt.Sprintf("n%04d", i), Kind: File})
		p.add(&r, false)
	}
	id, b = p.encode()
	if err := CheckNode(Ref{ID: id, Addr: sha256.Sum256(b)}, b); !errors.Is(err, ErrCorrupt) {
		t.Errorf("not cut where it should be: %v", err)
	}
}

// Verify sees nodes that are missing, or that stand in a wrong place.
func TestVerify(t *testing.T) {
	n := NewMemNodes()
	root := flat(t, n, 2000)
	other := sample(t, n)
	for a, b := range n.nodes {
		delete(n.nodes, a)
		if a != other.Children.Addr && Verify(n, root) == nil && Verify(n, other) == nil {
			t.Errorf("node %.12s is not missed", a)
		}
		n.nodes[a] = b
	}
	p := page{level: 1}
	r := record{full: append(appendName(nil, "zz"), other.Children.ID[:]...), name: []byte("zz"), ident: other.Children.ID[:], rest: other.Children.Addr[:]}
	p.add(&r, false)
	id, b := p.encode()
	ref := Ref{ID: id, Addr: sha256.Sum256(b)}
	if err := n.PutNode(ref.Addr, b); err != nil {
		t.Fatal(err)
	}
	if err := Verify(n, Entry{Kind: Dir, Children: ref}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an inner node with one item: %v", err)
	}
	lying := other
	lying.Children.ID[0]++
	if err := Verify(n, lying); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a wrong identity: %v", err)
	}
}
