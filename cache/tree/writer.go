package tree

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Where a directory is cut into nodes depends on its names, so that one set of
// entries has one form, whichever way it came about, and a name that is added
// moves no cut but those beside it. A node ends after a name whose hash is a
// multiple of the level's every, once it has min items; after max items at the
// latest; and after cutWeight bytes of identity, which keeps nodes of long links
// and large xattrs small. Leaves so have about 80 entries, and other nodes 32
// items: an edit in a directory of 100,000 names writes 12 KB. Leaves of 256
// would make it 40 KB; smaller ones would make most directories several nodes,
// each of which costs a read.
const (
	leafMin, leafEvery, leafMax    = 48, 32, 320
	innerMin, innerEvery, innerMax = 16, 16, 128
	cutWeight                      = 128 << 10
)

// cutHash is FNV-1a with the finalizer of murmur3, which spreads the few bits
// in which names like file0001 and file0002 differ. The level goes in, so that
// a name that ends a leaf is not more likely to end the node above it.
func cutHash(name []byte, level int) uint64 {
	h := uint64(14695981039346656037) + uint64(level)
	for _, c := range name {
		h = (h ^ uint64(c)) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// page is a node that is being filled.
type page struct {
	level       int
	count       int
	marked      bool
	last        []byte // the name of the last item
	table       []byte
	rest, ident []byte
}

// add appends an item. It does not ask whether the page ended before it.
func (p *page) add(r *record, marked bool) {
	if p.count == 0 {
		p.ident = append(p.ident[:0], nodeVersion, byte(p.level))
		p.table, p.rest, p.marked = p.table[:0], p.rest[:0], false
	}
	p.ident = append(p.ident, r.full...)
	p.rest = append(p.rest, r.rest...)
	p.table = binary.LittleEndian.AppendUint32(p.table, uint32(len(p.ident)))
	p.table = binary.LittleEndian.AppendUint32(p.table, uint32(len(p.rest)))
	p.last = append(p.last[:0], r.name...)
	p.marked = p.marked || marked
	p.count++
}

// ends reports whether the node ends here, whatever follows.
func (p *page) ends() bool {
	lo, every, hi := leafMin, uint64(leafEvery), leafMax
	if p.level > 0 {
		lo, every, hi = innerMin, innerEvery, innerMax
	}
	return p.count >= hi || len(p.ident) >= cutWeight || p.count >= lo && cutHash(p.last, p.level)%every == 0
}

// encode gives the node's identity and bytes.
func (p *page) encode() (ID, []byte) {
	b := make([]byte, 0, nodeHeader+len(p.table)+len(p.rest)+len(p.ident))
	b = append(b, nodeMagic, nodeVersion, byte(p.level), 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(p.count))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.rest)))
	b = append(b, p.table...)
	b = append(b, p.rest...)
	b = append(b, p.ident...)
	return ID(sha256.Sum256(p.ident)).setMarked(p.marked), b
}

// markedAt is marked for an item of a node of that level.
func (r *record) markedAt(level int) bool {
	if level > 0 {
		return len(r.ident) > 0 && r.ident[len(r.ident)-1]&1 != 0
	}
	return r.marked()
}

// writer writes one directory's nodes from its entries in name order. Between
// finish and the next entry it can be used again.
type writer struct {
	n       Nodes
	pages   []*page // by level
	scratch []byte
	record  []byte // the entry that PutDir adds
}

var writers = sync.Pool{New: func() any { return new(writer) }}

// newWriter takes a writer from the pool, for its buffers; free puts it back.
func newWriter(n Nodes) *writer {
	w := writers.Get().(*writer)
	w.n = n
	return w
}

func (w *writer) free() {
	for _, p := range w.pages {
		p.count = 0
		if cap(p.ident) > 2*cutWeight {
			*p = page{level: p.level} // keeps the pool's buffers small
		}
	}
	if cap(w.record) > cutWeight {
		w.record = nil
	}
	w.n = nil
	writers.Put(w)
}

// page gives the page of a level.
func (w *writer) page(level int) *page {
	for len(w.pages) <= level {
		w.pages = append(w.pages, &page{level: len(w.pages)})
	}
	return w.pages[level]
}

