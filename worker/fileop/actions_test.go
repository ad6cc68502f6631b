package fileop

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/pool"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/worker/layer"
	"github.com/moby/buildkit/solver/pb"
)

// bench is an operation on a base with a few files.
type bench struct {
	*testing.T
	n     *tree.MemNodes
	files *memFiles
	base  tree.Entry
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, n: tree.NewMemNodes(), files: &memFiles{
		contents: map[blob.Digest][]byte{}, pool: map[pool.FileID]bool{}, foreign: map[int]bool{},
	}}
	var tb tree.Builder
	file := func(p, content string) {
		e := tree.Entry{Kind: tree.File, Mode: 0o644, Size: int64(len(content)), Tag: layer.TagOf(p)}
		e.Content = blob.Digest{byte(len(content)), byte(len(p))}
		if err := b.files.Put(context.Background(), e, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if err := tb.Set(p, e); err != nil {
			t.Fatal(err)
		}
	}
	file("etc/passwd", "root:x:0:0::/:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\nbad line\n")
	file("etc/group", "root:x:0:\nstaff:x:50:ann\n")
	file("dir/a", "a")
	file("dir/b.txt", "bb")
	file("dir/sub/c.txt", "ccc")
	for p, target := range map[string]string{"link": "dir", "dangling": "nowhere/x", "up": "../../../dir", "self": "self"} {
		if err := tb.Set(p, tree.Entry{Kind: tree.Symlink, Mode: 0o777, Target: target}); err != nil {
			t.Fatal(err)
		}
	}
	for p, mode := range map[string]uint32{"sgid": 0o2775, "tmp": 0o1777} {
		if err := tb.Set(p, tree.Entry{Kind: tree.Dir, Mode: mode, GID: 77 * (mode >> 10 & 1)}); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if b.base, err = tb.Root(b.n); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) run(actions ...*pb.FileAction) ([]Output, error) {
	o := Op{Nodes: b.n, Inputs: []tree.Entry{b.base}, Files: b.files, Now: 99}
	return o.Run(context.Background(), actions)
}

// changes lists what differs between the base and a state: "+" new, "-" gone, "*" other.
func (b *bench) changes(state tree.Entry) string {
	b.Helper()
	old := make(map[string]bool)
	for _, l := range describe(b, b.n, b.base, false) {
		old[l] = true
	}
	var out []string
	for _, l := range describe(b, b.n, state, false) {
		if !old[l] {
			out = append(out, "+"+l)
		}
		delete(old, l)
	}
	for l := range old {
		p, _, _ := strings.Cut(l, " ")
		gone := true
		for _, o := range out {
			gone = gone && !strings.HasPrefix(o, "+"+p+" ")
		}
		if gone {
			out = append(out, "-"+p)
		}
	}
	return strings.Join(out, "\n")
}

func mkdir(a *pb.FileActionMkDir) *pb.FileAction {
	return &pb.FileAction{SecondaryInput: -1, Action: &pb.FileAction_Mkdir{Mkdir: a}}
}

func mkfile(a *pb.FileActionMkFile) *pb.FileAction {
	return &pb.FileAction{SecondaryInput: -1, Action: &pb.FileAction_Mkfile{Mkfile: a}}
}

func symlink(a *pb.FileActionSymlink) *pb.FileAction {
	return &pb.FileAction{SecondaryInput: -1, Action: &pb.FileAction_Symlink{Symlink: a}}
}

func rm(a *pb.FileActionRm) *pb.FileAction {
	return &pb.FileAction{SecondaryInput: -1, Action: &pb.FileAction_Rm{Rm: a}}
}

func named(user, group string) *pb.ChownOpt {
	o := &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: user}}}}
	if group != "" {
		o.Group = &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: group}}}
	}
	return o
}

