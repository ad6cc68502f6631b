package gunzip

import (
	"encoding/binary"
	"io"
	"math/bits"
	"sync"
)

const (
	litlenBits = 11 // of the first look into a table
	distBits   = 9
	maxBits    = 15

	litlens   = 286 // codes that stand for something
	distances = 30
)

// A table's entries say how many bits a code has in their lowest byte, and
//
//	a literal:  isLiteral, and the byte in bits 16 to 23
//	a base:     its value from bit 16 on, and how many further bits add to it in bits 8 to 12
//	a subtable: special, its beginning from bit 16 on, how many bits it is asked for in 8 to 12
//	the end:    special and isEnd
//	nothing:    special alone, without bits
const (
	isLiteral = 1 << 31
	isEnd     = 1 << 14
	special   = 1 << 15
)

// table decodes one alphabet: 1<<first entries, and subtables behind them. The sizes
// are more than any code needs: each subtable is of one prefix of first bits, and no
// more of them are full than there are symbols.
type table struct {
	first   uint
	entries [1<<litlenBits + 2*litlens*(1<<(maxBits-litlenBits))/2]uint32
}

// tables are what a dynamic block brings.
type tables struct {
	litlen, dist, codes table
	lengths             [litlens + distances]uint8
}

// fixed gives the tables of blocks that bring none.
var fixed = sync.OnceValue(func() *tables {
	t := new(tables)
	var lengths [288]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	t.litlen.build(litlenBits, lengths[:], litlenEntry)
	var five [32]uint8
	for i := range five {
		five[i] = 5
	}
	t.dist.build(distBits, five[:], distEntry)
	return t
})

// litlenEntry gives the entry of a symbol, without its bits; special alone is one
// that no stream may have.
func litlenEntry(symbol int) uint32 {
	switch {
	case symbol < 256:
		return isLiteral | uint32(symbol)<<16
	case symbol == 256:
		return special | isEnd
	case symbol >= litlens:
		return special
	case symbol == 285:
		return 258 << 16
	case symbol < 265:
		return uint32(symbol-257+3) << 16
	}
	extra := uint32(symbol-261) / 4
	return (3+(4+uint32(symbol-261)%4)<<extra)<<16 | extra<<8
}

func distEntry(symbol int) uint32 {
	switch {
	case symbol >= distances:
		return special
	case symbol < 2:
		return uint32(symbol+1) << 16
	}
	extra := uint32(symbol)/2 - 1
	return (1+(2+uint32(symbol)%2)<<extra)<<16 | extra<<8
}

func codeEntry(symbol int) uint32 { return uint32(symbol) << 16 }

// build makes the table of a code, which its lengths define; ok is false where they
// define none. As in zlib a code is complete, or has one symbol of one bit, or none.
func (t *table) build(first uint, lengths []uint8, entry func(int) uint32) (ok bool) {
	var count [maxBits + 1]int
	for _, l := range lengths {
		count[l]++
	}
	used := len(lengths) - count[0]
	count[0] = 0
	left, most := 1, uint(0)
	var next [maxBits + 2]int // the next code of each length
	for l := 1; l <= maxBits; l++ {
		if left = left<<1 - count[l]; left < 0 {
			return false
		}
		next[l+1] = (next[l] + count[l]) << 1
		if count[l] > 0 {
			most = uint(l)
		}
	}
	if left > 0 && used != 0 && (used != 1 || most != 1) {
		return false
	}
	t.first = first
	for i := range 1 << first {
		t.entries[i] = special
	}
	free := 1 << first
	// Codes in their order, so that those of a prefix follow each other.
	for symbol, l := range lengths {
		if l == 0 {
			continue
		}
		n := uint(l)
		code := bits.Reverse16(uint16(next[n])) >> (16 - n) // streams have the first bit lowest
		next[n]++
		e := entry(symbol)
		if e == special {
			continue
		}
		if n <= first {
			for i := int(code); i < 1<<first; i += 1 << n {
				t.entries[i] = e | uint32(n)
			}
			continue
		}
		at := int(code) & (1<<first - 1)
		sub := most - first
		if t.entries[at] == special {
			if free+1<<sub > len(t.entries) {
				return false
			}
			t.entries[at] = special | uint32(free)<<16 | uint32(sub)<<8 | uint32(first)
			for i := range 1 << sub {
				t.entries[free+i] = special
			}
			free += 1 << sub
		}
		begin := int(t.entries[at] >> 16)
		for i := int(code) >> first; i < 1<<sub; i += 1 << (n - first) {
			t.entries[begin+i] = e | uint32(n-first)
		}
	}
	return true
}

