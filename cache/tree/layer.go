package tree

import (
	"fmt"
)

// Apply puts a layer over a state, as overlayfs shows it, and gives the state
// that comes of it. A directory takes its metadata from the layer. Subtrees that
// are equal on both sides, and those of the layer that are over nothing and hide
// nothing, are taken as they are.
func Apply(n Nodes, lower, layer Entry) (Entry, error) {
	if lower.Kind != Dir && lower.Kind != None || layer.Kind != Dir {
		return Entry{}, fmt.Errorf("tree: applying a layer of kind %d to kind %d: %w", layer.Kind, lower.Kind, ErrBadEntry)
	}
	return apply(n, lower, layer, 0)
}

// apply gives what the directory layer makes of lower, which may be of any kind. Level
// is how many directories they are inside of.
func apply(n Nodes, lower, layer Entry, level int) (Entry, error) {
	if err := checkLevel(level); err != nil {
		return Entry{}, err
	}
	if lower.Kind != Dir || layer.Opaque {
		lower.Children = Ref{}
	}
	layer.Opaque = false
	if lower.Children == (Ref{}) && !layer.Children.ID.marked() {
		return layer, nil
	}
	var changes []change
	err := compare(n, layer.Children, lower.Children, ByAddr, true, func(a, b *record) error {
		c := change{name: string(a.name), rec: *a}
		switch a.kind() {
		case Whiteout:
			c.rec = record{}
			if b == nil {
				return nil
			}
		case Dir:
			if b == nil && !a.marked() {
				break
			}
			up, low, err := entries(a, b)
			if err != nil {
				return err
			}
			if up, err = apply(n, low, up, level+1); err != nil {
				return err
			}
			c.rec = newRecord(&up)
		}
		changes = append(changes, c)
		return nil
	})
	if err != nil {
		return Entry{}, err
	}
	layer.Children, err = rewrite(n, lower.Children, changes)
	return layer, err
}

// entries decodes two records, of which b may be missing.
func entries(a, b *record) (x, y Entry, err error) {
	if a != nil {
		if x, err = a.entry(); err != nil {
			return x, y, err
		}
	}
	if b != nil {
		y, err = b.entry()
	}
	return x, y, err
}

// Diff gives the layer that makes upper of lower: Apply(lower, Diff(lower,
// upper)) is upper. By says which entries count as different; with ByID the
// result of Apply may differ from upper in times and tags.
func Diff(n Nodes, lower, upper Entry, by By) (Entry, error) {
	if lower.Kind != Dir && lower.Kind != None || upper.Kind != Dir {
		return Entry{}, fmt.Errorf("tree: difference of kind %d to kind %d: %w", upper.Kind, lower.Kind, ErrBadEntry)
	}
	return diff(n, lower, upper, by, 0)
}

func diff(n Nodes, lower, upper Entry, by By, level int) (Entry, error) {
	if err := checkLevel(level); err != nil {
		return Entry{}, err
	}
	if lower.Kind != Dir || lower.Children == (Ref{}) {
		return upper, nil
	}
	var changes []change
	err := compare(n, lower.Children, upper.Children, by, false, func(a, b *record) error {
		switch {
		case b == nil:
			e := Entry{Name: string(a.name), Kind: Whiteout}
			changes = append(changes, change{name: e.Name, rec: newRecord(&e)})
			return nil
		case a == nil || a.kind() != Dir || b.kind() != Dir:
			changes = append(changes, change{name: string(b.name), rec: *b})
			return nil
		}
		low, up, err := entries(a, b)
		if err != nil {
			return err
		}
		if up, err = diff(n, low, up, by, level+1); err != nil {
			return err
		}
		changes = append(changes, change{name: up.Name, rec: newRecord(&up)})
		return nil
	})
	if err != nil {
		return Entry{}, err
	}
	upper.Children, err = rewrite(n, Ref{}, changes)
	return upper, err
}

// Tidy takes out of a layer the whiteouts that hide nothing of the state lower, so that
// Apply gives the same with what is left.
func Tidy(n Nodes, lower, layer Entry) (Entry, error) { return tidy(n, lower, layer, 0) }

func tidy(n Nodes, lower, layer Entry, level int) (Entry, error) {
	if !layer.Marked() {
		return layer, nil
	}
	if err := checkLevel(level); err != nil {
		return Entry{}, err
	}
	if lower.Kind != Dir || layer.Opaque {
		lower.Children = Ref{}
	}
	var changes []change
	err := compare(n, layer.Children, lower.Children, ByAddr, true, func(a, b *record) error {
		switch {
		case a.kind() == Whiteout && b == nil:
			changes = append(changes, change{name: string(a.name)})
		case a.kind() == Dir && a.marked():
			up, low, err := entries(a, b)
			if err != nil {
				return err
			}
			was := up.Children
			if up, err = tidy(n, low, up, level+1); err != nil {
				return err
			}
			if up.Children != was {
				changes = append(changes, change{name: up.Name, rec: newRecord(&up)})
			}
		}
		return nil
	})
	if err != nil {
		return Entry{}, err
	}
	layer.Children, err = rewrite(n, layer.Children, changes)
	return layer, err
}

// HasOpaque reports whether a directory of a layer is opaque, the root left out.
// Directories without marks are not looked into.
func HasOpaque(n Nodes, layer Entry) (bool, error) { return hasOpaque(n, layer, 0) }

func hasOpaque(n Nodes, layer Entry, level int) (bool, error) {
	if layer.Kind != Dir || !layer.Children.ID.marked() {
		return false, nil
	}
	if err := checkLevel(level); err != nil {
		return false, err
	}
	for e, err := range ReadDir(n, layer.Children) {
		if err != nil {
			return false, err
		}
		if e.Kind != Dir {
			continue
		}
		if e.Opaque {
			return true, nil
		}
		if found, err := hasOpaque(n, e, level+1); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

// Squash makes one layer of several, bottom first: applying it is applying them
// in turn.
func Squash(n Nodes, layers ...Entry) (Entry, error) {
	if len(layers) == 0 {
		return Entry{Kind: Dir, Mode: parentMode}, nil
	}
	sum := layers[0]
	for _, l := range layers {
		if l.Kind != Dir {
			return Entry{}, fmt.Errorf("tree: squashing a layer of kind %d: %w", l.Kind, ErrBadEntry)
		}
	}
	for _, l := range layers[1:] {
		var err error
		if sum, err = squash(n, sum, l, 0); err != nil {
			return Entry{}, err
		}
	}
	return sum, nil
}

// squash puts the directory upper over lower, both of them in layers.
func squash(n Nodes, lower, upper Entry, level int) (Entry, error) {
	if err := checkLevel(level); err != nil {
		return Entry{}, err
	}
	switch {
	case lower.Kind == None || upper.Opaque:
		return upper, nil
	case lower.Kind != Dir:
		// What lower replaced or removed must not come back beside upper.
		upper.Opaque = true
		return upper, nil
	}
	var changes []change
	err := compare(n, upper.Children, lower.Children, ByAddr, true, func(a, b *record) error {
		c := change{name: string(a.name), rec: *a}
		if a.kind() == Dir && b != nil {
			up, low, err := entries(a, b)
			if err != nil {
				return err
			}
			if up, err = squash(n, low, up, level+1); err != nil {
				return err
			}
			c.rec = newRecord(&up)
		}
		changes = append(changes, c)
		return nil
	})
	if err != nil {
		return Entry{}, err
	}
	upper.Opaque = lower.Opaque
	upper.Children, err = rewrite(n, lower.Children, changes)
	return upper, err
}
