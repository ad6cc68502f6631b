package local

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sys/unix"
)

// A file may be written again within the tick of the clock that its times bear,
// and show no sign of it. Linux stamps with a clock that ticks at 100 Hz at the
// least; file systems that keep whole seconds (or two, as FAT) are known by it.
const (
	tickFine   = int64(100 * time.Millisecond)
	tickCoarse = int64(2100 * time.Millisecond)
)

// record is what is remembered of a name that is no directory.
type record struct {
	name         string
	ino          uint64
	size         int64
	mtime, ctime int64
	kind         uint32 // unix.S_IFMT bits
	content      blob.Digest
	target       string
	xattrs       []tree.Xattr

	unsure bool // the file changed while it was read
}

func (r *record) of(st *unix.Stat_t) {
	r.ino, r.size, r.kind = st.Ino, st.Size, st.Mode&unix.S_IFMT
	r.mtime, r.ctime = st.Mtim.Nano(), st.Ctim.Nano()
}

// fits reports whether what the record says is still so of the name.
func (r *record) fits(name string, st *unix.Stat_t) bool {
	return r.name == name && r.ino == st.Ino && r.size == st.Size && r.kind == st.Mode&unix.S_IFMT &&
		r.mtime == st.Mtim.Nano() && r.ctime == st.Ctim.Nano()
}

// settled reports whether the record's times are old enough at now that a later
// write must bear others.
func (r *record) settled(now int64) bool {
	return !r.unsure && old(r.mtime, now) && old(r.ctime, now)
}

func old(t, now int64) bool {
	if t%int64(time.Second) == 0 {
		return now-t > tickCoarse
	}
	return now-t > tickFine
}

// dirStats is what is remembered of one directory, in the order of names.
type dirStats struct {
	records []record
	next    int
}

// find gives the record of a name, nil where there is none; names must be asked
// for in order.
func (d *dirStats) find(name string) *record {
	for d.next < len(d.records) && d.records[d.next].name < name {
		d.next++
	}
	if d.next < len(d.records) && d.records[d.next].name == name {
		d.next++
		return &d.records[d.next-1]
	}
	return nil
}

// chunkSize is how much of a directory's records goes into one value: a store
// of keys and values dislikes values of megabytes.
const chunkSize = 64 << 10

// recordSize is about what the record of a file takes in a value: a name, a digest
// and numbers.
const recordSize = 80

// statsKey is the key of a chunk of a directory's records: the directory's
// device and inode, and the chunk's number.
func statsKey(st unix.Stat_t, chunk int) []byte {
	key := binary.BigEndian.AppendUint64(nil, st.Dev)
	key = binary.BigEndian.AppendUint64(key, st.Ino)
	return binary.AppendUvarint(key, uint64(chunk))
}

// loadStats reads what is remembered of a directory, in the room of the empty slice
// records. What cannot be read is not remembered.
func loadStats(b Bucket, st unix.Stat_t, records []record) *dirStats {
	d := &dirStats{records: records}
	if b == nil {
		return d
	}
	for chunk := 0; ; chunk++ {
		value, ok := b.Get(statsKey(st, chunk))
		if !ok || len(value) == 0 {
			return d
		}
		more := value[0] == 1
		d.records = slices.Grow(d.records, len(value)/recordSize+1)
		// The texts of all records are parts of one string.
		for rest := newDecoder(value[1:]); len(rest.b) > 0; {
			n := len(d.records)
			d.records = append(d.records, record{})
			if !d.records[n].decode(rest) {
				d.records = d.records[:n]
				return d
			}
		}
		if !more {
			return d
		}
	}
}

// save remembers what a scan found of a directory, if that is more than before.
func (sc *scan) save(st unix.Stat_t, before *dirStats, items []item, carried []record) {
	if sc.stats == nil {
		return
	}
	kept := make([]*record, 0, len(items)+len(carried))
	changed := false
	for i := range items {
		it := &items[i]
		for len(carried) > 0 && carried[0].name < it.entry.Name {
			kept, carried = append(kept, &carried[0]), carried[1:]
		}
		if it.isDir || it.known == nil || it.stale && !it.known.settled(sc.now) {
			continue
		}
		changed = changed || it.stale
		kept = append(kept, it.known)
	}
	for i := range carried {
		kept = append(kept, &carried[i])
	}
	if !changed && len(kept) == len(before.records) {
		return
	}
	var value []byte
	chunk := 0
	flush := func(more byte) {
		value[0] = more
		// Losing a record costs the time of hashing again, so an error is no one's concern.
		_ = sc.stats.Put(statsKey(st, chunk), value)
		chunk++
	}
	value = append(value, 0)
	for _, r := range kept {
		if len(value) > chunkSize {
			flush(1)
			value = []byte{0}
		}
		value = r.append(value)
	}
	flush(0)
}

func (r *record) append(b []byte) []byte {
	b = appendString(b, r.name)
	b = binary.AppendUvarint(b, uint64(r.kind))
	b = binary.AppendUvarint(b, r.ino)
	b = binary.AppendVarint(b, r.size)
	b = binary.AppendVarint(b, r.mtime)
	b = binary.AppendVarint(b, r.ctime)
	switch r.kind {
	case unix.S_IFREG:
		b = append(b, r.content[:]...)
	case unix.S_IFLNK:
		b = appendString(b, r.target)
	}
	b = binary.AppendUvarint(b, uint64(len(r.xattrs)))
	for _, x := range r.xattrs {
		b = appendString(appendString(b, x.Name), x.Value)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decode reads one record into the zero record r, and reports whether it was whole.
func (r *record) decode(d *decoder) bool {
	r.name = d.string()
	r.kind = uint32(d.uvarint())
	r.ino = d.uvarint()
	r.size, r.mtime, r.ctime = d.varint(), d.varint(), d.varint()
	switch r.kind {
	case unix.S_IFREG:
		copy(r.content[:], d.take(len(r.content)))
	case unix.S_IFLNK:
		r.target = d.string()
	}
	// A count is not believed: the loop ends with the bytes.
	for n := d.uvarint(); n > 0 && !d.short; n-- {
		r.xattrs = append(r.xattrs, tree.Xattr{Name: d.string(), Value: d.string()})
	}
	return !d.short && r.name != ""
}

// decoder reads what append wrote; short is set once the bytes ran out.
type decoder struct {
	b     []byte
	text  string // ends as b does
	short bool
}

func newDecoder(b []byte) *decoder { return &decoder{b: b, text: string(b)} }

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.short, d.b = true, nil
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.short, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.short, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.short, d.b = true, nil
		return ""
	}
	at := len(d.text) - len(d.b)
	d.take(int(n))
	return d.text[at : at+int(n)]
}
