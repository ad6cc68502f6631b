package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrCorrupt is wrapped by the errors for bytes that are no node or entry of
// this format.
var ErrCorrupt = errors.New("not a node of this format")

// EntryID is the identity of an entry, its name left out: two entries with one
// EntryID are the same to every cache key.
type EntryID [sha256.Size]byte

// EntryKey covers all of an entry but its name: times and tags too.
type EntryKey [sha256.Size]byte

// The first byte of an entry's identity: the kind, and what follows.
const (
	kindMask   = 0x0f
	hasXattrs  = 0x10
	isOpaque   = 0x20
	noChildren = 0x40
	flagsKnown = kindMask | hasXattrs | isOpaque | noChildren
)

// encodeVersion is the first byte of what Entry.AppendEncode writes.
const encodeVersion = 1

// record is an entry as a node holds it: slices of the node's bytes.
type record struct {
	full  []byte // name and identity, as the identity section has them
	name  []byte
	ident []byte // full without the name
	rest  []byte // what is no part of the identity
}

// appendName writes a name as full begins with it.
func appendName(b []byte, name string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(name))), name...)
}

// appendIdent writes what identifies e, its name left out.
func (e *Entry) appendIdent(b []byte) []byte {
	head := byte(e.Kind)
	if e.Kind == Whiteout {
		return append(b, head)
	}
	if len(e.Xattrs) > 0 {
		head |= hasXattrs
	}
	if e.Kind == Dir && e.Opaque {
		head |= isOpaque
	}
	if e.Kind == Dir && e.Children == (Ref{}) {
		head |= noChildren
	}
	b = append(b, head)
	if e.Kind != Symlink {
		b = binary.AppendUvarint(b, uint64(e.Mode&modeMask))
	}
	b = binary.AppendUvarint(b, uint64(e.UID))
	b = binary.AppendUvarint(b, uint64(e.GID))
	if len(e.Xattrs) > 0 {
		b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
		for _, x := range e.Xattrs {
			b = appendName(appendName(b, x.Name), x.Value)
		}
	}
	switch e.Kind {
	case File:
		b = binary.AppendUvarint(b, uint64(e.Size))
		b = append(b, e.Content[:]...)
	case Dir:
		if head&noChildren == 0 {
			b = append(b, e.Children.ID[:]...)
		}
	case Symlink:
		b = appendName(b, e.Target)
	case CharDev, BlockDev:
		b = binary.AppendUvarint(b, e.Dev)
	}
	return b
}

// appendRest writes what is no part of e's identity.
func (e *Entry) appendRest(b []byte) []byte {
	if e.Kind == Whiteout {
		return b
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(e.MTime))
	switch {
	case e.Kind == File:
		b = binary.LittleEndian.AppendUint64(b, e.Tag)
	case e.Kind == Dir && e.Children != (Ref{}):
		b = append(b, e.Children.Addr[:]...)
	}
	return b
}

// newRecord encodes a checked entry.
func newRecord(e *Entry) record {
	r, _ := e.encodeIn(make([]byte, 0, len(e.Name)+len(e.Target)+96))
	return r
}

// encodeIn is newRecord in a buffer whose bytes it replaces; the buffer that it gives
// back is for the entry after.
func (e *Entry) encodeIn(b []byte) (record, []byte) {
	b = appendName(b[:0], e.Name)
	named := len(b)
	b = e.appendIdent(b)
	idented := len(b)
	b = e.appendRest(b)
	full := b[:idented:idented]
	return record{full: full, name: full[named-len(e.Name) : named], ident: full[named:], rest: b[idented:]}, b
}

// parseRecord finds the parts of a record in the two slices that a node has of it.
func parseRecord(full, rest []byte) (record, error) {
	size, n := binary.Uvarint(full)
	if n <= 0 || size > maxName || int(size) >= len(full)-n {
		return record{}, fmt.Errorf("tree: a name in it is malformed: %w", ErrCorrupt)
	}
	cut := n + int(size)
	return record{full: full, name: full[n:cut], ident: full[cut:], rest: rest}, nil
}

func (r *record) kind() Kind { return Kind(r.ident[0] & kindMask) }

// children gives the Ref of a directory; that of anything else is zero.
func (r *record) children() (ref Ref) {
	if r.kind() == Dir && r.ident[0]&noChildren == 0 && len(r.ident) > len(ref.ID) && len(r.rest) >= len(ref.Addr) {
		copy(ref.ID[:], r.ident[len(r.ident)-len(ref.ID):])
		copy(ref.Addr[:], r.rest[len(r.rest)-len(ref.Addr):])
	}
	return ref
}

