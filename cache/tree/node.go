package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sort"
)

// A node is read in place: finding a name among hundreds costs a binary search
// over the table and the decoding of one entry. Integers are little endian.
//
//	header    'T', version, level, 0, count uint32, length of rest uint32
//	table     for each item: where its part ends in ident, and in rest, uint32 each
//	rest      what is no part of the identity, item by item
//	identity  version, level, then what is part of it, item by item
//
// The node's Addr is the sha256 of all of it, its ID that of the identity
// section alone, but for one bit (see ID.marked). Items of level 0 are entries:
//
//	identity  name, kind and flags, mode, uid, gid, xattrs, and by kind:
//	          size and content; ID of the children; target; dev
//	rest      mtime, and by kind: tag; Addr of the children
//
// Items of a level above 0 are nodes of the level below: the last name in it
// and its ID; its Addr.
const (
	nodeMagic   = 'T'
	nodeVersion = 1
	nodeHeader  = 12
	tableItem   = 8
	identHeader = 2

	// maxNode bounds a node's bytes: cut ends a leaf at cutWeight, its last
	// entry may have maxXattrs, and an item's share of table and rest is 48 bytes.
	maxNode = 2 << 20
)

// marked reports whether a Whiteout or an Opaque directory is anywhere below: it
// is the lowest bit of an ID's last byte, so that a tree without any, which
// most layers are, can be taken for a state as it is.
func (id ID) marked() bool { return id[len(id)-1]&1 != 0 }

// Marked reports whether a Whiteout or an Opaque directory is anywhere below e, as only
// layers have them.
func (e Entry) Marked() bool { return e.Kind == Dir && e.Children.ID.marked() }

// setMarked gives the ID of a node whose identity section hashes to id.
func (id ID) setMarked(marked bool) ID {
	id[len(id)-1] &^= 1
	if marked {
		id[len(id)-1] |= 1
	}
	return id
}

// String gives the identity as hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// String gives the address as hex digits.
func (a Addr) String() string { return hex.EncodeToString(a[:]) }

// node is a view of a node's bytes. Only the frame is checked when one is made;
// items are checked as they are read.
type node struct {
	level       int
	count       int
	table       []byte
	rest, ident []byte
}

func openNode(b []byte) (node, error) {
	if len(b) < nodeHeader || len(b) > maxNode || b[0] != nodeMagic || b[1] != nodeVersion || b[3] != 0 {
		return node{}, fmt.Errorf("tree: node of %d bytes: %w", len(b), ErrCorrupt)
	}
	d := node{level: int(b[2])}
	count, rest := int64(binary.LittleEndian.Uint32(b[4:])), int64(binary.LittleEndian.Uint32(b[8:]))
	body := b[nodeHeader:]
	if count == 0 || count*tableItem+rest+identHeader > int64(len(body)) {
		return node{}, fmt.Errorf("tree: node of %d bytes, %d items: %w", len(b), count, ErrCorrupt)
	}
	d.count = int(count)
	d.table, body = body[:count*tableItem], body[count*tableItem:]
	d.rest, d.ident = body[:rest], body[rest:]
	return d, nil
}

// load reads the node at a.
func load(n Nodes, a Addr) (node, error) {
	b, err := n.Node(a)
	if err != nil {
		return node{}, fmt.Errorf("reading node %.12s: %w", a, err)
	}
	d, err := openNode(b)
	if err != nil {
		return node{}, fmt.Errorf("reading node %.12s: %w", a, err)
	}
	return d, nil
}

// loadChild reads the node that item i of d stands for.
func loadChild(n Nodes, d *node, i int) (node, error) {
	r, err := d.item(i)
	if err != nil {
		return node{}, err
	}
	ref, err := r.node()
	if err != nil {
		return node{}, err
	}
	c, err := load(n, ref.Addr)
	if err == nil && c.level != d.level-1 {
		err = fmt.Errorf("tree: node of level %d below level %d: %w", c.level, d.level, ErrCorrupt)
	}
	return c, err
}

// span gives where item i's part of a section begins and ends; off is 0 for
// identity and 4 for rest.
func (d *node) span(i, off int) (start, end uint32) {
	if i > 0 {
		start = binary.LittleEndian.Uint32(d.table[(i-1)*tableItem+off:])
	} else if off == 0 {
		start = identHeader
	}
	return start, binary.LittleEndian.Uint32(d.table[i*tableItem+off:])
}

