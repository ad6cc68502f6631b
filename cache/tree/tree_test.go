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

// sample is a small root file system.
func sample(t testing.TB, n Nodes) Entry {
	t.Helper()
	var b Builder
	for _, f := range []struct {
		path string
		e    Entry
	}{
		{"usr/bin/sh", Entry{Kind: File, Mode: 0o755, Size: 3}},
		{"bin", Entry{Kind: Symlink, Target: "usr/bin"}},
		{"etc/passwd", Entry{Kind: File, Mode: 0o644}},
		{"etc/self", Entry{Kind: Symlink, Target: "."}},
		{"etc/loop", Entry{Kind: Symlink, Target: "loop"}},
		{"etc/out", Entry{Kind: Symlink, Target: "../../../../etc/passwd"}},
		{"etc/abs", Entry{Kind: Symlink, Target: "/usr/./bin//sh"}},
		{"etc/dangling", Entry{Kind: Symlink, Target: "../var/no/such"}},
		{"etc/nowhere", Entry{Kind: Symlink, Target: "/opt/x/../y"}},
		{"var/empty", Entry{Kind: Dir, Mode: 0o700}},
		{"name with \xff", Entry{Kind: Fifo}},
	} {
		if err := b.Set(f.path, f.e); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Root(n)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestCheckPath(t *testing.T) {
	for _, c := range []struct {
		path string
		ok   bool
	}{
		{"", true},  // the root
		{".", true}, // the root
		{"a/b", true},
		{"...", true},                     // a name like any other
		{"\xff\xfe", true},                // names are bytes
		{strings.Repeat("n", 255), true},  // as long as Linux allows
		{strings.Repeat("n", 256), false}, // longer
		{strings.Repeat("n/", 2048) + "nn", false}, // longer than a path can be
		{"/a", false},     // absolute
		{"a/", false},     // an empty name at the end
		{"a//b", false},   // an empty name inside
		{"../a", false},   // up, out
		{"a/../b", false}, // up, not clean
		{"a/.", false},    // not clean
		{"a\x00b", false}, // a NUL
	} {
		err := CheckPath(c.path)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrBadPath) {
			t.Errorf("CheckPath(%.20q) = %v, want ok %v", c.path, err, c.ok)
		}
		var b Builder
		if err := b.Set(c.path, Entry{Kind: Dir}); (err == nil) != c.ok {
			t.Errorf("Builder.Set(%.20q) = %v, want ok %v", c.path, err, c.ok)
		}
	}
}

func TestLookup(t *testing.T) {
	n := NewMemNodes()
	root := sample(t, n)
	for _, c := range []struct {
		path string
		kind Kind
		err  error
	}{
		{"", Dir, nil},
		{"usr/bin/sh", File, nil},
		{"bin", Symlink, nil},             // not followed
		{"bin/sh", None, syscall.ENOTDIR}, // not followed on the way either
		{"usr/bin/sh/x", None, syscall.ENOTDIR},
		{"usr/lib", None, fs.ErrNotExist},
		{"var/empty/x", None, fs.ErrNotExist}, // in a directory without a node
		{"zzz", None, fs.ErrNotExist},         // behind the last name
		{"name with \xff", Fifo, nil},
		{"../etc", None, ErrBadPath},
	} {
		e, err := Lookup(n, root, c.path)
		if e.Kind != c.kind || !errors.Is(err, c.err) {
			t.Errorf("Lookup(%q) = kind %d, %v, want kind %d, %v", c.path, e.Kind, err, c.kind, c.err)
		}
		e, err = Edit(n, root).Get(c.path)
		if e.Kind != c.kind || !errors.Is(err, c.err) {
			t.Errorf("Editor.Get(%q) = kind %d, %v, want kind %d, %v", c.path, e.Kind, err, c.kind, c.err)
		}
	}
}

func TestResolve(t *testing.T) {
	n := NewMemNodes()
	root := sample(t, n)
	for _, c := range []struct {
		path   string
		follow bool
		want   string
		rest   string
		err    error
	}{
		{"/", true, "", "", nil},
		{"usr/bin/sh", true, "usr/bin/sh", "", nil},
		{"//bin/./sh", true, "usr/bin/sh", "", nil},                                // a link on the way, an unclean path
		{"bin", false, "bin", "", nil},                                             // the last name is left
		{"bin", true, "usr/bin", "", nil},                                          // and followed
		{"bin/..", true, "usr", "", nil},                                           // up from where the link led
		{"../../etc", true, "etc", "", nil},                                        // the root is its own parent
		{"etc/out", true, "etc/passwd", "", nil},                                   // a link that wants out stays in
		{"etc/abs", true, "usr/bin/sh", "", nil},                                   // an absolute link starts at the root
		{"etc/self/self/self/abs", true, "usr/bin/sh", "", nil},                    // many links
		{"etc/loop", true, "etc", "loop", syscall.ELOOP},                           // a link to itself
		{"etc/loop", false, "etc/loop", "", nil},                                   // which may be looked at
		{"var/a/b", true, "var", "a/b", fs.ErrNotExist},                            // how far it got
		{"etc/dangling", true, "var", "no/such", fs.ErrNotExist},                   // the same behind a link
		{"etc/dangling/more", true, "var", "no/such/more", fs.ErrNotExist},         // and on from there
		{"etc/nowhere", true, "", "opt/y", fs.ErrNotExist},                         // ".." in what is missing
		{"var/a/../../etc/passwd", true, "etc/passwd", "", nil},                    // and out of it again
		{"etc/passwd/x", true, "etc/passwd", "x", syscall.ENOTDIR},                 // a file in the way
		{"etc/passwd/..", true, "etc/passwd", "", syscall.ENOTDIR},                 // as chdir would say
		{"etc/" + strings.Repeat("x", 256), true, "etc", "", syscall.ENAMETOOLONG}, // no such name can be
		{"etc/\x00", true, "", "", ErrBadPath},
	} {
		for _, resolve := range []func(string, bool) (Resolved, error){
			func(p string, f bool) (Resolved, error) { return Resolve(n, root, p, f) },
			Edit(n, root).Resolve,
		} {
			got, err := resolve(c.path, c.follow)
			if got.Path != c.want || got.Rest != c.rest || !errors.Is(err, c.err) {
				t.Errorf("Resolve(%.30q, %v) = %q, rest %q, %v, want %q, %q, %v", c.path, c.follow, got.Path, got.Rest, err, c.want, c.rest, c.err)
			}
			if at, lerr := Lookup(n, root, got.Path); lerr != nil || !at.Equal(got.Entry) {
				t.Errorf("Resolve(%.30q, %v) gives entry %v, want %v, %v", c.path, c.follow, got.Entry, at, lerr)
			}
		}
	}
}

// 255 links are followed, 256 are too many.
func TestResolveManyLinks(t *testing.T) {
	n := NewMemNodes()
	var b Builder
	for i := range 257 {
		if err := b.Set(fmt.Sprintf("l%d", i), Entry{Kind: Symlink, Target: fmt.Sprintf("l%d", i+1)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Set("l257", Entry{Kind: File}); err != nil {
		t.Fatal(err)
	}
	root, err := b.Root(n)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Resolve(n, root, "l2", true); err != nil || got.Path != "l257" {
		t.Errorf("255 links: %q, %v", got.Path, err)
	}
	if _, err := Resolve(n, root, "l1", true); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("256 links: %v, want ELOOP", err)
	}
}

func TestWalk(t *testing.T) {
	n := NewMemNodes()
	root := sample(t, n)
	for _, c := range []struct {
		at   string // where fn answers err
		err  error
		want string
	}{
		{"-", nil, " bin etc etc/abs etc/dangling etc/loop etc/nowhere etc/out etc/passwd etc/self name usr usr/bin usr/bin/sh var var/empty"},
		{"etc", fs.SkipDir, " bin etc name usr usr/bin usr/bin/sh var var/empty"},                                    // what is in it
		{"etc/loop", fs.SkipDir, " bin etc etc/abs etc/dangling etc/loop name usr usr/bin usr/bin/sh var var/empty"}, // what follows in etc
		{"bin", fs.SkipDir, " bin"}, // what follows in the root
		{"", fs.SkipDir, ""},        // everything
		{"etc/abs", fs.SkipAll, " bin etc etc/abs"},
		{"etc/abs", syscall.EIO, " bin etc etc/abs"}, // comes out
	} {
		var got []string
		err := Walk(n, root, func(path string, e Entry) error {
			got = append(got, strings.TrimSuffix(path, " with \xff"))
			if path == c.at {
				return c.err
			}
			return nil
		})
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%v at %q: walked %q, want %q", c.err, c.at, s, c.want)
		}
		if want := c.err == syscall.EIO; (err != nil) != want {
			t.Errorf("%v at %q: Walk gives %v", c.err, c.at, err)
		}
	}
}

// The identity covers what a cache key must see, and not times and tags.
func TestIdentity(t *testing.T) {
	base := Entry{Name: "f", Kind: File, Mode: 0o644, Size: 1}
	dir := Entry{Kind: Dir, Mode: 0o755}
	for _, c := range []struct {
		what    string
		a, b    Entry
		id, key bool // whether they are equal
	}{
		{"nothing", base, base, true, true},
		{"name", base, with(base, func(e *Entry) { e.Name = "g" }), true, true},
		{"mtime", base, with(base, func(e *Entry) { e.MTime++ }), true, false},
		{"tag", base, with(base, func(e *Entry) { e.Tag++ }), true, false},
		{"mode", base, with(base, func(e *Entry) { e.Mode = 0o4644 }), false, false},
		{"uid", base, with(base, func(e *Entry) { e.UID = 1 }), false, false},
		{"gid", base, with(base, func(e *Entry) { e.GID = 1 }), false, false},
		{"xattr", base, with(base, func(e *Entry) { e.Xattrs = []Xattr{{"a", ""}} }), false, false},
		{"content", base, with(base, func(e *Entry) { e.Content[31] = 1 }), false, false},
		{"kind", base, with(base, func(e *Entry) { e.Kind = Socket }), false, false},
		{"opaque", dir, with(dir, func(e *Entry) { e.Opaque = true }), false, false},
		{"children", dir, with(dir, func(e *Entry) { e.Children = Ref{ID: ID{2}, Addr: Addr{2}} }), false, false},
		{"where children are", with(dir, func(e *Entry) { e.Children = Ref{ID{2}, Addr{3}} }), with(dir, func(e *Entry) { e.Children = Ref{ID{2}, Addr{2}} }), true, false},
		{"a link's mode", Entry{Kind: Symlink, Target: "x"}, Entry{Kind: Symlink, Target: "x", Mode: 0o644}, true, true},  // Linux has none
		{"a whiteout's owner", Entry{Kind: Whiteout}, Entry{Kind: Whiteout, UID: 3, MTime: 4}, true, true},                // nothing but the name counts
		{"a fifo's content", Entry{Kind: Fifo}, with(Entry{Kind: Fifo}, func(e *Entry) { e.Content[0] = 1 }), true, true}, // it has none
		{"device", Entry{Kind: CharDev, Dev: 259}, Entry{Kind: CharDev, Dev: 260}, false, false},
	} {
		if got := c.a.ID() == c.b.ID(); got != c.id {
			t.Errorf("other %s: IDs equal %v, want %v", c.what, got, c.id)
		}
		if got := c.a.Key() == c.b.Key(); got != c.key {
			t.Errorf("other %s: keys equal %v, want %v", c.what, got, c.key)
		}
	}
}

func with(e Entry, change func(*Entry)) Entry {
	change(&e)
	return e
}

// Two trees whose only difference is a time below share an ID and not an Addr.
func TestTimesBelow(t *testing.T) {
	n := NewMemNodes()
	a := sample(t, n)
	ed := Edit(n, a)
	e, err := ed.Get("usr/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	e.MTime = 77
	if err := ed.Set("usr/bin/sh", e); err != nil {
		t.Fatal(err)
	}
	b, err := ed.Root()
	if err != nil {
		t.Fatal(err)
	}
	if a.ID() != b.ID() || a.Key() == b.Key() || a.Children.Addr == b.Children.Addr {
		t.Errorf("got %v and %v, want one ID, two Addrs", a.Children, b.Children)
	}
}

func TestBadEntries(t *testing.T) {
	for _, c := range []struct {
		what string
		e    Entry
	}{
		{"no kind", Entry{}},
		{"unknown kind", Entry{Kind: Whiteout + 1}},
		{"a link to nothing", Entry{Kind: Symlink}},
		{"a link with a NUL", Entry{Kind: Symlink, Target: "a\x00"}},
		{"too long a link", Entry{Kind: Symlink, Target: strings.Repeat("t", 4096)}},
		{"negative size", Entry{Kind: File, Size: -1}},
		{"half a ref", Entry{Kind: Dir, Children: Ref{ID: ID{1}}}},
		{"unsorted xattrs", Entry{Kind: File, Xattrs: []Xattr{{"b", ""}, {"a", ""}}}},
		{"an xattr twice", Entry{Kind: File, Xattrs: []Xattr{{"a", ""}, {"a", ""}}}},
		{"large xattrs", Entry{Kind: File, Xattrs: []Xattr{{"a", strings.Repeat("v", 1<<20)}}}},
	} {
		n := NewMemNodes()
		var b Builder
		if err := b.Set("f", c.e); !errors.Is(err, ErrBadEntry) {
			t.Errorf("%s: Builder.Set gives %v", c.what, err)
		}
		if err := Edit(n, Entry{Kind: Dir}).Set("f", c.e); !errors.Is(err, ErrBadEntry) {
			t.Errorf("%s: Editor.Set gives %v", c.what, err)
		}
		if err := c.e.Check(); !errors.Is(err, ErrBadEntry) {
			t.Errorf("%s: Check gives %v", c.what, err)
		}
	}
}

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

// A store that fails makes every operation fail, with its error.
func TestStoreErrors(t *testing.T) {
	good := NewMemNodes()
	a, b := tree(t, good, 500), sample(t, good)
	layer, err := Diff(good, a, b, ByAddr)
	if err != nil {
		t.Fatal(err)
	}
	ops := map[string]func(n Nodes) error{
		"Lookup":  func(n Nodes) error { _, err := Lookup(n, a, "src/module0/package00/file00001.go"); return err },
		"Resolve": func(n Nodes) error { _, err := Resolve(n, b, "bin/sh", true); return err },
		"Walk":    func(n Nodes) error { return Walk(n, a, func(string, Entry) error { return nil }) },
		"Apply":   func(n Nodes) error { _, err := Apply(n, a, layer); return err },
		"Diff":    func(n Nodes) error { _, err := Diff(n, a, b, ByAddr); return err },
		"Squash":  func(n Nodes) error { _, err := Squash(n, a, layer); return err },
		"Verify":  func(n Nodes) error { return Verify(n, a) },
		"Changed": func(n Nodes) error {
			return Changed(n, a, b, ByAddr, func(string, Entry, Entry) error { return nil })
		},
		"Map": func(n Nodes) error {
			_, err := Map(n, a, func(_ string, e Entry) (Entry, error) { e.UID++; return e, nil })
			return err
		},
		"Filter": func(n Nodes) error {
			_, err := Filter(n, a, func(string, Entry) Verdict { return Probe })
			return err
		},
		"Editor": func(n Nodes) error {
			ed := Edit(n, a)
			err := ed.Set("src/module0/package00/x", Entry{Kind: File})
			if err == nil {
				_, err = ed.Root()
			}
			return err
		},
		"ReadDir": func(n Nodes) error {
			for _, err := range ReadDir(n, a.Children) {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"Builder": func(n Nodes) error {
			var b Builder
			err := b.Set("a/b", Entry{Kind: File})
			if err == nil {
				_, err = b.Root(n)
			}
			return err
		},
	}
	for name, op := range ops {
		failed := false
		for left := range 1000 {
			err := op(&failNodes{Nodes: good, left: left})
			if err == nil {
				break
			}
			if failed = true; !errors.Is(err, syscall.EIO) {
				t.Errorf("%s, failing after %d: %v", name, left, err)
			}
		}
		if !failed {
			t.Errorf("%s does not fail", name)
		}
	}
}

// failNodes fails every call but the first left.
type failNodes struct {
	Nodes
	left int
}

func (f *failNodes) Node(a Addr) ([]byte, error) {
	if f.left--; f.left < 0 {
		return nil, syscall.EIO
	}
	return f.Nodes.Node(a)
}

func (f *failNodes) PutNode(a Addr, b []byte) error {
	if f.left--; f.left < 0 {
		return syscall.EIO
	}
	return f.Nodes.PutNode(a, b)
}
