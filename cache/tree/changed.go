package tree

// Changed calls fn for each path at which two trees differ in what by counts, in
// path order, with an Entry of kind None where a side has nothing. A directory
// of which only what is in it differs is not reported itself; one that a side
// does not have is reported once, and not what is in it. Equal subtrees cost
// one comparison. An error of fn ends it.
func Changed(n Nodes, a, b Entry, by By, fn func(path string, old, new Entry) error) error {
	return changed(n, "", a, b, by, fn)
}

func changed(n Nodes, path string, a, b Entry, by By, fn func(path string, old, new Entry) error) error {
	if a.Kind != Dir || b.Kind != Dir {
		if (record{ident: a.appendIdent(nil), rest: a.appendRest(nil)}).equals(b, by) {
			return nil
		}
		return fn(path, a, b)
	}
	x, y := a, b
	x.Children, y.Children = Ref{}, Ref{}
	if !(record{ident: x.appendIdent(nil), rest: x.appendRest(nil)}).equals(y, by) {
		if err := fn(path, a, b); err != nil {
			return err
		}
	}
	return compare(n, a.Children, b.Children, by, false, func(p, q *record) error {
		old, new, err := entries(p, q)
		if err != nil {
			return err
		}
		name := old.Name
		if p == nil {
			name = new.Name
		}
		at, err := inside(path, name)
		if err != nil {
			return err
		}
		return changed(n, at, old, new, by, fn)
	})
}

func (r record) equals(e Entry, by By) bool {
	return r.same(&record{ident: e.appendIdent(nil), rest: e.appendRest(nil)}, by)
}
