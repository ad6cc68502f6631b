package cache

import (
	"encoding/binary"
	"errors"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// Values in the database are fields in a fixed order: numbers as varints, texts
// and lists with their length first, identities as they are. docs/formats.md
// lists them. A value that does not decode counts as one that is not there.

var errDamaged = errors.New("a damaged value")

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decoder reads fields; after the first that is not there all are zero and err is set.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	d.b, d.err = nil, errDamaged
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads the length of a list whose items take size bytes each at least.
func (d *decoder) count(size int) int {
	n := d.uint()
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) bytes() []byte {
	n := d.count(1)
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) text() string { return string(d.bytes()) }

func (d *decoder) id() (v [32]byte) {
	if len(d.b) < len(v) {
		d.fail()
		return v
	}
	copy(v[:], d.b)
	d.b = d.b[len(v):]
	return v
}

// end is called when all was read.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) != 0 {
		d.fail()
	}
	return d.err
}

func appendEntry(b []byte, e tree.Entry) []byte {
	if e.Kind == tree.None {
		return appendText(b, "")
	}
	enc := e.AppendEncode(nil)
	b = binary.AppendUvarint(b, uint64(len(enc)))
	return append(b, enc...)
}

func (d *decoder) entry() tree.Entry {
	b := d.bytes()
	if len(b) == 0 {
		return tree.Entry{}
	}
	e, err := tree.DecodeEntry(b)
	if err != nil {
		d.fail()
		return tree.Entry{}
	}
	return e
}

func appendDescriptor(b []byte, d blob.Descriptor) []byte {
	b = appendText(b, d.MediaType)
	b = append(b, d.Digest[:]...)
	b = binary.AppendVarint(b, d.Size)
	b = binary.AppendUvarint(b, uint64(len(d.Annotations)))
	for _, k := range sortedKeys(d.Annotations) {
		b = appendText(b, k)
		b = appendText(b, d.Annotations[k])
	}
	return b
}

func (d *decoder) descriptor() blob.Descriptor {
	v := blob.Descriptor{MediaType: d.text(), Digest: d.id(), Size: d.int()}
	if n := d.count(2); n > 0 {
		v.Annotations = make(map[string]string, n)
		for range n {
			k := d.text()
			v.Annotations[k] = d.text()
		}
	}
	return v
}
