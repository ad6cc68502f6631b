// Package gunzip reads gzip streams, whose decompression is most of what pulling a
// layer costs: in half to two thirds of the time of the packages that take their bits
// byte by byte, on the text and programs that layers hold.
//
// What makes it fast: the bits are taken eight bytes at a time from a buffer, without
// a look at its end, which a margin behind it makes safe; a table is asked for eleven
// bits at once, and gives literals two or three in a row; and matches are copied in
// words of eight bytes, over the end, where they do not overlap so closely.
//
// Streams come from outside. Every index is bounds-checked, memory is fixed, and each
// member's checksum and length are verified.
package gunzip

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// The errors of streams that are not what they should be; one that ends early is an
// io.ErrUnexpectedEOF.
var (
	ErrHeader   = errors.New("gzip: invalid header")
	ErrChecksum = errors.New("gzip: invalid checksum")
	ErrCorrupt  = errors.New("gzip: corrupt data")
)

const (
	inSize = 64 << 10
	// margin is what may be read behind the input's end: two refills of eight bytes
	// each that begin eight bytes behind it, and what the last of them loads.
	margin = 40

	window  = 32 << 10
	outSize = window + 256<<10
	// slack is what one turn of the loop may write: two literals, the longest match,
	// and the seven bytes that copying words goes too far.
	slack = 2 + 258 + 8
)

// state is what comes next in the stream.
type state uint8

const (
	atHeader   state = iota // a member's header; the input may end here instead
	atBlock                 // a block's header
	inStored                // bytes of a block that is not compressed
	inHuffman               // symbols of one that is
	atChecksum              // a member's end
	ended                   // err says how
)

// Reader gives what a gzip stream of one or several members holds. It is used by one
// goroutine.
type Reader struct {
	src   io.Reader
	state state
	err   error
	first bool // no member has begun
	final bool // the block is its member's last

	in       []byte // with zeros behind end once the source has ended
	pos, end int
	eof      bool
	acc      uint64 // bits that were taken from in, the next one lowest
	n        uint   // how many

	out   []byte
	given int // what was given of out
	w     int // what was written to it
	base  int // where the member begins: matches go no further back
	sum   uint32
	size  uint32
	sumAt int // up to where sum and size count

	stored int // bytes left of the block
	litlen *table
	dist   *table
	tables tables
}

// NewReader reads the header of the first member.
func NewReader(src io.Reader) (*Reader, error) {
	r := &Reader{src: src, first: true, in: make([]byte, inSize+margin), out: make([]byte, outSize)}
	if err := r.header(); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return r, nil
}

// Close does nothing; what a Reader holds is memory.
func (r *Reader) Close() error { return nil }

func (r *Reader) Read(b []byte) (int, error) {
	for r.given == r.w {
		if r.state == ended {
			return 0, r.err
		}
		r.fill()
	}
	n := copy(b, r.out[r.given:r.w])
	r.given += n
	return n, nil
}

// fill decodes until the output is full or the stream has ended.
func (r *Reader) fill() {
	if r.w > window {
		shift := r.w - window
		copy(r.out, r.out[shift:r.w])
		r.w, r.given, r.sumAt = window, window, window
		r.base = max(0, r.base-shift)
	}
	for r.state != ended && r.w < outSize-slack {
		if err := r.step(); err != nil {
			r.state, r.err = ended, err
		}
	}
	r.count()
}

// count brings the checksum up to what was written.
func (r *Reader) count() {
	b := r.out[r.sumAt:r.w]
	r.sum = crc32.Update(r.sum, crc32.IEEETable, b)
	r.size += uint32(len(b))
	r.sumAt = r.w
}

// step goes on to the next state, or as far as the output has room.
func (r *Reader) step() error {
	switch r.state {
	case atHeader:
		return r.header()
	case atBlock:
		return r.block()
	case inStored:
		return r.copyStored()
	case inHuffman:
		return r.symbols()
	default:
		return r.checksum()
	}
}

