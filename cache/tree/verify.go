package tree

import (
	"fmt"
	"iter"
)

// Refs lists the nodes that a node refers to: the nodes below it in its own
// directory, and those of the directories in it. An error is the last thing
// that it gives.
func Refs(b []byte) iter.Seq2[Ref, error] {
	return func(yield func(Ref, error) bool) {
		d, err := openNode(b)
		if err != nil {
			yield(Ref{}, err)
			return
		}
		for i := range d.count {
			it, err := d.item(i)
			var ref Ref
			if err == nil && d.level > 0 {
				ref, err = it.node()
			} else if err == nil {
				ref = it.children()
			}
			if err != nil {
				yield(Ref{}, err)
				return
			}
			if ref != (Ref{}) && !yield(ref, nil) {
				return
			}
		}
	}
}

// NodeEntries lists the entries in a node itself; a node of a level above 0 has
// none. An error is the last thing that it gives.
func NodeEntries(b []byte) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		d, err := openNode(b)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		for i := 0; d.level == 0 && i < d.count; i++ {
			it, err := d.item(i)
			var e Entry
			if err == nil {
				e, err = it.entry()
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Verify reads all of a tree and checks that every node is there and whole, has
// both the names that it goes by, and holds names in order.
func Verify(n Nodes, root Entry) error {
	if err := root.Check(); err != nil {
		return err
	}
	if root.Kind != Dir {
		return nil
	}
	v := verifier{n: n, seen: make(map[Addr]ID)}
	return v.dir("", root.Children)
}

type verifier struct {
	n    Nodes
	seen map[Addr]ID // directories that were found whole
	// named says that the error, which ends all, tells its directory: the innermost one.
	named bool
}

func (v *verifier) dir(path string, ref Ref) error {
	if ref == (Ref{}) {
		return nil
	}
	if id, ok := v.seen[ref.Addr]; ok && id == ref.ID {
		return nil
	}
	if _, _, err := v.node(path, ref, -1); err != nil {
		if !v.named {
			v.named = true
			err = fmt.Errorf("directory %q: %w", path, err)
		}
		return err
	}
	v.seen[ref.Addr] = ref.ID
	return nil
}

// node checks the node ref, which must be of that level unless it is -1, and
// gives the first and last name below it.
func (v *verifier) node(path string, ref Ref, level int) (first, last string, err error) {
	b, err := v.n.Node(ref.Addr)
	if err != nil {
		return "", "", fmt.Errorf("reading node %.12s: %w", ref.Addr, err)
	}
	if err := CheckNode(ref, b); err != nil {
		return "", "", err
	}
	d, err := openNode(b)
	if err != nil {
		return "", "", err
	}
	if level >= 0 && d.level != level || level < 0 && d.level > 0 && d.count == 1 {
		return "", "", fmt.Errorf("tree: node %.12s of level %d is out of place: %w", ref.Addr, d.level, ErrCorrupt)
	}
	first = string(d.name(0))
	for i := range d.count {
		it, err := d.item(i)
		if err != nil {
			return "", "", err
		}
		if d.level == 0 {
			at, err := inside(path, string(it.name))
			if err != nil {
				return "", "", err
			}
			if err := v.dir(at, it.children()); err != nil {
				return "", "", err
			}
			last = string(it.name)
			continue
		}
		sub, err := it.node()
		if err != nil {
			return "", "", err
		}
		a, z, err := v.node(path, sub, d.level-1)
		if err != nil {
			return "", "", err
		}
		if z != string(it.name) || i > 0 && a <= last {
			return "", "", fmt.Errorf("tree: node %.12s holds names out of order: %w", sub.Addr, ErrCorrupt)
		}
		if last = z; i == 0 {
			first = a
		}
	}
	return first, last, nil
}
