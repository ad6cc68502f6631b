package layer

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

const (
	blockSize = 512
	// trailerSize is the two zero blocks that end a tar stream.
	trailerSize = 2 * blockSize
	// maxPAX is the largest extended header that archive/tar reads back.
	maxPAX = 1 << 20

	maxOctal7  = 1<<21 - 1 // what mode, uid, gid and device numbers hold
	maxOctal11 = 1<<33 - 1 // what size and mtime hold
)

// The offsets of a ustar header's fields, as POSIX has them.
const (
	offName     = 0
	offMode     = 100
	offUID      = 108
	offGID      = 116
	offSize     = 124
	offMTime    = 136
	offChecksum = 148
	offType     = 156
	offLink     = 157
	offMagic    = 257
	offMajor    = 329
	offMinor    = 337
	offPrefix   = 345

	nameSize   = 100
	prefixSize = 155
)

const xattrKey = "SCHILY.xattr."

// header is one tar entry. Strings that do not fit a ustar header, are not
// ASCII, or are extended attributes, go into a PAX extended header before it.
type header struct {
	name     string // a directory's ends in a slash
	link     string
	kind     byte // the type flag
	mode     uint32
	uid, gid uint32
	size     int64
	mtime    int64 // seconds
	dev      uint64
	xattrs   []tree.Xattr
}

// append writes h as archive/tar does in its PAX format, byte for byte (a test
// compares the two); it is here because it takes a tenth of the time.
func (h *header) append(b []byte) ([]byte, error) {
	if strings.IndexByte(h.name, 0) >= 0 || strings.IndexByte(h.link, 0) >= 0 {
		return b, fmt.Errorf("writing the header of %q: a name in a tar stream cannot hold a zero byte", h.name)
	}
	nameASCII, linkASCII := isASCII(h.name), isASCII(h.link)
	if h.plain(nameASCII && linkASCII) {
		if len(h.name) <= nameSize {
			return h.appendBlock(b, "", h.name, h.link), nil
		}
		if prefix, name, ok := split(h.name); ok {
			return h.appendBlock(b, prefix, name, h.link), nil
		}
	}
	var err error
	if b, err = h.appendExtended(b, nameASCII, linkASCII); err != nil {
		return b, err
	}
	return h.appendBlock(b, "", ascii(h.name, nameASCII), ascii(h.link, linkASCII)), nil
}

// plain reports whether a ustar header holds all of h but the name.
func (h *header) plain(isASCII bool) bool {
	return isASCII && len(h.link) <= nameSize && len(h.xattrs) == 0 &&
		h.uid <= maxOctal7 && h.gid <= maxOctal7 && h.size <= maxOctal11 &&
		h.mtime >= 0 && h.mtime <= maxOctal11
}

// appendExtended writes the PAX header: a block, and the records sorted by key.
func (h *header) appendExtended(b []byte, nameASCII, linkASCII bool) ([]byte, error) {
	start := len(b)
	b = append(b, zeros[:blockSize]...)
	for _, x := range h.xattrs {
		b = appendRecord(b, xattrKey+encodeKey(x.Name), x.Value)
	}
	if h.gid > maxOctal7 {
		b = appendRecord(b, "gid", strconv.FormatUint(uint64(h.gid), 10))
	}
	if len(h.link) > nameSize || !linkASCII {
		b = appendRecord(b, "linkpath", h.link)
	}
	if h.mtime < 0 || h.mtime > maxOctal11 {
		b = appendRecord(b, "mtime", strconv.FormatInt(h.mtime, 10))
	}
	if len(h.name) > nameSize || !nameASCII {
		b = appendRecord(b, "path", h.name)
	}
	if h.size > maxOctal11 {
		b = appendRecord(b, "size", strconv.FormatInt(h.size, 10))
	}
	if h.uid > maxOctal7 {
		b = appendRecord(b, "uid", strconv.FormatUint(uint64(h.uid), 10))
	}
	n := len(b) - start - blockSize
	if n > maxPAX {
		return b[:start], fmt.Errorf("writing the header of %q: extended attributes and names of %d bytes are more than a tar header takes", h.name, n)
	}
	b = append(b, zeros[:padding(int64(n))]...)

	name := ascii(extendedName(h.name), false)
	if len(name) > nameSize {
		name = name[:nameSize]
	}
	block := b[start : start+blockSize]
	copy(block[offName:], strings.TrimRight(name, "/"))
	putOctal(block[offMode:offMode+8], 0)
	putOctal(block[offUID:offUID+8], 0)
	putOctal(block[offGID:offGID+8], 0)
	putOctal(block[offSize:offSize+12], uint64(n))
	putOctal(block[offMTime:offMTime+12], 0)
	block[offType] = 'x'
	copy(block[offMagic:], "ustar\x0000")
	putChecksum(block)
	return b, nil
}

