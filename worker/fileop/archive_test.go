package fileop

import (
	"context"
	"path"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/moby/buildkit/solver/pb"
)

// unpacking takes every file for the same archive.
type unpacking struct {
	*memFiles
	u Unpacked
}

func (f unpacking) Unpack(context.Context, Archive) (Unpacked, bool, error) { return f.u, true, nil }

// TestArchiveKeepsDestination unpacks an archive that has an entry for its own root,
// over a folder and to a new one: neither takes that entry's mode.
func TestArchiveKeepsDestination(t *testing.T) {
	b := newBench(t)
	var tb tree.Builder
	for p, mode := range map[string]uint32{"": 0o711, "d": 0o700} {
		if err := tb.Set(p, tree.Entry{Kind: tree.Dir, Mode: mode, UID: 5}); err != nil {
			t.Fatal(err)
		}
	}
	root, err := tb.Root(b.n)
	if err != nil {
		t.Fatal(err)
	}
	add := func(dest string) *pb.FileAction {
		return &pb.FileAction{Input: 0, SecondaryInput: 0, Output: 0, Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{
			Src: "/dir/a", Dest: dest, FollowSymlink: true, CreateDestPath: true, AttemptUnpackDockerCompatibility: true, Timestamp: -1, Mode: -1,
		}}}
	}
	for dest, want := range map[string]uint32{"/tmp": 0o1777, "/new/": 0o755} {
		o := Op{Nodes: b.n, Inputs: []tree.Entry{b.base}, Files: unpacking{b.files, Unpacked{Root: root}}, Now: 99}
		out, err := o.Run(context.Background(), []*pb.FileAction{add(dest)})
		if err != nil {
			t.Fatal(err)
		}
		for p, want := range map[string]tree.Entry{dest: {Mode: want}, dest + "/d": {Mode: 0o700, UID: 5}} {
			got, err := tree.Lookup(b.n, out[0].State, strings.Trim(path.Clean(p), "/"))
			if err != nil || got.Mode != want.Mode || got.UID != want.UID {
				t.Errorf("to %s: %s has mode %o of %d, %v; want %o of %d", dest, p, got.Mode, got.UID, err, want.Mode, want.UID)
			}
		}
	}
}