// item gives item i in its parts.
func (d *node) item(i int) (record, error) {
	a, b := d.span(i, 0)
	p, q := d.span(i, 4)
	if a > b || int(b) > len(d.ident) || p > q || int(q) > len(d.rest) {
		return record{}, fmt.Errorf("tree: item %d of a node: %w", i, ErrCorrupt)
	}
	return parseRecord(d.ident[a:b:b], d.rest[p:q:q])
}

// name gives the name of item i alone; it is nil where the node is corrupt,
// which item then says.
func (d *node) name(i int) []byte {
	a, b := d.span(i, 0)
	if a >= b || int(b) > len(d.ident) {
		return nil
	}
	full := d.ident[a:b]
	size, n := uint64(full[0]), 1
	if size >= 0x80 {
		size, n = binary.Uvarint(full)
	}
	if n <= 0 || size > uint64(len(full)-n) {
		return nil
	}
	return full[n : n+int(size)]
}

// search gives the first item from i on whose name is not below name, or count.
func (d *node) search(i int, name string) int {
	return i + sort.Search(d.count-i, func(k int) bool { return string(d.name(i+k)) >= name })
}

// node gives the Ref of an item of a level above 0.
func (r *record) node() (ref Ref, err error) {
	if len(r.ident) != len(ref.ID) || len(r.rest) != len(ref.Addr) {
		return Ref{}, fmt.Errorf("tree: an inner node's item: %w", ErrCorrupt)
	}
	return Ref{ID: ID(r.ident), Addr: Addr(r.rest)}, nil
}

// find gives the record of name in a directory.
func find(n Nodes, ref Ref, name string) (r record, ok bool, err error) {
	if ref == (Ref{}) {
		return record{}, false, nil
	}
	d, err := load(n, ref.Addr)
	if err != nil {
		return record{}, false, err
	}
	for {
		i := d.search(0, name)
		if i == d.count {
			return record{}, false, nil
		}
		if d.level == 0 {
			r, err = d.item(i)
			return r, err == nil && string(r.name) == name, err
		}
		if d, err = loadChild(n, &d, i); err != nil {
			return record{}, false, err
		}
	}
}

// CheckNode checks bytes that came from elsewhere: that they are a node in its
// one form, and that r names it by its Addr and its ID. What the node refers to
// is not looked at.
func CheckNode(r Ref, b []byte) error {
	if got := Addr(sha256.Sum256(b)); got != r.Addr {
		return fmt.Errorf("tree: node at %.12s hashes to %.12s: %w", r.Addr, got, ErrCorrupt)
	}
	d, err := openNode(b)
	if err != nil {
		return err
	}
	again := page{level: d.level}
	last := ""
	for i := range d.count {
		it, err := d.item(i)
		if err != nil {
			return err
		}
		if i > 0 && again.ends() || string(it.name) <= last {
			return fmt.Errorf("tree: node %.12s has a wrong order or cut at %q: %w", r.Addr, it.name, ErrCorrupt)
		}
		if last, err = string(it.name), d.checkItem(&it); err != nil {
			return err
		}
		again.add(&it, it.markedAt(d.level))
	}
	id, canon := again.encode()
	if !bytes.Equal(canon, b) {
		return fmt.Errorf("tree: node %.12s is not in canonical form: %w", r.Addr, ErrCorrupt)
	}
	if id != r.ID {
		return fmt.Errorf("tree: node %.12s has identity %.12s, not %.12s: %w", r.Addr, id, r.ID, ErrCorrupt)
	}
	return nil
}

// checkItem checks all of an item of d.
func (d *node) checkItem(it *record) error {
	if d.level > 0 {
		_, err := it.node()
		return err
	}
	e, err := it.entry()
	if err == nil {
		err = e.Check()
	}
	if err != nil {
		return err
	}
	if canon := newRecord(&e); !bytes.Equal(canon.full, it.full) || !bytes.Equal(canon.rest, it.rest) {
		return fmt.Errorf("tree: entry %q is not in canonical form: %w", e.Name, ErrCorrupt)
	}
	return nil
}
