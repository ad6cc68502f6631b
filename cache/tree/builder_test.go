package tree

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestBuilderReplaces(t *testing.T) {
	file, dir, white := Entry{Kind: File}, Entry{Kind: Dir, Mode: 0o711}, Entry{Kind: Whiteout}
	type set struct {
		path string
		e    Entry
	}
	for _, c := range []struct {
		what string
		sets []set
		want string
	}{
		{"a later file", []set{{"a", dir}, {"a/b", file}, {"a", file}}, "a:1"},
		{"a later parent", []set{{"a", file}, {"a/b", file}}, "a:2 a/b:1"},
		{"a directory named again keeps what is in it", []set{{"a/b", file}, {"a", dir}}, "a:2 a/b:1"},
		{"a directory that came back is empty", []set{{"a/b", file}, {"a", file}, {"a", dir}}, "a:2"},
		{"what was below a replaced directory is not added to", []set{{"a/b/c", file}, {"a", file}, {"a/b/d", file}}, "a:2 a/b:2 a/b/d:1"},
		{"a whiteout of a file that is set", []set{{"a", file}, {"a", white}}, "a:1"},
		{"a whiteout before a directory", []set{{"a", white}, {"a/b", file}}, "a:2! a/b:1"},
		{"a whiteout after a directory", []set{{"a/b", file}, {"a", white}}, "a:2! a/b:1"},
		{"a whiteout alone", []set{{"a", white}, {"a", white}}, "a:8"},
	} {
		n := NewMemNodes()
		var b Builder
		for _, s := range c.sets {
			if err := b.Set(s.path, s.e); err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
		}
		root, err := b.Root(n)
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		var got []string
		m := read(t, n, root)
		for _, p := range m.paths()[1:] {
			s := fmt.Sprintf("%s:%d", p, m[p].Kind)
			if m[p].Opaque {
				s += "!"
			}
			got = append(got, s)
			if e, ok := b.Get(p); !ok || e.Kind != m[p].Kind {
				t.Errorf("%s: Get(%q) = %v, %v", c.what, p, e, ok)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: got %q, want %q", c.what, s, c.want)
		}
	}
}

func TestBuilderOpaque(t *testing.T) {
	n := NewMemNodes()
	b := Builder{MTime: 5}
	for _, err := range []error{
		b.SetOpaque("a/b"),
		b.Set("a/b", Entry{Kind: Dir, Mode: 0o700}), // comes after its mark, and keeps it
		b.Set("a/b/c", Entry{Kind: File}),
		b.SetOpaque(""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Root(n)
	if err != nil {
		t.Fatal(err)
	}
	m := read(t, n, root)
	if !m[""].Opaque || !m["a/b"].Opaque || m["a/b"].Mode != 0o700 || m["a"].Opaque || m["a"].MTime != 5 || m["a"].Mode != 0o755 {
		t.Errorf("got %v", m)
	}
	if !root.Children.ID.marked() {
		t.Error("the tree is not marked as a layer's")
	}
	if found, err := HasOpaque(n, root); !found || err != nil {
		t.Errorf("it has no opaque directory: %v, %v", found, err)
	}
	var whiteouts Builder
	if err := whiteouts.Set("a/b", Entry{Kind: Whiteout}); err != nil {
		t.Fatal(err)
	}
	without, err := whiteouts.Root(n)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := HasOpaque(n, without); found || err != nil {
		t.Errorf("a layer of a whiteout alone has an opaque directory: %v, %v", found, err)
	}
	lower := newModel()
	lower.set("x", Entry{Kind: File})
	r := rand.New(rand.NewPCG(1, 1))
	state, err := Apply(n, lower.build(t, n, r), root)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, n, state); len(got) != 4 || got[""].Opaque || got["a/b"].Opaque {
		t.Errorf("an opaque root gives %v", got)
	}
}

// A subtree that an entry brought stays as it is.
func TestBuilderGraft(t *testing.T) {
	n := NewMemNodes()
	sub := sample(t, n)
	var b Builder
	if err := b.Set("opt/root", sub); err != nil {
		t.Fatal(err)
	}
	if err := b.Set("opt/root/etc/x", Entry{Kind: File}); !errors.Is(err, ErrBadEntry) {
		t.Errorf("setting below a graft: %v", err)
	}
	if err := b.Set("opt/root/x", Entry{Kind: File}); !errors.Is(err, ErrBadEntry) {
		t.Errorf("setting in a graft: %v", err)
	}
	root, err := b.Root(n)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := Lookup(n, root, "opt/root/usr/bin/sh"); err != nil || e.Size != 3 {
		t.Errorf("below a graft: %v, %v", e, err)
	}
}

// PutDir makes the directory that a Builder makes, and takes no wrong names.
func TestPutDir(t *testing.T) {
	n := NewMemNodes()
	var b Builder
	var entries []Entry
	for i := range 1000 {
		e := Entry{Name: fmt.Sprint(i), Kind: File, MTime: int64(i)}
		entries = append(entries, e)
		if err := b.Set(e.Name, e); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Root(n)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := PutDir(n, entries); err != nil || got != root.Children {
		t.Errorf("got %v, %v, want %v", got, err, root.Children)
	}
	if got, err := PutDir(n, nil); err != nil || got != (Ref{}) {
		t.Errorf("of nothing: %v, %v", got, err)
	}
	for _, bad := range [][]Entry{
		{{Name: "a", Kind: File}, {Name: "a", Kind: Dir}}, // twice
		{{Name: "..", Kind: Dir}},                         // out
		{{Name: "", Kind: Dir}},                           // a root inside
		{{Name: "a"}},                                     // no kind
	} {
		if _, err := PutDir(n, bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}
