package worker

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"math"
	"slices"

	"github.com/ulikunitz/xz/lzma"
)

// xzReader unpacks the .xz file format 1.2.1 (https://tukaani.org/xz/xz-file-format.txt):
//
//	file    streams, with zeros behind them
//	stream  magic, kind of check; blocks; index of the blocks; footer
//	block   header (sizes where known, filters, size of the dictionary); packed content; zeros; check
//
// The only filter is LZMA2, which the xz module unpacks. The module's reader of the
// rest makes whatever dictionary a header names before it looks any further: four
// gigabytes for a file of a hundred bytes. This one refuses those of more than maxDict,
// in every block.
type xzReader struct {
	in      xzInput
	maxDict int64
	made    int64 // bytes of dictionaries so far
	given   int64 // bytes of content so far

	stage  xzStage
	check  byte     // the kind of the stream's checks
	blocks xzList   // those of the stream so far
	block  *xzBlock // nil is between blocks
	err    error
}

// xzStage is where in a file its reader is.
type xzStage int

const (
	xzStart   xzStage = iota // until the header of the first stream
	xzInside                 // until the footer of the stream
	xzBetween                // until the header of the next stream
)

// The kinds of check that xz writes.
const (
	xzNone   = 0x0
	xzCRC32  = 0x1
	xzCRC64  = 0x4
	xzSHA256 = 0xa
)

var crc64Table = crc64.MakeTable(crc64.ECMA)

// errXzMemory is inside the errors for files that take too much memory.
var errXzMemory = errors.New("more than an archive may take")

// freeDicts is how many dictionaries a file may have whatever it holds; dictShare is
// how many bytes of them it may have for each byte of content besides, as xz -9 makes
// of blocks of 64 KB. To make one takes far longer than to read the smallest block, of
// some thirty bytes, and a file of nothing else would keep a processor busy for hours.
const (
	freeDicts = 64
	dictShare = 1024
)

// newXzReader begins to read a file, to the content of its first block.
func newXzReader(r *bufio.Reader, maxDict int64) (io.Reader, error) {
	x := &xzReader{in: xzInput{r: r}, maxDict: maxDict}
	for x.block == nil && x.err == nil {
		x.err = x.advance()
	}
	if x.err == io.EOF {
		return x, nil // a file of nothing is one as well
	}
	return x, x.err
}

// Read makes xzReader an io.Reader. Content is known to be whole once its block ends.
func (x *xzReader) Read(p []byte) (int, error) {
	for len(p) > 0 && x.err == nil {
		if x.block == nil {
			x.err = x.advance()
			continue
		}
		n, err := x.block.Read(p)
		x.given += int64(n)
		if err == io.EOF {
			err = x.endBlock()
		}
		if x.err = err; n > 0 {
			return n, nil
		}
	}
	return 0, x.err
}

// advance reads what comes next where that is no content of a block.
func (x *xzReader) advance() error {
	if x.stage != xzInside {
		return x.beginStream()
	}
	size, err := x.in.ReadByte()
	if err != nil {
		return cutShort(err)
	}
	if size == 0 { // the index begins like a block that is too short for one
		return x.endStream()
	}
	x.block, err = x.beginBlock(size)
	return err
}

// beginStream reads the header of a stream, and the zeros before it. Behind the last
// stream the error is io.EOF.
func (x *xzReader) beginStream() error {
	var head [12]byte
	for {
		n, err := io.ReadFull(&x.in, head[:4])
		if n == 0 && err == io.EOF && x.stage == xzBetween {
			return io.EOF
		}
		if err != nil {
			return cutShort(err)
		}
		if x.stage == xzStart || !zero(head[:4]) {
			break
		}
	}
	if _, err := io.ReadFull(&x.in, head[4:]); err != nil {
		return cutShort(err)
	}
	if !bytes.Equal(head[:6], magicXz) || head[6] != 0 || crc32.ChecksumIEEE(head[6:8]) != binary.LittleEndian.Uint32(head[8:]) {
		return xzDamaged("the header of a stream")
	}
	x.check, x.blocks, x.stage = head[7], newXzList(), xzInside
	_, err := newXzHash(x.check)
	return err
}

