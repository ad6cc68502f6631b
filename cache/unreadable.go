package cache

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
)

// dropUnreadable deletes the values that cannot be read. After a crash of the
// machine tables, which Badger syncs, may point to values in the log that never
// reached the disk. Where no table changed since then there is nothing to look at.
func (d *database) dropUnreadable(since int64) error {
	if changed, err := d.changedSince(since); err != nil || !changed {
		return err
	}
	var at []byte
	for {
		lost, next, err := d.unreadable(at)
		if err != nil {
			return fmt.Errorf("reading the cache's database: %w", err)
		}
		for _, k := range lost {
			if err := d.delete(k); err != nil {
				return err
			}
		}
		if at = next; at == nil {
			return nil
		}
	}
}

// unreadable looks at a page of keys, from at on, for values that cannot be read,
// and gives where the next page begins; nil is nowhere.
func (d *database) unreadable(at []byte) (lost [][]byte, next []byte, err error) {
	err = d.view(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.PrefetchValues = false
		it := txn.NewIterator(o)
		defer it.Close()
		n := 0
		for it.Seek(at); it.Valid(); it.Next() {
			if n++; n > pageSize {
				next = it.Item().KeyCopy(nil)
				return nil
			}
			if err := it.Item().Value(func([]byte) error { return nil }); err != nil {
				lost = append(lost, it.Item().KeyCopy(nil))
			}
		}
		return nil
	})
	return lost, next, err
}

// changedSince reports whether a table or a file of the value log with something
// in it was written at that time or later.
func (d *database) changedSince(since int64) (bool, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".sst" && ext != ".vlog" {
			continue
		}
		st, err := e.Info()
		if err != nil {
			return false, err
		}
		if st.Size() >= bulkValue && st.ModTime().UnixNano() >= since {
			return true, nil
		}
	}
	return false, nil
}
