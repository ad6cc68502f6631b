package tree

import "fmt"

// By says which differences count.
type By int

const (
	// ByAddr counts every difference: times and tags too.
	ByAddr By = iota
	// ByID counts what the identity covers.
	ByID
)

// same reports whether two directories do not differ in what by counts.
func (by By) same(a, b Ref) bool {
	if by == ByID {
		return a.ID == b.ID
	}
	return a.Addr == b.Addr
}

// cursor goes through a directory in name order. It opens a node when it must
// and not before, so that whole nodes can be passed over.
type cursor struct {
	n      Nodes
	frames []frame
	// inline holds the frames of directories of up to some million names.
	inline [4]frame
}

// frame is a place in a node: the item that comes next.
type frame struct {
	d node
	i int
}

// open puts c at the start of a directory.
func (c *cursor) open(n Nodes, ref Ref) error {
	c.n, c.frames = n, c.inline[:0]
	if ref == (Ref{}) {
		return nil
	}
	d, err := load(n, ref.Addr)
	if err == nil {
		c.frames = append(c.frames, frame{d: d})
	}
	return err
}

func (c *cursor) done() bool  { return len(c.frames) == 0 }
func (c *cursor) top() *frame { return &c.frames[len(c.frames)-1] }

// level is 0 where an entry comes next, n where an unopened node of level n-1 does.
func (c *cursor) level() int { return c.top().d.level }

// item gives what comes next.
func (c *cursor) item() (record, error) {
	f := c.top()
	return f.d.item(f.i)
}

// skip passes over what comes next.
func (c *cursor) skip() {
	for c.top().i++; c.top().i == c.top().d.count; c.top().i++ {
		c.frames = c.frames[:len(c.frames)-1]
		if c.done() {
			return
		}
	}
}

// descend opens the node that comes next.
func (c *cursor) descend() error {
	f := c.top()
	d, err := loadChild(c.n, &f.d, f.i)
	if err == nil {
		c.frames = append(c.frames, frame{d: d})
	}
	return err
}

// entry goes to the next entry and gives it; ok is false at the end.
func (c *cursor) entry() (r record, ok bool, err error) {
	if c.done() {
		return record{}, false, nil
	}
	for c.level() > 0 {
		if err := c.descend(); err != nil {
			return record{}, false, err
		}
	}
	r, err = c.item()
	return r, err == nil, err
}

// seek goes on to the first entry whose name is not below name.
func (c *cursor) seek(name string) error {
	for !c.done() {
		f := c.top()
		if f.i = f.d.search(f.i, name); f.i < f.d.count {
			if f.d.level == 0 {
				return nil
			}
			if err := c.descend(); err != nil {
				return err
			}
			continue
		}
		f.i--
		c.skip()
	}
	return nil
}

// compare goes through two directories at once and calls fn for each name that
// differs in what by counts, with nil where a side has none. Nodes that are the
// same on both sides are passed over unread. With onlyA names that a does not
// have are passed over too, and b is searched rather than read: the cost is then
// that of a's entries, however many b has.
func compare(n Nodes, ra, rb Ref, by By, onlyA bool, fn func(a, b *record) error) error {
	if by.same(ra, rb) {
		return nil
	}
	var a, b cursor
	if err := a.open(n, ra); err != nil {
		return err
	}
	if err := b.open(n, rb); err != nil {
		return err
	}
	for !a.done() || !onlyA && !b.done() {
		moved, err := align(&a, &b, by, onlyA)
		if err == nil && !moved {
			err = step(&a, &b, by, onlyA, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// align passes over equal nodes and opens unequal ones; moved is false when
// entries come next on the sides that matter.
func align(a, b *cursor, by By, onlyA bool) (moved bool, err error) {
	la, lb := 0, 0
	if !a.done() {
		la = a.level()
	}
	if !b.done() {
		lb = b.level()
	}
	switch {
	case la > 0 && la == lb:
		x, err := a.item()
		if err != nil {
			return false, err
		}
		y, err := b.item()
		if err != nil {
			return false, err
		}
		p, err := x.node()
		if err != nil {
			return false, err
		}
		q, err := y.node()
		if err != nil {
			return false, err
		}
		if by.same(p, q) {
			a.skip()
			b.skip()
			return true, nil
		}
		return true, a.descend()
	case la > lb:
		return true, a.descend()
	case lb > 0 && (la > 0 || !onlyA):
		return true, b.descend()
	}
	return false, nil
}

// step handles the next name.
func step(a, b *cursor, by By, onlyA bool, fn func(a, b *record) error) error {
	x, okA, err := a.entry()
	if err != nil {
		return err
	}
	if onlyA {
		if err := b.seek(string(x.name)); err != nil {
			return err
		}
	}
	y, okB, err := b.entry()
	if err != nil {
		return err
	}
	switch {
	case !okB || okA && string(x.name) < string(y.name):
		a.skip()
		return fn(&x, nil)
	case !okA || string(y.name) < string(x.name):
		if onlyA { // seek has passed such names, if they are sorted at all
			return fmt.Errorf("tree: name %q out of order: %w", y.name, ErrCorrupt)
		}
		b.skip()
		return fn(nil, &y)
	}
	a.skip()
	b.skip()
	if x.same(&y, by) {
		return nil
	}
	return fn(&x, &y)
}