// marked reports whether r or anything below it is a Whiteout or Opaque.
func (r *record) marked() bool {
	switch r.kind() {
	case Whiteout:
		return true
	case Dir:
		return r.ident[0]&isOpaque != 0 || r.children().ID.marked()
	}
	return false
}

// same reports whether two records of one name do not differ in what by counts.
func (r *record) same(o *record, by By) bool {
	return bytes.Equal(r.ident, o.ident) && (by == ByID || bytes.Equal(r.rest, o.rest))
}

// entry decodes r. Nothing of the result shares r's memory.
func (r *record) entry() (Entry, error) {
	e := Entry{Name: string(r.name)}
	in := reader{b: r.ident}
	head := in.byte()
	e.Kind = Kind(head & kindMask)
	if e.Kind == None || e.Kind > Whiteout || head&^flagsKnown != 0 {
		return Entry{}, fmt.Errorf("tree: entry %q has unknown kind %#x: %w", e.Name, head, ErrCorrupt)
	}
	out := reader{b: r.rest}
	if e.Kind == Whiteout {
		return e, r.end(&in, &out, head == byte(Whiteout))
	}
	e.Mode = linkMode
	if e.Kind != Symlink {
		e.Mode = in.uint32(modeMask)
	}
	e.UID, e.GID = in.uint32(1<<32-1), in.uint32(1<<32-1)
	if head&hasXattrs != 0 {
		e.Xattrs = in.xattrs()
	}
	e.MTime = int64(out.fixed64())
	switch e.Kind {
	case File:
		e.Size = int64(in.uvarint())
		copy(e.Content[:], in.bytes(len(e.Content)))
		e.Tag = out.fixed64()
	case Dir:
		e.Opaque = head&isOpaque != 0
		if head&noChildren == 0 {
			copy(e.Children.ID[:], in.bytes(len(e.Children.ID)))
			copy(e.Children.Addr[:], out.bytes(len(e.Children.Addr)))
			in.bad = in.bad || e.Children.ID == ID{} || e.Children.Addr == Addr{}
		}
	case Symlink:
		e.Target = in.string(maxTarget)
	case CharDev, BlockDev:
		e.Dev = in.uvarint()
	}
	return e, r.end(&in, &out, e.Kind == Dir || head&(isOpaque|noChildren) == 0)
}

// end checks that both parts of a record were read to their ends.
func (r *record) end(in, out *reader, ok bool) error {
	if !ok || in.bad || out.bad || len(in.b) > 0 || len(out.b) > 0 {
		return fmt.Errorf("tree: entry %q is malformed: %w", r.name, ErrCorrupt)
	}
	return nil
}

// ID gives e's identity.
func (e Entry) ID() EntryID {
	var buf [256]byte
	return sha256.Sum256(e.appendIdent(buf[:0]))
}

// Key gives the name of all that e is, its own name left out.
func (e Entry) Key() EntryKey {
	var buf [256]byte
	return sha256.Sum256(e.appendRest(e.appendIdent(buf[:0])))
}

// Equal reports whether e and o are equal in all that a tree stores, names included.
func (e Entry) Equal(o Entry) bool {
	var a, b [256]byte
	return e.Name == o.Name && bytes.Equal(e.appendRest(e.appendIdent(a[:0])), o.appendRest(o.appendIdent(b[:0])))
}

// AppendEncode appends e, which Check must allow, in the form that DecodeEntry reads.
func (e Entry) AppendEncode(b []byte) []byte {
	r := newRecord(&e)
	b = append(b, encodeVersion)
	b = binary.AppendUvarint(b, uint64(len(r.full)))
	b = append(b, r.full...)
	return append(b, r.rest...)
}

// DecodeEntry reads an entry that AppendEncode wrote and that ends with b.
func DecodeEntry(b []byte) (Entry, error) {
	in := reader{b: b}
	version := in.byte()
	full := in.bytes(in.length(len(b)))
	if in.bad || version != encodeVersion {
		return Entry{}, fmt.Errorf("tree: entry of %d bytes, version %d: %w", len(b), version, ErrCorrupt)
	}
	r, err := parseRecord(full, in.b)
	if err != nil {
		return Entry{}, err
	}
	e, err := r.entry()
	if err != nil {
		return Entry{}, err
	}
	if err := e.Check(); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return e, nil
}
