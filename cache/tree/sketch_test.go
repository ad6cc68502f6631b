package tree

import (
	"fmt"
	"testing"
)

// TestSketch makes a tree in many steps, and finds in the store what it is made of
// in the end, and nothing else.
func TestSketch(t *testing.T) {
	for _, row := range []struct {
		name         string
		files, steps int
		held         bool // all of it fits into memory
	}{
		{"a few nodes", 300, 100, true},
		{"more than is held back", 20_000, 2500, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			base := NewMemNodes()
			root := tree(t, base, row.files)
			before := len(base.nodes)
			sketch := NewSketch(base)
			for i := range row.steps {
				ed := Edit(sketch, root)
				if err := ed.Set(fmt.Sprintf("src/module0/package00/new%d", i), Entry{Kind: File, Mode: 0o644}); err != nil {
					t.Fatal(err)
				}
				var err error
				if root, err = ed.Root(); err != nil {
					t.Fatal(err)
				}
			}
			if got := len(base.nodes) == before; got != row.held {
				t.Errorf("the store has %d nodes before Keep, and %d before the edits", len(base.nodes), before)
			}
			if err := sketch.Keep(root); err != nil {
				t.Fatal(err)
			}
			if err := Verify(base, root); err != nil {
				t.Error(err)
			}
			if added := len(base.nodes) - before; row.held && added > 20 {
				t.Errorf("%d nodes were added by %d edits of one folder", added, row.steps)
			}
			// A sketch goes on after Keep, and another Keep adds nothing.
			n := len(base.nodes)
			if err := sketch.Keep(root, Entry{Kind: Dir}); err != nil || len(base.nodes) != n {
				t.Errorf("keeping again: %v, %d nodes became %d", err, n, len(base.nodes))
			}
			if err := Verify(sketch, root); err != nil {
				t.Error(err)
			}
		})
	}
}