func TestActions(t *testing.T) {
	const x = "content=sha256:2d711 time=5" // "x"
	for _, test := range []struct {
		name string
		a    *pb.FileAction
		want string // changes, or the error
	}{
		{"mkdir", mkdir(&pb.FileActionMkDir{Path: "/n", Mode: 0o4750, Timestamp: 5}),
			"+/n kind=2 mode=750 owner=0:0"},
		{"mkdir without its parent", mkdir(&pb.FileActionMkDir{Path: "/n/m", Mode: 0o755}),
			"mkdir /n/m: no such file or directory"},
		{"mkdir with parents, which get the same mode and owner", mkdir(&pb.FileActionMkDir{Path: "/n/m", Mode: 0o700, MakeParents: true, Owner: named("ann", "")}),
			"+/n kind=2 mode=700 owner=1000:1001\n+/n/m kind=2 mode=700 owner=1000:1001"},
		{"mkdir of what is there", mkdir(&pb.FileActionMkDir{Path: "/dir", Mode: 0o700}), ""},
		{"mkdir of a file that is there", mkdir(&pb.FileActionMkDir{Path: "/dir/a", Mode: 0o700}), ""},
		{"mkdir with parents of a file that is there", mkdir(&pb.FileActionMkDir{Path: "/dir/a", Mode: 0o700, MakeParents: true}),
			"mkdir /dir/a: not a directory"},
		{"mkdir with parents through a file", mkdir(&pb.FileActionMkDir{Path: "/dir/a/x", Mode: 0o700, MakeParents: true}),
			"lstat /dir/a/x: not a directory"},
		{"mkdir through a link", mkdir(&pb.FileActionMkDir{Path: "/link/new", Mode: 0o755}),
			"+/dir/new kind=2 mode=755 owner=0:0"},
		{"mkdir through a link that leads out", mkdir(&pb.FileActionMkDir{Path: "/up/new", Mode: 0o755}),
			"+/dir/new kind=2 mode=755 owner=0:0"},
		{"mkdir where a link dangles", mkdir(&pb.FileActionMkDir{Path: "/dangling", Mode: 0o755, MakeParents: true}),
			"+/nowhere kind=2 mode=755 owner=0:0\n+/nowhere/x kind=2 mode=755 owner=0:0"},
		{"mkdir hands on the group of a set-group-id directory", mkdir(&pb.FileActionMkDir{Path: "/sgid/n", Mode: 0o755}),
			"+/sgid/n kind=2 mode=2755 owner=0:77"},
		{"mkfile", mkfile(&pb.FileActionMkFile{Path: "/n", Mode: 0o4644, Data: []byte("x"), Timestamp: 5, Owner: named("ann", "staff")}),
			"+/n kind=1 mode=644 owner=1000:50 " + x},
		{"mkfile for nobody known belongs to root", mkfile(&pb.FileActionMkFile{Path: "/n", Mode: 0o600, Data: []byte("x"), Timestamp: 5, Owner: named("eve", "")}),
			"+/n kind=1 mode=600 owner=0:0 " + x},
		{"mkfile over a file", mkfile(&pb.FileActionMkFile{Path: "/dir/a", Mode: 0o644, Data: []byte("x"), Timestamp: 5}),
			"+/dir/a kind=1 mode=644 owner=0:0 " + x},
		{"mkfile over a directory", mkfile(&pb.FileActionMkFile{Path: "/dir"}), "rename /dir: file exists"},
		{"mkfile of the root", mkfile(&pb.FileActionMkFile{Path: "/"}), "mkfile /: is a directory"},
		{"mkfile without its parent", mkfile(&pb.FileActionMkFile{Path: "/n/x"}), "open /n/x: no such file or directory"},
		{"mkfile through a link in a circle", mkfile(&pb.FileActionMkFile{Path: "/self/x"}), "too many levels of symbolic links"},
		{"symlink", symlink(&pb.FileActionSymlink{Oldpath: "/dir", Newpath: "/l", Timestamp: 5, Owner: named("ann", "")}),
			"+/l kind=3 mode=777 owner=1000:1001 target=/dir time=5"},
		{"symlink over what is there", symlink(&pb.FileActionSymlink{Oldpath: "x", Newpath: "/dir/a"}),
			"symlink x /dir/a: file exists"},
		{"rm of a file", rm(&pb.FileActionRm{Path: "/dir/a"}), "-/dir/a"},
		{"rm of a link leaves what it leads to", rm(&pb.FileActionRm{Path: "/link"}), "-/link"},
		{"rm below a link", rm(&pb.FileActionRm{Path: "/link/a"}), "-/dir/a"},
		{"rm of what is not there", rm(&pb.FileActionRm{Path: "/nope"}), "stat /nope: no such file or directory"},
		{"rm of what need not be there", rm(&pb.FileActionRm{Path: "/nope", AllowNotFound: true}), ""},
		{"rm by wildcard", rm(&pb.FileActionRm{Path: "/dir/*.txt", AllowWildcard: true}), "-/dir/b.txt"},
		{"rm by a wildcard in the middle", rm(&pb.FileActionRm{Path: "/d*/s*/c.txt", AllowWildcard: true}), "-/dir/sub/c.txt"},
		{"rm by a wildcard that matches nothing", rm(&pb.FileActionRm{Path: "/dir/*.go", AllowWildcard: true}), ""},
		{"a wildcard without leave is a name", rm(&pb.FileActionRm{Path: "/dir/*", AllowNotFound: true}), ""},
		{"rm of the root", rm(&pb.FileActionRm{Path: "/"}), "the root of a file system cannot be removed"},
		{"a copy that must not make its destination", &pb.FileAction{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{
			Src: "/dir/a", Dest: "/no/where", Mode: -1, Timestamp: -1}}}, "failed to stat /no/where"},
		{"a copy of what is not there", &pb.FileAction{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{
			Src: "/nope/x", Dest: "/", Mode: -1, Timestamp: -1, CreateDestPath: true}}}, "/nope/x: no such file or directory"},
		{"a copy with a mode that is none", &pb.FileAction{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{
			Src: "/dir/a", Dest: "/", Mode: -1, Timestamp: -1, CreateDestPath: true, ModeStr: "u=q"}}}, `invalid mode "u=q"`},
		{"a required path that the patterns leave nothing of", &pb.FileAction{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{
			Src: "/", Dest: "/to", Mode: -1, Timestamp: -1, CreateDestPath: true, DirCopyContents: true,
			IncludePatterns: []string{"nope/x"}, RequiredPaths: []string{"/nope/x"}}}}, "/nope/x: no such file or directory"},
		{"an input that is none", &pb.FileAction{Input: 7, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{}}}, "invalid input index 7"},
		{"an action on itself", &pb.FileAction{Input: 1, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{}}}, "an input of itself"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			outs, err := b.run(test.a)
			if err != nil {
				if test.want == "" || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("the error is %q, want %q", err, test.want)
				}
				return
			}
			if got := b.changes(outs[0].State); got != test.want {
				t.Errorf("the changes are\n%s\nwant\n%s", got, test.want)
			}
			checkLayer(t, b.n, b.base, outs[0])
			checkPool(t, b.n, b.files, outs[0].State)
		})
	}
}