// beginBlock reads the header of a block; size is its first byte.
func (x *xzReader) beginBlock(size byte) (*xzBlock, error) {
	head := make([]byte, (int(size)+1)*4)
	head[0] = size
	if _, err := io.ReadFull(&x.in, head[1:]); err != nil {
		return nil, cutShort(err)
	}
	end := len(head) - 4
	if crc32.ChecksumIEEE(head[:end]) != binary.LittleEndian.Uint32(head[end:]) {
		return nil, xzDamaged("the header of a block")
	}
	b := &xzBlock{header: int64(len(head)), begin: x.in.n}
	dict, err := b.parse(head[1], head[2:end])
	if err != nil {
		return nil, err
	}
	if dict > x.maxDict {
		return nil, fmt.Errorf("xz: unpacking needs %d MiB of memory, and may have %d: %w", dict>>20, x.maxDict>>20, errXzMemory)
	}
	if x.made += dict; x.made > freeDicts*x.maxDict+dictShare*x.given {
		return nil, fmt.Errorf("xz: its blocks hold little, and unpacking each needs %d KiB of memory: %w", dict>>10, errXzMemory)
	}
	if b.sum, err = newXzHash(x.check); err != nil {
		return nil, err
	}
	b.content, err = lzma.Reader2Config{DictCap: int(dict)}.NewReader2(&x.in)
	return b, err
}

// endBlock reads what follows the packed content of a block.
func (x *xzReader) endBlock() error {
	b := x.block
	x.block = nil
	packed := x.in.n - b.begin
	if !b.content.EOS() || b.packed >= 0 && b.packed != packed || b.size >= 0 && b.size != b.given {
		return xzDamaged("a block")
	}
	if err := x.in.zeros(packed); err != nil {
		return err
	}
	want := checkOf(b.sum)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(&x.in, got); err != nil {
		return cutShort(err)
	}
	if !bytes.Equal(got, want) {
		return xzDamaged("the content of a block")
	}
	x.blocks.add(b.header+packed+int64(len(want)), b.given)
	return nil
}

// endStream reads the index, but for its first byte, and the footer.
func (x *xzReader) endStream() error {
	begin := x.in.n - 1
	sum, err := x.index(begin)
	if err != nil {
		return err
	}
	var end [4 + 12]byte // the check of the index, and the footer
	if _, err := io.ReadFull(&x.in, end[:]); err != nil {
		return cutShort(err)
	}
	foot := end[4:]
	if binary.LittleEndian.Uint32(end[:]) != sum {
		return xzDamaged("the index of a stream")
	}
	size := (int64(binary.LittleEndian.Uint32(foot[4:])) + 1) * 4 // of the index
	if binary.LittleEndian.Uint32(foot) != crc32.ChecksumIEEE(foot[4:10]) || size != x.in.n-begin-12 ||
		foot[8] != 0 || foot[9] != x.check || string(foot[10:]) != "YZ" {
		return xzDamaged("the footer of a stream")
	}
	x.stage = xzBetween
	return nil
}

// index reads the list of an index, which must be of the blocks that there were, and
// gives the sum of all of the index so far.
func (x *xzReader) index(begin int64) (uint32, error) {
	x.in.sum = crc32.NewIEEE()
	defer func() { x.in.sum = nil }()
	x.in.sum.Write([]byte{0}) // its first byte
	count, err := xzNumber(&x.in)
	if err != nil {
		return 0, err
	}
	if count != x.blocks.count {
		return 0, xzDamaged("the index of a stream")
	}
	listed := newXzList()
	for range count {
		packed, err := xzNumber(&x.in)
		if err != nil {
			return 0, err
		}
		size, err := xzNumber(&x.in)
		if err != nil {
			return 0, err
		}
		listed.add(packed, size)
	}
	if !listed.equal(x.blocks) {
		return 0, xzDamaged("the index of a stream")
	}
	err = x.in.zeros(x.in.n - begin)
	return x.in.sum.Sum32(), err
}

// xzBlock is a block that is being read. What its header does not say of it is -1.
type xzBlock struct {
	header       int64 // bytes of the header
	packed, size int64 // bytes of the packed content, and of the content, by the header
	begin        int64 // where in the file the packed content does
	given        int64 // bytes of content so far
	content      *lzma.Reader2
	sum          hash.Hash // of the content; nil where nothing checks it
}