// header reads a member's header, or finds the stream's end.
func (r *Reader) header() error {
	r.unread()
	var h [10]byte
	for i := range h {
		b, err := r.byte()
		if err != nil {
			if i == 0 && !r.first && err == io.ErrUnexpectedEOF {
				return io.EOF
			}
			return err
		}
		h[i] = b
	}
	const hcrc, extra, name, comment = 1 << 1, 1 << 2, 1 << 3, 1 << 4
	flags := h[3]
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 {
		return ErrHeader
	}
	sum := crc32.ChecksumIEEE(h[:])
	next := func() (byte, error) {
		b, err := r.byte()
		sum = crc32.Update(sum, crc32.IEEETable, []byte{b})
		return b, err
	}
	if flags&extra != 0 {
		lo, err := next()
		if err != nil {
			return err
		}
		hi, err := next()
		if err != nil {
			return err
		}
		for range int(lo) | int(hi)<<8 {
			if _, err := next(); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{name, comment} {
		if flags&flag == 0 {
			continue
		}
		for {
			b, err := next()
			if err != nil {
				return err
			}
			if b == 0 {
				break
			}
		}
	}
	if flags&hcrc != 0 {
		want := uint16(sum)
		lo, err := r.byte()
		if err != nil {
			return err
		}
		hi, err := r.byte()
		if err != nil {
			return err
		}
		if uint16(lo)|uint16(hi)<<8 != want {
			return ErrHeader
		}
	}
	r.first, r.state = false, atBlock
	r.base, r.sum, r.size, r.sumAt = r.w, 0, 0, r.w
	return nil
}

// checksum reads what ends a member.
func (r *Reader) checksum() error {
	r.unread()
	r.count()
	var t [8]byte
	for i := range t {
		var err error
		if t[i], err = r.byte(); err != nil {
			return err
		}
	}
	if binary.LittleEndian.Uint32(t[:]) != r.sum || binary.LittleEndian.Uint32(t[4:]) != r.size {
		return ErrChecksum
	}
	r.state = atHeader
	return nil
}

// block reads a block's header.
func (r *Reader) block() error {
	if r.final {
		r.final = false
		r.state = atChecksum
		return nil
	}
	h, err := r.bits(3)
	if err != nil {
		return err
	}
	if r.beyond() {
		return io.ErrUnexpectedEOF
	}
	r.final = h&1 != 0
	switch h >> 1 {
	case 0:
		return r.storedHeader()
	case 1:
		r.litlen, r.dist = &fixed().litlen, &fixed().dist
	case 2:
		err := r.dynamic()
		if r.beyond() {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		r.litlen, r.dist = &r.tables.litlen, &r.tables.dist
	default:
		return ErrCorrupt
	}
	r.state = inHuffman
	return nil
}

func (r *Reader) storedHeader() error {
	r.unread()
	var h [4]byte
	for i := range h {
		var err error
		if h[i], err = r.byte(); err != nil {
			return err
		}
	}
	n := binary.LittleEndian.Uint16(h[:])
	if n != ^binary.LittleEndian.Uint16(h[2:]) {
		return ErrCorrupt
	}
	r.stored, r.state = int(n), inStored
	return nil
}

func (r *Reader) copyStored() error {
	for r.stored > 0 && r.w < outSize-slack {
		if r.pos >= r.end {
			if err := r.more(); err != nil {
				return err
			}
			if r.pos >= r.end {
				return io.ErrUnexpectedEOF
			}
		}
		n := min(r.stored, r.end-r.pos, outSize-slack-r.w)
		copy(r.out[r.w:], r.in[r.pos:r.pos+n])
		r.w, r.pos, r.stored = r.w+n, r.pos+n, r.stored-n
	}
	if r.stored == 0 {
		r.state = atBlock
	}
	return nil
}

// more moves what is left of the input to its beginning, and reads on behind it,
// some bytes at least unless the source has ended.
func (r *Reader) more() error {
	if r.eof {
		return nil
	}
	held := min(r.pos, 8) // of the bytes before pos some may be given back
	r.end = copy(r.in, r.in[r.pos-held:r.end])
	r.pos = held
	for empty := 0; r.end < 2*margin; {
		n, err := r.src.Read(r.in[r.end:inSize])
		r.end += n
		if err == io.EOF {
			r.eof = true
			clear(r.in[r.end:])
			return nil
		}
		if err != nil {
			return err
		}
		if n > 0 {
			empty = 0
		} else if empty++; empty == 100 {
			return io.ErrNoProgress
		}
	}
	return nil
}

// byte gives the next byte, when no bits are held.
func (r *Reader) byte() (byte, error) {
	if r.pos >= r.end {
		if err := r.more(); err != nil {
			return 0, err
		}
		if r.pos >= r.end {
			return 0, io.ErrUnexpectedEOF
		}
	}
	r.pos++
	return r.in[r.pos-1], nil
}

// unread drops the bits up to the next byte, and gives whole bytes back. Bits that
// lie behind the source's end leave pos there, and byte finds that.
func (r *Reader) unread() {
	r.pos -= int(r.n >> 3)
	r.acc, r.n = 0, 0
}

// refill takes bits until there are 56 at least: zeros behind the source's end, but
// not many. The bytes of which some bits are in acc already are taken again.
func (r *Reader) refill() error {
	if r.end-r.pos < margin {
		if err := r.more(); err != nil {
			return err
		}
	}
	if r.pos > r.end+8 {
		return io.ErrUnexpectedEOF
	}
	r.acc |= binary.LittleEndian.Uint64(r.in[r.pos:]) << r.n
	r.pos += int(63-r.n) >> 3
	r.n |= 56
	return nil
}

// bits takes up to 16 bits.
func (r *Reader) bits(k uint) (uint64, error) {
	if r.n < k {
		if err := r.refill(); err != nil {
			return 0, err
		}
	}
	v := r.acc & (1<<k - 1)
	r.acc >>= k
	r.n -= k
	return v, nil
}