func TestSeveralOutputs(t *testing.T) {
	b := newBench(t)
	first := mkdir(&pb.FileActionMkDir{Path: "/one", Mode: 0o755})
	second := mkdir(&pb.FileActionMkDir{Path: "/two", Mode: 0o755})
	second.Input, second.Output = 1, 1 // on top of the first
	third := mkdir(&pb.FileActionMkDir{Path: "/one", Mode: 0o700})
	third.Input, third.Output = -1, 2
	outs, err := b.run(first, second, third)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ base, layers int }{{0, 1}, {0, 2}, {-1, 1}} {
		if outs[i].Base != want.base || len(outs[i].Layers) != want.layers {
			t.Errorf("output %d is %d layers on input %d, want %d on %d", i, len(outs[i].Layers), outs[i].Base, want.layers, want.base)
		}
	}
	if outs[0].Layers[0].Key() != outs[1].Layers[0].Key() {
		t.Error("the second output does not stand on the first one's layer")
	}
	checkLayer(t, b.n, b.base, outs[1])
	checkLayer(t, b.n, Scratch, outs[2])

	// Actions that are no outputs make no layers of their own.
	first.Output, second.Output = -1, 0
	if outs, err = b.run(first, second); err != nil {
		t.Fatal(err)
	}
	if len(outs[0].Layers) != 1 {
		t.Errorf("two actions with one output make %d layers, want 1", len(outs[0].Layers))
	}
	checkLayer(t, b.n, b.base, outs[0])
}

