package caller

import (
	"encoding/binary"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/tonistiigi/fsutil/types"

	"github.com/kiln-build/kiln/worker"
)

// listed gives what the list in a mirror names, and what else the mirror holds.
func listed(t *testing.T, root *os.Root) (list, held []string) {
	t.Helper()
	data, err := root.ReadFile(metadataName)
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 {
		n := binary.LittleEndian.Uint32(data)
		var st types.Stat
		if err := st.UnmarshalVT(data[4 : 4+n]); err != nil {
			t.Fatal(err)
		}
		list, data = append(list, st.Path), data[4+n:]
	}
	err = fs.WalkDir(root.FS(), ".", func(p string, _ fs.DirEntry, err error) error {
		if p != "." && p != metadataName {
			held = append(held, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list, held
}

func TestReceiveMetadataOnly(t *testing.T) {
	root := mirrorOf(t)
	dir := fs.ModeDir | 0o700
	f := worker.Filter{MetadataOnly: true, Exceptions: []string{"d/**/*1", "whole"}}
	for _, test := range []struct {
		name       string
		packets    []*types.Packet
		list, held []string
	}{
		{"a folder", []*types.Packet{
			stat(metadataName, 0o644, 9), // a client's own is left out, and is counted
			stat("d", dir, 0), stat("d/a1", 0o600, 1), stat("d/b", 0o600, 1), stat("d/e", dir, 0), stat("d/e/c1", 0o600, 1), stat("d/empty", dir, 0),
			stat("f", 0o600, 5), stat("g", dir, 0), stat("g/h", 0o600, 1), link("l", "..", fs.ModeSymlink|0o777), stat("whole", dir, 0), stat("whole/x", 0o600, 1),
			endOfList, data(2, "1"), data(2, ""), data(5, "2"), data(5, ""), data(12, "3"), data(12, ""), fin,
		}, []string{"d", "d/a1", "d/b", "d/e", "d/e/c1", "d/empty", "f", "g", "g/h", "l", "whole", "whole/x"}, []string{"d", "d/a1", "d/e", "d/e/c1", "whole", "whole/x"}},
		{"the same, less", []*types.Packet{
			stat("d", dir, 0), stat("d/a1", 0o600, 1), endOfList, fin, // which has not changed, and is not asked for
		}, []string{"d", "d/a1"}, []string{"d", "d/a1"}},
		{"nothing", []*types.Packet{endOfList, fin}, nil, nil},
	} {
		if err := receive(t.Context(), &scripted{packets: test.packets}, root, f, func(int) {}); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if list, held := listed(t, root); !slices.Equal(list, test.list) || !slices.Equal(held, test.held) {
			t.Errorf("%s: the list is %q and the mirror holds %q, want %q and %q", test.name, list, held, test.list, test.held)
		}
	}
	checkOutside(t, root)
	f.Exceptions = []string{"[a"}
	if err := receive(t.Context(), &scripted{packets: []*types.Packet{stat("a", 0o644, 0), endOfList, fin}}, root, f, func(int) {}); err == nil {
		t.Error("a pattern that is none was taken")
	}
}

// A client whose files are to be sent anew is asked for what has not changed, too.
func TestReceiveDiffers(t *testing.T) {
	for _, test := range []struct {
		differ worker.Differ
		want   string // what the file holds when another content came under the same metadata
	}{
		{"", "old"},
		{worker.DifferMetadata, "old"},
		{worker.DifferNone, "new"},
	} {
		root := mirrorOf(t)
		for _, text := range []string{"old", "new"} {
			packets := []*types.Packet{stat("f", 0o644, 3), endOfList}
			if text == "old" || test.want == "new" {
				packets = append(packets, data(0, text), data(0, ""))
			}
			if err := receive(t.Context(), &scripted{packets: append(packets, fin)}, root, worker.Filter{Differ: test.differ}, func(int) {}); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := root.ReadFile("f"); err != nil || string(got) != test.want {
			t.Errorf("differ %q: the file holds %q, %v; want %q", test.differ, got, err, test.want)
		}
	}
}

func TestMirrorsOfFilters(t *testing.T) {
	mirrors, err := OpenMirrors(t.TempDir(), nil, func(...string) func() { return func() {} })
	if err != nil {
		t.Fatal(err)
	}
	at := func(c *Caller, key string, f worker.Filter) string {
		t.Helper()
		m, err := c.mirror(c.id, key, "context", f)
		if err != nil {
			t.Fatal(err)
		}
		return m.path
	}
	c := &Caller{id: "one", mirrors: mirrors, held: make(map[string]*mirror)}
	plain := at(c, "key", worker.Filter{})
	// Clients of BuildKit's name their session in every source, another for each build.
	if one, two := at(c, "key", worker.Filter{MetadataOnly: true, Session: "a"}), at(c, "key", worker.Filter{MetadataOnly: true, Session: "b"}); one != two {
		t.Errorf("two builds of one client have the mirrors %s and %s, want one", one, two)
	}
	if got := at(c, "key", worker.Filter{Include: []string{"a"}}); got != plain {
		t.Errorf("another part of the folder has the mirror %s, want %s", got, plain)
	}
	a := at(c, "key", worker.Filter{MetadataOnly: true, Exceptions: []string{"a"}})
	b := at(c, "key", worker.Filter{MetadataOnly: true, Exceptions: []string{"b"}})
	if a == plain || b == plain || a == b {
		t.Errorf("metadata alone has the mirrors %s and %s, and the folder %s", a, b, plain)
	}
	// Folders without a key are nobody else's, unless the graph says how to compare them
	// and it is known whose they are.
	folder := func(id, user string, f worker.Filter) (string, bool) {
		c := &Caller{id: id, mirrors: mirrors, held: make(map[string]*mirror)}
		c.ActsFor(user)
		path := at(c, "", f)
		return path[:strings.LastIndexByte(path, '-')], mirrors.inUse[path].keep // the number is of who comes first
	}
	byMetadata := worker.Filter{Differ: worker.DifferMetadata}
	ours, kept := folder("two", "us", byMetadata)
	if again, _ := folder("three", "us", byMetadata); !kept || again != ours {
		t.Errorf("one user's have the mirrors %s and %s, want one that is kept (%v)", ours, again, kept)
	}
	for _, c := range []struct {
		id, user string
		f        worker.Filter
	}{{"four", "them", byMetadata}, {"five", "", byMetadata}, {"six", "us", worker.Filter{}}} {
		if got, kept := folder(c.id, c.user, c.f); got == ours || kept != (c.user == "them") {
			t.Errorf("the user %q has the mirror %s of another, or is kept (%v)", c.user, got, kept)
		}
	}
}
