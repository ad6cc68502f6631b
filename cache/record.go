package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"time"
)

// RecordID names a record: the sha256 of its encoding. Several keys may lead to one.
type RecordID [sha256.Size]byte

func (r *Record) encode() []byte {
	b := appendText(nil, r.Name)
	b = append(b, r.Vertex[:]...)
	b = binary.AppendVarint(b, r.Created.UnixNano())
	b = binary.AppendVarint(b, int64(r.Duration))
	b = binary.AppendUvarint(b, uint64(len(r.Outputs)))
	for _, o := range r.Outputs {
		b = append(b, o[:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(r.Inputs)))
	for _, i := range r.Inputs {
		b = append(b, i[:]...)
	}
	if len(r.Needs) == 0 {
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(r.Needs)))
	for _, k := range r.Needs {
		b = append(b, k[:]...)
	}
	return b
}

func decodeRecord(b []byte) (Record, error) {
	d := decoder{b: b}
	r := Record{Name: d.text(), Vertex: d.id(), Created: time.Unix(0, d.int()), Duration: time.Duration(d.int())}
	if n := d.count(len(ChainID{})); n > 0 {
		r.Outputs = make([]ChainID, n)
		for i := range r.Outputs {
			r.Outputs[i] = d.id()
		}
	}
	if n := d.count(len(ContentID{})); n > 0 {
		r.Inputs = make([]ContentID, n)
		for i := range r.Inputs {
			r.Inputs[i] = d.id()
		}
	}
	if len(d.b) > 0 {
		r.Needs = make([]Key, d.count(len(Key{})))
		for i := range r.Needs {
			r.Needs[i] = d.id()
		}
	}
	return r, d.end()
}

// Lookup finds the record under a key. The error is a *MissError where there is
// none, or none whose chains can still be had. A record may have outputs that are
// Absent: who asks for one of them has a miss.
func (c *Cache) Lookup(k Key) (Record, error) {
	d := decoder{b: unstamp(c.db.get(dbKey(prefixKey, (*[32]byte)(&k))))}
	if d.b == nil {
		return Record{}, &MissError{Key: k, Reason: "nothing was recorded"}
	}
	id := RecordID(d.id())
	if err := d.end(); err != nil {
		return Record{}, &MissError{Key: k, Reason: "the key's value is damaged"}
	}
	defer c.guard.Use((*[32]byte)(&id)).RUnlock()
	v := unstamp(c.db.get(dbKey(prefixRecord, (*[32]byte)(&id))))
	if v == nil {
		return Record{}, &MissError{Key: k, Reason: "the record was collected"}
	}
	r, err := decodeRecord(v)
	if err != nil {
		return Record{}, &MissError{Key: k, Reason: "the record is damaged"}
	}
	for _, o := range r.Outputs {
		if o == Absent {
			continue
		}
		if err := c.verify(o); err != nil {
			return Record{}, &MissError{Key: k, Reason: err.Error()}
		}
	}
	c.used.note((*[32]byte)(&id), c.opt.Clock())
	return r, nil
}

// Store puts a record under keys.
func (c *Cache) Store(r Record, keys ...Key) error {
	body := r.encode()
	id := RecordID(sha256.Sum256(body))
	if err := c.storeRecord(&id, body); err != nil {
		return err
	}
	// The record's shard is let go before a key's is taken: nobody holds two.
	for i := range keys {
		if err := c.storeKey(&keys[i], &id); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) storeRecord(id *RecordID, body []byte) error {
	defer c.guard.Use((*[32]byte)(id)).RUnlock()
	key := dbKey(prefixRecord, (*[32]byte)(id))
	if c.db.has(key) {
		return nil
	}
	c.used.note((*[32]byte)(id), c.opt.Clock())
	return c.stamped(key, body)
}

func (c *Cache) storeKey(k *Key, id *RecordID) error {
	defer c.guard.Use((*[32]byte)(k)).RUnlock()
	key := dbKey(prefixKey, (*[32]byte)(k))
	if bytes.Equal(unstamp(c.db.get(key)), id[:]) {
		return nil
	}
	return c.stamped(key, id[:])
}

// goneIfMissing makes a GoneError of an error that says that a layer's data is not here.
func goneIfMissing(id LayerID, err error) error {
	var gone *GoneError
	if err != nil && errors.Is(err, fs.ErrNotExist) && !errors.As(err, &gone) {
		return &GoneError{Layer: id, Err: err}
	}
	return err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
