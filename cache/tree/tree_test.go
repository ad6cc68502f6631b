package tree

import (
	"errors"
	"fmt"
	"io/fs"
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
