package layer

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// A directory with nothing else of the step's in it is part of a layer if the step
// gave it a time, and not if it got one because something came and went in it.
func TestAdoptTimes(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(dir string) error
		kept bool
	}{
		{"as below", func(dir string) error { return settle(dir, 1_000) }, false},
		{"a time that was set", func(dir string) error { return settle(dir, 1_234_567_890) }, true},
		{"a file for a while", func(dir string) error {
			name := filepath.Join(dir, "lock")
			if err := os.WriteFile(name, nil, 0o644); err != nil {
				return err
			}
			return os.Remove(name)
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := stateFolder(t)
			var b tree.Builder
			if err := b.Set("d", tree.Entry{Kind: tree.Dir, Mode: 0o755, MTime: 1_000 * 1e9}); err != nil {
				t.Fatal(err)
			}
			root, err := b.Root(c)
			if err != nil {
				t.Fatal(err)
			}
			upper := filepath.Join(c.Path("tmp"), "upper")
			if err := os.MkdirAll(filepath.Join(upper, "d"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := settle(filepath.Join(upper, "d"), 1_000); err != nil {
				t.Fatal(err)
			}
			if err := test.do(filepath.Join(upper, "d")); err != nil {
				t.Fatal(err)
			}
			l, err := NewFolders(c).Adopt(context.Background(), upper, root)
			if err != nil {
				t.Fatal(err)
			}
			found, err := tree.Resolve(c, l.Root, "d", false)
			if kept := err == nil; kept != test.kept {
				t.Errorf("the layer has it: %v (%+v, %v), want %v", kept, found.Entry, err, test.kept)
			}
		})
	}
}

// settle gives a directory a time, in seconds.
func settle(dir string, at int64) error {
	ts := unix.Timespec{Sec: at}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{ts, ts}, 0)
}