// TestTakenTwice copies one file to two names in one layer, by two actions: they
// are two files, and not two names of one.
func TestTakenTwice(t *testing.T) {
	b := newBench(t)
	take := func(dest string) *pb.FileAction {
		return &pb.FileAction{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{
			Src: "/dir/a", Dest: dest, Mode: -1, Timestamp: -1, CreateDestPath: true,
		}}}
	}
	first, second := take("/x"), take("/y")
	first.Output, second.Input = -1, 1
	outs, err := b.run(first, second)
	if err != nil {
		t.Fatal(err)
	}
	x, errX := tree.Lookup(b.n, outs[0].State, "x")
	y, errY := tree.Lookup(b.n, outs[0].State, "y")
	if err := errors.Join(errX, errY); err != nil {
		t.Fatal(err)
	}
	if x.Key() == y.Key() {
		t.Error("two copies of a file in one layer share an inode")
	}
	checkPool(t, b.n, b.files, outs[0].State)
}

func TestGraft(t *testing.T) {
	b := newBench(t)
	before, _ := b.n.Written()
	outs, err := b.run(&pb.FileAction{Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{
		Src: "/dir", Dest: "/copy", Mode: -1, Timestamp: -1, CreateDestPath: true,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	from, _ := tree.Lookup(b.n, outs[0].State, "dir")
	to, _ := tree.Lookup(b.n, outs[0].State, "copy")
	if from.Children != to.Children {
		t.Error("a copied directory is not the directory it was copied from")
	}
	if after, _ := b.n.Written(); after-before > 2 {
		t.Errorf("copying a directory wrote %d nodes, want that of the root and of the layer's", after-before)
	}
}

func TestScanIDs(t *testing.T) {
	for _, test := range []struct {
		file, name string
		numbers    int
		want       []uint32
		fails      bool
	}{
		{"root:x:0:0:r:/:/bin/sh\nann:x:1:2:::\nann:x:3:4:::\n", "ann", 2, []uint32{1, 2}, false}, // the first line counts
		{"# comment\n\nann:x:1\n", "ann", 2, nil, false},                                          // a line too short is no line
		{"ann:x:one:2:::\n", "ann", 2, nil, true},
		{"ann:x:99999999999:2:::\n", "ann", 2, nil, true},
		{"staff:x:50:ann,bob\n", "staff", 1, []uint32{50}, false},
		{"", "ann", 2, nil, false},
	} {
		got, err := scanIDs(strings.NewReader(test.file), test.name, test.numbers)
		if (err != nil) != test.fails || len(got) != len(test.want) {
			t.Errorf("%q in %q: got %v, %v; want %v", test.name, test.file, got, err, test.want)
			continue
		}
		for i := range got {
			if got[i] != test.want[i] {
				t.Errorf("%q in %q: got %v, want %v", test.name, test.file, got, test.want)
			}
		}
	}
}

func FuzzMode(f *testing.F) {
	for _, s := range []string{"0644", "u=rwX,go-w", "+t", "g=u", "a=,u+s", "u=g-w+x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseMode(s)
		if err != nil {
			return
		}
		for _, kind := range []tree.Kind{tree.File, tree.Dir} {
			if got := m.apply(0o4751, kind); got&^0o7777 != 0 {
				t.Errorf("%q gives mode %o", s, got)
			}
		}
	})
}
