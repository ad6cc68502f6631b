package tree

import (
	"slices"
	"strings"
)

// change is what becomes of one name of a directory.
type change struct {
	name string
	rec  record // Name and all; no ident removes the name
}

// rewrite gives the directory that base becomes by changes, each name at most
// once. It writes the nodes that the changes touch and no others.
func rewrite(n Nodes, base Ref, changes []change) (Ref, error) {
	if len(changes) == 0 {
		return base, nil
	}
	byName := func(a, b change) int { return strings.Compare(a.name, b.name) }
	if !slices.IsSortedFunc(changes, byName) {
		slices.SortFunc(changes, byName)
	}
	w := newWriter(n)
	defer w.free()
	if base == (Ref{}) {
		if err := w.changed(changes); err != nil {
			return Ref{}, err
		}
		return w.finish()
	}
	d, err := load(n, base.Addr)
	if err != nil {
		return Ref{}, err
	}
	if err := w.merge(&d, changes); err != nil {
		return Ref{}, err
	}
	return w.finish()
}

// changed appends what changes leave.
func (w *writer) changed(changes []change) error {
	for i := range changes {
		if changes[i].rec.ident != nil {
			if err := w.entry(&changes[i].rec); err != nil {
				return err
			}
		}
	}
	return nil
}

// merge appends d with changes. Every node but the last of a level ends at a
// cut, which depends on nothing but the node's own items; so an unchanged node
// can be taken as it is wherever a node would begin, and the last one too,
// because nothing follows it.
func (w *writer) merge(d *node, changes []change) error {
	if d.level == 0 {
		return w.mergeLeaf(d, changes)
	}
	for i := range d.count {
		it, err := d.item(i)
		if err != nil {
			return err
		}
		here := changes
		if i < d.count-1 {
			// Names beyond the last one of all go behind the last node.
			k, found := slices.BinarySearchFunc(changes, it.name, func(c change, name []byte) int {
				return strings.Compare(c.name, string(name))
			})
			if found {
				k++
			}
			here, changes = changes[:k], changes[k:]
		}
		if len(here) == 0 && w.clean(d.level-1) {
			ref, err := it.node()
			if err != nil {
				return err
			}
			if err := w.addNode(d.level-1, it.name, ref); err != nil {
				return err
			}
			continue
		}
		c, err := loadChild(w.n, d, i)
		if err != nil {
			return err
		}
		if err := w.merge(&c, here); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) mergeLeaf(d *node, changes []change) error {
	for i := range d.count {
		it, err := d.item(i)
		if err != nil {
			return err
		}
		k := 0
		for k < len(changes) && changes[k].name < string(it.name) {
			k++
		}
		if err := w.changed(changes[:k]); err != nil {
			return err
		}
		if changes = changes[k:]; len(changes) > 0 && changes[0].name == string(it.name) {
			continue // what it becomes is appended before the next item
		}
		if err := w.entry(&it); err != nil {
			return err
		}
	}
	return w.changed(changes)
}
