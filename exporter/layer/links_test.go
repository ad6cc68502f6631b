package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
)

// TestLinks has files of several names, before and behind each other, in the same
// folder and not: each name but the first is a link to the first.
func TestLinks(t *testing.T) {
	s := newStore()
	one, two, alone := s.file([]byte("one")), s.file([]byte("two")), s.file([]byte("alone"))
	one.Tag, two.Tag, alone.Tag = 1, 2, 3
	other := one // of the same contents, and another file
	other.Tag = 4
	root := s.root(t, map[string]tree.Entry{
		"a/alone": alone, "a/two": two,
		"b/deep/one": one, "b/one": one, "b/other": other,
		"c/one": one, "c/two": two, "two": two,
	})
	const prefix = "at/"
	want := map[string]string{
		"at/b/one": "at/b/deep/one", "at/c/one": "at/b/deep/one",
		"at/c/two": "at/a/two", "at/two": "at/a/two",
	}
	var stream bytes.Buffer
	w := &walker{nodes: s.nodes, prefix: prefix, emit: func(it item) error {
		stream.Write(it.header)
		if it.file.Size > 0 {
			stream.Write(make([]byte, it.file.Size+padding(it.file.Size)))
		}
		return nil
	}}
	if err := w.walk(root); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for r := tar.NewReader(&stream); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeLink {
			got[h.Name] = h.Linkname
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("links are %v, want %v", got, want)
	}
}

// TestLinksSharedNumber has two files that have the number in common by which files
// are told apart at first: they are two files all the same.
func TestLinksSharedNumber(t *testing.T) {
	s := newStore()
	a, b := s.file([]byte("a")), s.file([]byte("b"))
	root := s.root(t, map[string]tree.Entry{"a": a, "b": b})
	l := newLinks(s.nodes, root.Children, "")
	addTo(l.met, inodeOf(&b))
	for path, e := range map[string]tree.Entry{"a": a, "b": b} {
		if first, err := l.firstOf(&e, path); err != nil || first != path {
			t.Errorf("%s comes first at %q, %v", path, first, err)
		}
	}
}
