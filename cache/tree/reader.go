package tree

import "encoding/binary"

// reader takes values off the front of b. A value that is not there, or is not
// in its only form, sets bad, and everything from then on is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.b, r.bad = nil, true }

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

// bytes takes n bytes; they share r's memory.
func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.fail()
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) fixed64() uint64 {
	if v := r.bytes(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

// uvarint takes a varint in its shortest form.
func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32(limit uint32) uint32 {
	v := r.uvarint()
	if v > uint64(limit) {
		r.fail()
		return 0
	}
	return uint32(v)
}

// length takes a length of at most limit.
func (r *reader) length(limit int) int {
	v := r.uvarint()
	if v > uint64(limit) {
		r.fail()
		return 0
	}
	return int(v)
}

func (r *reader) string(limit int) string { return string(r.bytes(r.length(limit))) }

func (r *reader) xattrs() []Xattr {
	// An xattr takes three bytes at least, so that a count cannot claim memory
	// that its bytes do not stand for.
	n := r.length(len(r.b) / 3)
	if n == 0 {
		r.fail()
		return nil
	}
	xs := make([]Xattr, n)
	for i := range xs {
		xs[i].Name = r.string(maxXattr)
		xs[i].Value = r.string(maxXattrs)
	}
	return xs
}