// entry appends an entry of the directory.
func (w *writer) entry(r *record) error { return w.add(0, r, r.marked()) }

func (w *writer) add(level int, r *record, marked bool) error {
	p := w.page(level)
	p.add(r, marked)
	if p.ends() {
		return w.flush(level)
	}
	return nil
}

// addNode appends a node of that level as it is. All pages of the level and
// below must be empty, so that the node begins where one would begin anyway.
func (w *writer) addNode(level int, last []byte, ref Ref) error {
	b := binary.AppendUvarint(w.scratch[:0], uint64(len(last)))
	b = append(b, last...)
	named := len(b)
	b = append(b, ref.ID[:]...)
	full := len(b)
	b = append(b, ref.Addr[:]...)
	w.scratch = b
	r := record{full: b[:full], name: b[named-len(last) : named], ident: b[named:full], rest: b[full:]}
	return w.add(level+1, &r, ref.ID.marked())
}

// clean reports whether a node of that level could begin here.
func (w *writer) clean(level int) bool {
	for l := 0; l <= level && l < len(w.pages); l++ {
		if w.pages[l].count > 0 {
			return false
		}
	}
	return true
}

// put stores the page of that level as a node and empties it.
func (w *writer) put(level int) (Ref, error) {
	p := w.pages[level]
	id, b := p.encode()
	p.count = 0
	ref := Ref{ID: id, Addr: sha256.Sum256(b)}
	if err := w.n.PutNode(ref.Addr, b); err != nil {
		return Ref{}, fmt.Errorf("storing node %.12s: %w", ref.Addr, err)
	}
	return ref, nil
}

func (w *writer) flush(level int) error {
	ref, err := w.put(level)
	if err != nil {
		return err
	}
	return w.addNode(level, w.pages[level].last, ref)
}

// finish ends the directory and gives its root node.
func (w *writer) finish() (Ref, error) {
	for level := 0; ; level++ {
		top := true
		for _, p := range w.pages[min(level+1, len(w.pages)):] {
			top = top && p.count == 0
		}
		switch p := w.page(level); {
		case !top && p.count > 0:
			if err := w.flush(level); err != nil {
				return Ref{}, err
			}
		case !top:
		case p.count == 0: // no entries at all: a level above 0 has items when it is reached
			return Ref{}, nil
		case level > 0 && p.count == 1:
			return w.only(p)
		default:
			return w.put(level)
		}
	}
}

// only gives the root of a directory whose top page has a single item: the first
// node on the way down that has several, or the leaf.
func (w *writer) only(p *page) (Ref, error) {
	r, err := parseRecord(p.ident[identHeader:], p.rest)
	if err != nil {
		return Ref{}, err
	}
	p.count = 0
	for {
		ref, err := r.node()
		if err != nil {
			return Ref{}, err
		}
		if p.level == 1 {
			return ref, nil
		}
		d, err := load(w.n, ref.Addr)
		if err != nil || d.level == 0 || d.count > 1 {
			return ref, err
		}
		if r, err = d.item(0); err != nil {
			return Ref{}, err
		}
	}
}

// PutDir stores a directory of these entries, which it sorts by name. It is for
// whoever has a whole directory at hand, with the Children of those in it, as a
// scan from the leaves up does; a Builder holds what comes in another order.
func PutDir(n Nodes, entries []Entry) (Ref, error) {
	for i := 1; i < len(entries); i++ {
		if entries[i-1].Name > entries[i].Name {
			slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
			break
		}
	}
	w := newWriter(n)
	defer w.free()
	for i := range entries {
		e := &entries[i]
		err := e.Check()
		if err == nil && e.Name == "" {
			err = CheckName(e.Name)
		}
		if err == nil && i > 0 && entries[i-1].Name == e.Name {
			err = fmt.Errorf("tree: entry %q is there twice: %w", e.Name, ErrBadEntry)
		}
		if err != nil {
			return Ref{}, err
		}
		var r record
		r, w.record = e.encodeIn(w.record)
		if err := w.entry(&r); err != nil {
			return Ref{}, err
		}
	}
	return w.finish()
}
