package layer

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
)

// TestTooDeep writes trees as deep as a path can be, and deeper ones. With a file of
// two names the whole tree is gone through before its deep part is written.
func TestTooDeep(t *testing.T) {
	s := newStore()
	linked := s.file([]byte("two names"))
	linked.Tag = 1
	for _, test := range []struct {
		levels int
		linked bool
		ok     bool
	}{{16, false, true}, {16, true, true}, {17, false, false}, {40, true, false}} {
		deep := tree.Entry{Kind: tree.Dir, Mode: 0o755}
		for level := range test.levels {
			deep.Name = strings.Repeat("n", 255)
			entries := []tree.Entry{deep}
			if level == test.levels-1 && test.linked {
				a, b := linked, linked
				a.Name, b.Name = "a", "b"
				entries = []tree.Entry{a, b, deep}
			}
			ref, err := tree.PutDir(s.nodes, entries)
			if err != nil {
				t.Fatal(err)
			}
			deep = tree.Entry{Kind: tree.Dir, Mode: 0o755, Children: ref}
		}
		err := Stream{Files: s.Files()}.Write(t.Context(), io.Discard, deep)
		if (err == nil) != test.ok || err != nil && !errors.Is(err, syscall.ENAMETOOLONG) {
			t.Errorf("%d levels, with links %v: %v, want that to be good: %v", test.levels, test.linked, err, test.ok)
		}
	}
}
