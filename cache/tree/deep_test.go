package tree

import (
	"errors"
	"strings"
	"syscall"
	"testing"
)

// nested puts e into so many directories, inside each other.
func nested(t *testing.T, n Nodes, levels int, name string, e Entry) Entry {
	t.Helper()
	for range levels {
		e.Name = name
		e = Entry{Kind: Dir, Mode: 0o755, Children: putDir(t, n, []Entry{e})}
	}
	return e
}

// TestTooDeep goes through trees as deep as a path can be, and through deeper ones,
// which are an error and nothing worse.
func TestTooDeep(t *testing.T) {
	n := NewMemNodes()
	same := func(_ string, e Entry) (Entry, error) { return e, nil }
	for _, op := range []struct {
		name string
		run  func(a, b, opaque Entry) error
	}{
		{"Walk", func(a, _, _ Entry) error { return Walk(n, a, func(string, Entry) error { return nil }) }},
		{"Map", func(a, _, _ Entry) error { _, err := Map(n, a, same); return err }},
		{"Filter", func(a, _, _ Entry) error {
			_, err := Filter(n, a, func(string, Entry) Verdict { return Enter })
			return err
		}},
		{"Changed", func(a, b, _ Entry) error {
			return Changed(n, a, b, ByAddr, func(string, Entry, Entry) error { return nil })
		}},
		{"Verify", func(a, _, _ Entry) error { return Verify(n, a) }},
		{"Apply", func(a, b, _ Entry) error { _, err := Apply(n, a, b); return err }},
		{"Diff", func(a, b, _ Entry) error { _, err := Diff(n, a, b, ByAddr); return err }},
		{"Squash", func(a, b, _ Entry) error { _, err := Squash(n, a, b); return err }},
		{"HasOpaque", func(_, _, opaque Entry) error {
			found, err := HasOpaque(n, opaque)
			if err == nil && !found {
				err = errors.New("the opaque directory was not found")
			}
			return err
		}},
	} {
		for _, c := range []struct {
			levels int
			ok     bool
		}{
			{maxLevels, true}, // a path of 4,095 bytes
			{3000, false},
		} {
			a := nested(t, n, c.levels, "d", Entry{Kind: Fifo, Mode: 0o600})
			b := nested(t, n, c.levels, "d", Entry{Kind: Fifo, Mode: 0o644})
			opaque := nested(t, n, c.levels, "d", Entry{Kind: Dir, Opaque: true})
			if err := op.run(a, b, opaque); (err == nil) != c.ok || err != nil && !errors.Is(err, syscall.ENAMETOOLONG) {
				t.Errorf("%s of %d levels gives %v, want that to be good: %v", op.name, c.levels, err, c.ok)
			}
		}
	}
}

func TestCheckLength(t *testing.T) {
	for length, ok := range map[int]bool{0: true, 4096: true, 4097: false} {
		err := CheckLength(strings.Repeat("n", length))
		if (err == nil) != ok || err != nil && (!errors.Is(err, syscall.ENAMETOOLONG) || len(err.Error()) > 300) {
			t.Errorf("a path of %d bytes: %v, want that to be good: %v", length, err, ok)
		}
	}
}
