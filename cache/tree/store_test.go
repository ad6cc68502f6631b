package tree

import (
	"errors"
	"syscall"
	"testing"
)

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
