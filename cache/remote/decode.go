package remote

import (
	"bytes"
	"encoding/json"
	"errors"
)

// A few kilobytes of zstd unpack to millions of empty items, each of which would take
// some 200 bytes of memory. So an index is read item by item, each is checked before the
// next is read, and they are counted. Indexes that kiln writes are below these bounds,
// since they are no longer than maxIndex.
const (
	// maxWeight bounds what has an identity or a digest: 64 digits at least.
	maxWeight = maxIndex / 64
	// maxLinks bounds the chains; {"parent":0,"layer":0} has 22 bytes.
	maxLinks = maxIndex / 22
	// maxValues bounds the values of one item. A cache mount of maxPieces has some 25,000.
	maxValues = 64 << 10
)

// decode reads an index and checks it.
func decode(data []byte) (*index, error) {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, formatf("its index cannot be read: %v", err)
	}
	if v.Version != version {
		return nil, formatf("its index has version %d, and this kiln reads version %d", v.Version, version)
	}
	if !isLean(data) {
		return nil, formatf("an item of its index has more than %d values", maxValues)
	}
	d := decoder{json: json.NewDecoder(bytes.NewReader(data))}
	x, err := d.index()
	var format *FormatError
	if err != nil && !errors.As(err, &format) {
		err = formatf("its index cannot be read: %v", err)
	}
	if err == nil {
		err = x.check(-1)
	}
	if err != nil {
		return nil, err
	}
	return x, nil
}

// isLean reports whether no item of the lists of an index, which is a JSON object, has
// more than maxValues values.
func isLean(data []byte) bool {
	const items = 3 // the object, a list, an item
	depth, values, inText := 0, 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inText && c == '\\':
			i++
		case c == '"':
			inText = !inText
		case inText:
		case c == '{' || c == '[':
			depth++
			values++
		case c == '}' || c == ']':
			depth--
		case c == ',':
			values++
		}
		if depth < items {
			values = 0
		}
		if values > maxValues {
			return false
		}
	}
	return true
}

// decoder reads an index of which it is known that it is a JSON object.
type decoder struct {
	json   *json.Decoder
	weight int // of what was read
}

func (d *decoder) index() (*index, error) {
	x := &index{Version: version}
	if _, err := d.json.Token(); err != nil {
		return nil, err
	}
	for d.json.More() {
		field, err := d.json.Token()
		if err != nil {
			return nil, err
		}
		switch field {
		case "layers":
			err = readList(d, &x.Layers)
		case "chains":
			err = readList(d, &x.Chains)
		case "records":
			err = readList(d, &x.Records)
		case "mounts":
			err = readList(d, &x.Mounts)
		case "builds":
			err = readList(d, &x.Builds)
		default:
			var other json.RawMessage
			err = d.json.Decode(&other)
		}
		if err != nil {
			return nil, err
		}
	}
	return x, nil
}

// item is what an index has lists of.
type item[T any] interface {
	*T
	// check finds what the nth of a list may not say, as far as it shows without the rest.
	check(n int) error
	// weight counts what of it has an identity or a digest.
	weight() int
}

// readList reads a list to the end of into.
func readList[T any, P item[T]](d *decoder, into *[]T) error {
	t, err := d.json.Token()
	if err != nil || t == nil {
		return err // null is a list of nothing
	}
	if t != json.Delim('[') {
		return errors.New("what should be a list is none")
	}
	for d.json.More() {
		*into = append(*into, *new(T))
		n := len(*into) - 1
		read := P(&(*into)[n])
		if err := d.json.Decode(read); err != nil {
			return err
		}
		if err := read.check(n); err != nil {
			return err
		}
		if d.weight += read.weight(); d.weight > maxWeight {
			return formatf("its index has more in it than its size allows")
		}
	}
	_, err = d.json.Token()
	return err
}

func (l *layer) weight() int {
	n := 1 + len(l.Blobs) + len(l.Signatures)
	if l.Copy != nil {
		n += 1 + len(l.Copy.Signatures)
	}
	for _, v := range l.Variants {
		n += 1 + len(v.Signatures)
	}
	return n
}

func (l *link) weight() int { return 0 } // see maxLinks

func (r *record) weight() int { return 1 + len(r.Keys) + len(r.Inputs) + len(r.Signatures) }

func (m *mount) weight() int { return 1 + len(m.Pieces) + len(m.Signatures) }

func (b *listedBuild) weight() int { return 1 + len(b.Signatures) }
