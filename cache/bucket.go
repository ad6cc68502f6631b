package cache

import "bytes"

// maxBucket is how many bytes of keys and values a bucket may have when a collection
// has ended: what is remembered of some three million files.
const maxBucket = 256 << 20

// Bucket is a small named key-value store beside the records, for what parts of
// the worker remember: digests by stat, ETags, durations. Losing it costs time only.
type Bucket struct {
	db     *database
	prefix []byte
}

// Bucket gives the bucket of that name.
func (c *Cache) Bucket(name string) *Bucket {
	prefix := append([]byte{prefixBucket}, name...)
	return &Bucket{db: c.db, prefix: append(prefix, 0)}
}

func (b *Bucket) key(key []byte) []byte {
	return append(append(make([]byte, 0, len(b.prefix)+len(key)), b.prefix...), key...)
}

// Get gives a copy of the value under key; ok is false where there is none.
func (b *Bucket) Get(key []byte) (value []byte, ok bool) {
	v := b.db.get(b.key(key))
	return bytes.Clone(v), v != nil
}

// Has reports whether there is a value under key.
func (b *Bucket) Has(key []byte) bool { return b.db.has(b.key(key)) }

// Put stores a value; it becomes durable in the background. A value that is
// there already is not written again.
func (b *Bucket) Put(key, value []byte) error {
	k := b.key(key)
	if old := b.db.get(k); old != nil && bytes.Equal(old, value) {
		return nil
	}
	return b.db.putClean(k, append(make([]byte, 0, len(value)), value...))
}

// Delete removes a value.
func (b *Bucket) Delete(key []byte) error { return b.db.write(string(b.key(key)), nil) }

// Each calls fn for the values whose keys begin with prefix, in the order of
// their keys. What fn is given is valid during the call only.
func (b *Bucket) Each(prefix []byte, fn func(key, value []byte) error) error {
	return b.db.each(b.key(prefix), true, func(k, v []byte) error { return fn(k[len(b.prefix):], v) })
}

// boundBuckets empties buckets that have outgrown a limit. What is in one has no
// order by which a part could go, and what is missed comes back when it is made
// again; a bucket that others rely on (the journal's, kept trees) has bounds of its own.
func (c *Cache) boundBuckets(limit int64) error {
	sizes := map[string]int64{}
	err := c.db.each([]byte{prefixBucket}, true, func(k, v []byte) error {
		if name, _, ok := bytes.Cut(k, []byte{0}); ok {
			sizes[string(name)] += int64(len(k) + len(v))
		}
		return nil
	})
	for name, size := range sizes {
		if err == nil && size > limit {
			err = c.db.each(append([]byte(name), 0), false, func(k, _ []byte) error { return c.db.delete(k) })
		}
	}
	return err
}