// dynamic reads the codes of a block.
func (r *Reader) dynamic() error {
	h, err := r.bits(14)
	if err != nil {
		return err
	}
	nlit, ndist, ncode := int(h&31)+257, int(h>>5&31)+1, int(h>>10)+4
	if nlit > litlens || ndist > distances {
		return ErrCorrupt
	}
	var lengths [19]uint8
	order := [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
	for _, symbol := range order[:ncode] {
		l, err := r.bits(3)
		if err != nil {
			return err
		}
		lengths[symbol] = uint8(l)
	}
	t := &r.tables
	if !t.codes.build(7, lengths[:], codeEntry) {
		return ErrCorrupt
	}
	if err := r.lengths(t.lengths[:nlit+ndist]); err != nil {
		return err
	}
	if t.lengths[256] == 0 || // a block could not end
		!t.litlen.build(litlenBits, t.lengths[:nlit], litlenEntry) ||
		!t.dist.build(distBits, t.lengths[nlit:nlit+ndist], distEntry) {
		return ErrCorrupt
	}
	return nil
}

// lengths reads the lengths of a block's codes.
func (r *Reader) lengths(out []uint8) error {
	for i := 0; i < len(out); {
		if r.n < 7 {
			if err := r.refill(); err != nil {
				return err
			}
		}
		e := r.tables.codes.entries[r.acc&127]
		if e&special != 0 {
			return ErrCorrupt
		}
		r.acc >>= e & 63
		r.n -= uint(e & 63)
		symbol := e >> 16
		if symbol < 16 {
			out[i] = uint8(symbol)
			i++
			continue
		}
		least, width, value := 3, uint(3), uint8(0)
		switch symbol {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			width, value = 2, out[i-1]
		case 18:
			least, width = 11, 7
		}
		more, err := r.bits(width)
		if err != nil {
			return err
		}
		n := least + int(more)
		if n > len(out)-i {
			return ErrCorrupt
		}
		for ; n > 0; n-- {
			out[i] = value
			i++
		}
	}
	return nil
}

// symbols decodes a block's symbols as far as the output has room.
func (r *Reader) symbols() error {
	for r.w < outSize-slack {
		if !r.eof && r.end-r.pos < margin {
			if err := r.more(); err != nil {
				return err
			}
		}
		// Behind a source's end there are zeros: whoever gets eight bytes far has more
		// bits than there were.
		safe := r.end + 8
		if !r.eof {
			safe = r.end - 24
		}
		done, err := r.decode(safe)
		if r.beyond() {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if done {
			r.state = atBlock
			return nil
		}
	}
	return nil
}

// beyond reports whether bits were used that lie behind the source's end.
func (r *Reader) beyond() bool { return r.eof && r.pos-int(r.n>>3) > r.end }

// decode decodes symbols until the input's position is behind safe, or the output is
// full; done says that the block has ended.
func (r *Reader) decode(safe int) (done bool, err error) {
	in, out, base := r.in, r.out, r.base
	pos, w, acc, n := r.pos, r.w, r.acc, r.n
	lt, dt := &r.litlen.entries, &r.dist.entries
	for pos <= safe && w < outSize-slack {
		acc |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
		pos += int(63-n) >> 3
		n |= 56
		e := lt[acc&(1<<litlenBits-1)]
		if e&isLiteral != 0 {
			acc >>= e & 63
			n -= uint(e & 63)
			out[w] = byte(e >> 16)
			w++
			if e = lt[acc&(1<<litlenBits-1)]; e&isLiteral != 0 {
				acc >>= e & 63
				n -= uint(e & 63)
				out[w] = byte(e >> 16)
				w++
				e = lt[acc&(1<<litlenBits-1)]
			}
		}
		if e&special != 0 {
			if e&isEnd == 0 && e>>16 != 0 {
				acc >>= litlenBits
				n -= litlenBits
				e = lt[e>>16+uint32(acc)&(1<<(e>>8&31)-1)]
			}
			if e&special != 0 {
				if e&isEnd == 0 {
					err = ErrCorrupt
					break
				}
				acc >>= e & 63
				n -= uint(e & 63)
				done = true
				break
			}
		}
		acc >>= e & 63
		n -= uint(e & 63)
		if e&isLiteral != 0 {
			out[w] = byte(e >> 16)
			w++
			continue
		}
		extra := e >> 8 & 31
		length := int(e>>16 + uint32(acc)&(1<<extra-1))
		acc >>= extra
		n -= uint(extra)
		if n < 32 {
			acc |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
			pos += int(63-n) >> 3
			n |= 56
		}
		e = dt[acc&(1<<distBits-1)]
		if e&special != 0 {
			if e>>16 != 0 {
				acc >>= distBits
				n -= distBits
				e = dt[e>>16+uint32(acc)&(1<<(e>>8&31)-1)]
			}
			if e&special != 0 {
				err = ErrCorrupt
				break
			}
		}
		acc >>= e & 63
		n -= uint(e & 63)
		extra = e >> 8 & 31
		distance := int(e>>16 + uint32(acc)&(1<<extra-1))
		acc >>= extra
		n -= uint(extra)
		if distance > w-base {
			err = ErrCorrupt
			break
		}
		from, end := w-distance, w+length
		if distance < 8 {
			repeat(out[from:end], distance)
			w = end
			continue
		}
		for w < end {
			binary.LittleEndian.PutUint64(out[w:], binary.LittleEndian.Uint64(out[from:]))
			w += 8
			from += 8
		}
		w = end
	}
	r.pos, r.w, r.acc, r.n = pos, w, acc, n
	return done, err
}

// repeat fills b with its first distance bytes, again and again.
func repeat(b []byte, distance int) {
	for n := distance; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}
