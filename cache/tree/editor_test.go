package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestEditor(t *testing.T) {
	n := NewMemNodes()
	ed := Edit(n, sample(t, n))
	like := Entry{Mode: 0o750, UID: 5}
	for _, c := range []struct {
		what string
		got  error
		want error
	}{
		{"a file", ed.Set("etc/new", Entry{Kind: File}), nil},
		{"a missing parent", ed.Set("no/new", Entry{Kind: File}), fs.ErrNotExist},
		{"a file for a parent", ed.Set("etc/passwd/x", Entry{Kind: File}), syscall.ENOTDIR},
		{"a root that is none", ed.Set("", Entry{Kind: File}), ErrBadEntry},
		{"folders", ed.MkdirAll("srv/a/b", like), nil},
		{"folders that are there", ed.MkdirAll("usr/bin", like), nil},
		{"a file among folders", ed.MkdirAll("etc/passwd/x", like), syscall.ENOTDIR},
		{"a link among folders", ed.MkdirAll("bin/x", like), syscall.ENOTDIR},
		{"removing", ed.Remove("usr/bin"), nil},
		{"removing again", ed.Remove("usr/bin"), fs.ErrNotExist},
		{"removing below", ed.Remove("usr/bin/sh"), fs.ErrNotExist},
		{"removing the root", ed.Remove("."), ErrBadPath},
		{"metadata of a file", ed.SetMeta("etc/passwd", Entry{Kind: Dir}), syscall.ENOTDIR},
		{"metadata", ed.SetMeta("etc", Entry{Kind: Dir, Mode: 0o111}), nil},
		{"the root's metadata", ed.SetMeta("", Entry{Kind: Dir, Mode: 0o500}), nil},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	// A tree put somewhere is one with what was edited in it before.
	etc, err := ed.Get("etc")
	if err != nil {
		t.Fatal(err)
	}
	if err := ed.Set("srv/copy", etc); err != nil {
		t.Fatal(err)
	}
	if err := ed.Remove("srv/copy/new"); err != nil {
		t.Fatal(err)
	}
	root, err := ed.Root()
	if err != nil {
		t.Fatal(err)
	}
	mustVerify(t, n, root)
	m := read(t, n, root)
	_, copied := m["srv/copy/new"]
	if m["etc/new"].Kind != File || copied || m["srv/copy/abs"].Kind != Symlink || m[""].Mode != 0o500 ||
		m["etc"].Mode != 0o111 || m["srv/a"].UID != 5 || m["srv/a/b"].Mode != 0o750 || m["usr"].Mode != 0o755 {
		t.Errorf("got %v", m)
	}
	if _, ok := m["usr/bin"]; ok {
		t.Error("usr/bin is still there")
	}
}

// An edit writes the nodes on its way and no others.
func TestEditWritesLittle(t *testing.T) {
	n := NewMemNodes()
	root := flat(t, n, 100_000)
	r := rand.New(rand.NewPCG(1, 2))
	nodes, bytes := n.Written()
	const edits = 300
	for i := range edits {
		ed := Edit(n, root)
		p := fmt.Sprintf("file%06d", r.IntN(100_000))
		if i%3 == 0 {
			p += "new"
		}
		if err := ed.Set(p, Entry{Kind: File, MTime: int64(i)}); err != nil {
			t.Fatal(err)
		}
		var err error
		if root, err = ed.Root(); err != nil {
			t.Fatal(err)
		}
	}
	nodes2, bytes2 := n.Written()
	if perEdit := (bytes2 - bytes) / edits; perEdit > 20_000 {
		t.Errorf("an edit writes %d bytes", perEdit)
	}
	if perEdit := float64(nodes2-nodes) / edits; perEdit > 5 {
		t.Errorf("an edit writes %.1f nodes", perEdit)
	}
	mustVerify(t, n, root)
}

// Names that are chosen so that no cut falls, or entries that are very large,
// still make nodes of bounded size.
func TestHostileNames(t *testing.T) {
	n := NewMemNodes()
	var b Builder
	set := 0
	for i := 0; set < 2000; i++ {
		name := fmt.Sprintf("n%07d", i)
		if cutHash([]byte(name), 0)%leafEvery == 0 {
			continue
		}
		set++
		if err := b.Set("uncut/"+name, Entry{Kind: File}); err != nil {
			t.Fatal(err)
		}
	}
	big := []Xattr{{"user.big", strings.Repeat("x", 60<<10)}}
	for i := range 100 {
		if err := b.Set(fmt.Sprintf("heavy/%d", i), Entry{Kind: File, Xattrs: big}); err != nil {
			t.Fatal(err)
		}
	}
	deep := strings.TrimSuffix(strings.Repeat("d/", 2000), "/")
	if err := b.Set(deep, Entry{Kind: File}); err != nil {
		t.Fatal(err)
	}
	root, err := b.Root(n)
	if err != nil {
		t.Fatal(err)
	}
	mustVerify(t, n, root)
	for a, node := range n.nodes {
		d, err := openNode(node)
		if err != nil || len(node) > 2*cutWeight || d.count > leafMax {
			t.Errorf("node %.12s has %d bytes, %d items: %v", a, len(node), d.count, err)
		}
	}
	if e, err := Lookup(n, root, deep); err != nil || e.Kind != File {
		t.Errorf("at the bottom: %v, %v", e, err)
	}
}

// Layers that hold nothing, and trees that hold everything, are one comparison.
func TestSharing(t *testing.T) {
	n := NewMemNodes()
	root := tree(t, n, 20_000)
	reads := &countNodes{Nodes: n}
	empty := Entry{Kind: Dir, Mode: 0o755}
	if got, err := Apply(reads, empty, root); err != nil || got.Children != root.Children || reads.reads > 0 {
		t.Errorf("over nothing: %v, %v after %d reads", got, err, reads.reads)
	}
	if got, err := Apply(reads, root, root); err != nil || !got.Equal(root) || reads.reads > 2 {
		t.Errorf("over itself: %v, %v after %d reads", got, err, reads.reads)
	}
	if got, err := Diff(reads, root, root, ByAddr); err != nil || got.Children != (Ref{}) || reads.reads > 2 {
		t.Errorf("from itself: %v, %v after %d reads", got, err, reads.reads)
	}
	ed := Edit(n, root)
	if err := ed.Set("src/module2/package01/file10299.go", Entry{Kind: File}); err != nil {
		t.Fatal(err)
	}
	other, err := ed.Root()
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	reads.reads = 0
	if err := Changed(reads, root, other, ByID, func(p string, _, _ Entry) error {
		paths = append(paths, p)
		return nil
	}); err != nil || !slices.Equal(paths, []string{"src/module2/package01/file10299.go"}) || reads.reads > 20 {
		t.Errorf("changed: %v, %v after %d reads", paths, err, reads.reads)
	}
}

type countNodes struct {
	Nodes
	reads int
}

func (c *countNodes) Node(a Addr) ([]byte, error) {
	c.reads++
	return c.Nodes.Node(a)
}