// parse takes apart what a block's header says: flags, the fields behind them, and
// zeros. It gives the size of the dictionary.
func (b *xzBlock) parse(flags byte, fields []byte) (dict int64, err error) {
	const hasPacked, hasSize = 0x40, 0x80
	r := bytes.NewReader(fields)
	b.packed, b.size = -1, -1
	if flags&hasPacked != 0 {
		if b.packed, err = xzNumber(r); err != nil {
			return 0, err
		}
	}
	if flags&hasSize != 0 {
		if b.size, err = xzNumber(r); err != nil {
			return 0, err
		}
	}
	// The other flags count further filters. Of LZMA2, which is 0x21, there is one byte to know.
	filter := fields[len(fields)-r.Len():]
	if flags&^(hasPacked|hasSize) != 0 || len(filter) < 3 || filter[0] != 0x21 || filter[1] != 1 {
		return 0, errors.New("xz: filters besides LZMA2 are not supported")
	}
	if dict, err = lzma.DecodeDictCap(filter[2]); err != nil || !zero(filter[3:]) {
		return 0, xzDamaged("the header of a block")
	}
	return dict, nil
}

func (b *xzBlock) Read(p []byte) (int, error) {
	n, err := b.content.Read(p)
	b.given += int64(n)
	if b.sum != nil {
		b.sum.Write(p[:n])
	}
	return n, err
}

// xzList is a list of blocks, to be compared with another: the list of a file of many
// small blocks would be larger than the file.
type xzList struct {
	count int64
	sum   hash.Hash
}

func newXzList() xzList { return xzList{sum: sha256.New()} }

// add adds a block by its bytes in the file, but for the zeros, and those of its content.
func (l *xzList) add(packed, size int64) {
	l.count++
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(packed))
	binary.LittleEndian.PutUint64(b[8:], uint64(size))
	l.sum.Write(b[:])
}

func (l xzList) equal(o xzList) bool {
	return l.count == o.count && bytes.Equal(l.sum.Sum(nil), o.sum.Sum(nil))
}

// xzInput counts what is read, and sums it where sum is not nil.
type xzInput struct {
	r    *bufio.Reader
	n    int64
	sum  hash.Hash32
	last [1]byte
}

func (in *xzInput) Read(p []byte) (int, error) {
	n, err := in.r.Read(p)
	in.note(p[:n])
	return n, err
}

// ReadByte makes xzInput an io.ByteReader.
func (in *xzInput) ReadByte() (byte, error) {
	c, err := in.r.ReadByte()
	if err == nil {
		in.last[0] = c
		in.note(in.last[:])
	}
	return c, err
}

func (in *xzInput) note(p []byte) {
	in.n += int64(len(p))
	if in.sum != nil {
		in.sum.Write(p)
	}
}

// zeros reads those that follow n bytes, up to a multiple of four.
func (in *xzInput) zeros(n int64) error {
	var b [3]byte
	pad := b[:-n&3]
	if _, err := io.ReadFull(in, pad); err != nil {
		return cutShort(err)
	}
	if !zero(pad) {
		return xzDamaged("what lies between its parts")
	}
	return nil
}

// xzNumber reads a number: seven bits in each byte, the lowest first.
func xzNumber(r io.ByteReader) (int64, error) {
	n, err := binary.ReadUvarint(r)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return 0, io.ErrUnexpectedEOF
	}
	if err != nil || n > math.MaxInt64 {
		return 0, xzDamaged("a number")
	}
	return int64(n), nil
}

// newXzHash gives what checks of a kind are made with; nil is the check of none.
func newXzHash(kind byte) (hash.Hash, error) {
	switch kind {
	case xzNone:
		return nil, nil
	case xzCRC32:
		return crc32.NewIEEE(), nil
	case xzCRC64:
		return crc64.New(crc64Table), nil
	case xzSHA256:
		return sha256.New(), nil
	}
	return nil, fmt.Errorf("xz: a check of the kind %d is not known", kind)
}

// checkOf gives a check as it stands in a file, where numbers have their lowest byte first.
func checkOf(h hash.Hash) []byte {
	if h == nil {
		return nil
	}
	sum := h.Sum(nil)
	if h.Size() <= 8 {
		slices.Reverse(sum)
	}
	return sum
}

func xzDamaged(what string) error { return fmt.Errorf("xz: %s is damaged", what) }

// cutShort makes an error of a file's end.
func cutShort(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func zero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }
