package tree

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Builder makes a tree of entries that come in any order, as those of a tar
// stream do. The zero value is an empty tree. A Builder holds an entry in about
// 80 bytes and its name. It is not safe for concurrent use.
//
// What is set later replaces what was set before under the same name, but for
// the two ways in which a layer's tar stream names something twice: a directory
// that is set again keeps what is in it, and a Whiteout beside anything else of
// its name removes what lower layers have there, not what this one has.
type Builder struct {
	// MTime is that of the root and of parents for which nothing was set; they
	// belong to root and have mode 0755.
	MTime int64

	root *dirBuild
	// at is the directory of the last entry: streams name many of one in a row.
	at     *dirBuild
	atPath string
}

// dirBuild is a directory in a Builder.
type dirBuild struct {
	meta Entry
	// recs say where in buf the entries are, in the order in which they came.
	buf   []byte
	recs  []recPlace
	dirs  map[string]*dirBuild
	index map[string]int32 // name to recs, from the first Get on
}

type recPlace struct{ start, rest uint32 }

func (d *dirBuild) record(i int) record {
	p, end := d.recs[i], uint32(len(d.buf))
	if i+1 < len(d.recs) {
		end = d.recs[i+1].start
	}
	r, err := parseRecord(d.buf[p.start:p.rest:p.rest], d.buf[p.rest:end:end])
	if err != nil {
		panic(err) // append wrote it
	}
	return r
}

func (d *dirBuild) append(e *Entry) error {
	if len(d.buf) > math.MaxUint32/2 {
		return fmt.Errorf("tree: entry %q: its directory is too large", e.Name)
	}
	p := recPlace{start: uint32(len(d.buf))}
	d.buf = e.appendIdent(appendName(d.buf, e.Name))
	p.rest = uint32(len(d.buf))
	d.buf = e.appendRest(d.buf)
	d.recs = append(d.recs, p)
	if d.index != nil {
		d.note(len(d.recs) - 1)
	}
	return nil
}

// note puts record i into the index.
func (d *dirBuild) note(i int) {
	r := d.record(i)
	if _, ok := d.index[string(r.name)]; !ok || r.kind() != Whiteout {
		d.index[string(r.name)] = int32(i)
	}
}

// Set puts e at path; e's Name is not looked at. Parents that are missing are
// made. A directory may bring Children; nothing can then be set below it.
func (b *Builder) Set(path string, e Entry) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	if why := e.flaw(); why != "" {
		return fmt.Errorf("tree: entry %q: %s: %w", path, why, ErrBadEntry)
	}
	if isRoot(path) {
		if e.Kind != Dir {
			return fmt.Errorf("tree: the root must be a directory: %w", ErrBadEntry)
		}
		e.Name, b.at = "", nil
		root := b.top()
		e.Opaque = e.Opaque || root.meta.Opaque
		return root.describe(&e, path)
	}
	dir, name := split(path)
	d, err := b.parent(dir)
	if err != nil {
		return err
	}
	e.Name = name
	if e.Kind == Dir {
		if e.Children != (Ref{}) {
			b.at = nil // nothing more goes there
		}
		return b.setDir(d, path, &e)
	}
	if d.dirs[name] != nil && e.Kind != Whiteout {
		delete(d.dirs, name)
		b.at = nil // it may have been below
	}
	return d.append(&e)
}

// setDir puts the directory e into d.
func (b *Builder) setDir(d *dirBuild, path string, e *Entry) error {
	if sub := d.dirs[e.Name]; sub != nil {
		e.Opaque = e.Opaque || sub.meta.Opaque
		return sub.describe(e, path)
	}
	_, err := d.mkdir(e)
	return err
}

// describe gives the directory d, which is at path, e's metadata.
func (d *dirBuild) describe(e *Entry, path string) error {
	if e.Children != (Ref{}) && len(d.recs) > 0 {
		return fmt.Errorf("tree: entry %q brings children and has some: %w", path, ErrBadEntry)
	}
	if e.Children == (Ref{}) {
		e.Children = d.meta.Children
	}
	d.meta = *e
	return nil
}

// mkdir makes a directory in d. Its record marks the place; Root fills it in.
func (d *dirBuild) mkdir(e *Entry) (*dirBuild, error) {
	if d.dirs == nil {
		d.dirs = make(map[string]*dirBuild)
	}
	sub := &dirBuild{meta: *e}
	d.dirs[e.Name] = sub
	return sub, d.append(&Entry{Name: e.Name, Kind: Dir})
}