// appendBlock writes the ustar header; name and link are ASCII and cut to fit.
func (h *header) appendBlock(b []byte, prefix, name, link string) []byte {
	start := len(b)
	b = append(b, zeros[:blockSize]...)
	block := b[start:]
	putString(block[offName:offName+nameSize], name)
	putOctal(block[offMode:offMode+8], uint64(h.mode&0o7777))
	putOctal(block[offUID:offUID+8], fit(int64(h.uid), maxOctal7))
	putOctal(block[offGID:offGID+8], fit(int64(h.gid), maxOctal7))
	putOctal(block[offSize:offSize+12], fit(h.size, maxOctal11))
	putOctal(block[offMTime:offMTime+12], fit(h.mtime, maxOctal11))
	block[offType] = h.kind
	putString(block[offLink:offLink+nameSize], link)
	copy(block[offMagic:], "ustar\x0000")
	putOctal(block[offMajor:offMajor+8], uint64(unix.Major(h.dev)))
	putOctal(block[offMinor:offMinor+8], uint64(unix.Minor(h.dev)))
	copy(block[offPrefix:], prefix)
	putChecksum(block)
	return b
}

// split divides a name that is too long for its field at a slash, into what
// ustar's two fields take.
func split(name string) (prefix, rest string, ok bool) {
	n := len(strings.TrimSuffix(name, "/"))
	i := strings.LastIndexByte(name[:min(n, prefixSize+1)], '/')
	if i <= 0 || len(name)-i-1 > nameSize {
		return "", "", false
	}
	return name[:i], name[i+1:], true
}

// putString fills a field. A name that was cut must not end in a slash, or old
// readers would take the entry for a directory.
func putString(field []byte, s string) {
	copy(field, s)
	if len(s) > len(field) && field[len(field)-1] == '/' {
		field[len(strings.TrimRight(s[:len(field)-1], "/"))] = 0
	}
}

// putOctal writes v in all of field but its last byte.
func putOctal(field []byte, v uint64) {
	for i := len(field) - 2; i >= 0; i-- {
		field[i] = '0' + byte(v&7)
		v >>= 3
	}
}

// fit gives 0 for what an octal field does not hold: an extended record says it.
func fit(v, most int64) uint64 {
	if v < 0 || v > most {
		return 0
	}
	return uint64(v)
}

// putChecksum sums the block, whose checksum field counts as spaces.
func putChecksum(block []byte) {
	copy(block[offChecksum:], "        ")
	var sum uint64
	for _, c := range block[:blockSize] {
		sum += uint64(c)
	}
	putOctal(block[offChecksum:offChecksum+7], sum)
	block[offChecksum+6] = 0
}

// appendRecord writes "LENGTH KEY=VALUE\n", where the length counts its own digits.
func appendRecord(b []byte, key, value string) []byte {
	n := len(key) + len(value) + 3
	size := n + digits(n)
	if digits(size) != digits(n) {
		size = n + digits(size)
	}
	b = strconv.AppendInt(b, int64(size), 10)
	b = append(b, ' ')
	b = append(b, key...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, '\n')
}

func digits(n int) int {
	d := 1
	for ; n >= 10; n /= 10 {
		d++
	}
	return d
}

// encodeKey gives an attribute's name as a PAX key, which has no "="; GNU tar
// writes such names in this way too.
func encodeKey(name string) string {
	if strings.IndexByte(name, '=') < 0 {
		return name
	}
	return strings.NewReplacer("%", "%25", "=", "%3D").Replace(name)
}

// extendedName gives the name of an extended header, which old readers that do
// not know the type would unpack as a file.
func extendedName(name string) string {
	dir, file := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, file = name[:i+1], name[i+1:]
	}
	if file == "" {
		return dir + "PaxHeaders.0"
	}
	return dir + "PaxHeaders.0/" + file
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// ascii drops what is not ASCII from s.
func ascii(s string, already bool) string {
	if already || isASCII(s) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		if s[i] < 0x80 {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// padding is how many zero bytes follow n bytes of contents.
func padding(n int64) int64 { return -n & (blockSize - 1) }

// zeros is read only.
var zeros [trailerSize]byte