// SetOpaque says of a layer's directory that nothing below shows through.
func (b *Builder) SetOpaque(path string) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	if isRoot(path) {
		b.top().meta.Opaque = true
		return nil
	}
	d, err := b.parent(path)
	if err == nil {
		d.meta.Opaque = true
	}
	return err
}

func (b *Builder) top() *dirBuild {
	if b.root == nil {
		b.root = &dirBuild{meta: Entry{Kind: Dir, Mode: parentMode, MTime: b.MTime}}
	}
	return b.root
}

// parent gives the directory at a checked path, and makes what is missing of it.
func (b *Builder) parent(path string) (*dirBuild, error) {
	if b.at != nil && b.atPath == path {
		return b.at, nil
	}
	d := b.top()
	for rest, more := path, path != ""; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		sub := d.dirs[name]
		if sub == nil {
			var err error
			if sub, err = d.mkdir(&Entry{Name: strings.Clone(name), Kind: Dir, Mode: parentMode, MTime: b.MTime}); err != nil {
				return nil, err
			}
		}
		d = sub
		if d.meta.Children != (Ref{}) {
			break
		}
	}
	if d.meta.Children != (Ref{}) {
		return nil, fmt.Errorf("tree: directory %q brought its children, nothing can be added: %w", path, ErrBadEntry)
	}
	b.at, b.atPath = d, strings.Clone(path)
	return d, nil
}

// Get gives what was set at path. A directory's Children are those that it
// brought.
func (b *Builder) Get(path string) (Entry, bool) {
	d := b.top()
	if isRoot(path) {
		return d.meta, true
	}
	if CheckPath(path) != nil {
		return Entry{}, false
	}
	dir, name := split(path)
	for rest, more := dir, dir != ""; more; {
		var step string
		step, rest, more = strings.Cut(rest, "/")
		if d = d.dirs[step]; d == nil {
			return Entry{}, false
		}
	}
	if sub := d.dirs[name]; sub != nil {
		return sub.meta, true
	}
	if d.index == nil {
		d.index = make(map[string]int32, len(d.recs))
		for i := range d.recs {
			d.note(i)
		}
	}
	i, ok := d.index[name]
	if !ok {
		return Entry{}, false
	}
	r := d.record(int(i))
	e, err := r.entry()
	return e, err == nil
}

// Root writes the tree's nodes and gives its root. The Builder can be used on.
func (b *Builder) Root(n Nodes) (Entry, error) { return b.top().write(n, false) }

// write writes d's nodes, those of what is in it first.
func (d *dirBuild) write(n Nodes, opaque bool) (Entry, error) {
	e := d.meta
	e.Opaque = e.Opaque || opaque
	if len(d.recs) == 0 {
		return e, nil
	}
	order := d.order()
	subs := make([]Entry, 0, len(d.dirs))
	for i := 0; i < len(order); {
		r, hidden, next := d.pick(order, i)
		if i = next; r.kind() == Dir {
			sub, err := d.dirs[string(r.name)].write(n, hidden)
			if err != nil {
				return Entry{}, err
			}
			subs = append(subs, sub)
		}
	}
	w := newWriter(n)
	defer w.free()
	for i := 0; i < len(order); {
		r, _, next := d.pick(order, i)
		if i = next; r.kind() == Dir {
			r, subs = newRecord(&subs[0]), subs[1:]
		}
		if err := w.entry(&r); err != nil {
			return Entry{}, err
		}
	}
	var err error
	e.Children, err = w.finish()
	return e, err
}

// order gives the records sorted by name, those of one name as they came.
func (d *dirBuild) order() []int32 {
	order := make([]int32, len(d.recs))
	for i := range order {
		order[i] = int32(i)
	}
	byName := func(a, b int32) int {
		x, y := d.record(int(a)), d.record(int(b))
		return bytes.Compare(x.name, y.name)
	}
	if !slices.IsSortedFunc(order, byName) {
		slices.SortStableFunc(order, byName)
	}
	return order
}

// pick gives the record that stands for the name of order[i], whether a Whiteout
// of that name was set too, and where the next name begins.
func (d *dirBuild) pick(order []int32, i int) (r record, hidden bool, next int) {
	r = d.record(int(order[i]))
	hidden = r.kind() == Whiteout
	for next = i + 1; next < len(order); next++ {
		o := d.record(int(order[next]))
		if !bytes.Equal(o.name, r.name) {
			break
		}
		if o.kind() == Whiteout {
			hidden = true
			continue
		}
		r = o
	}
	return r, hidden, next
}
