package cache

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"golang.org/x/sys/unix"
)

// compactAfter is how many deletions make a compaction worth its time.
const compactAfter = 256

// slack is what the database may take beyond its values for them not to be
// written anew: its empty logs, the bounds of its blocks.
const slack = 256 << 10

// compact gives back what deleted values take, where that are so many. Badger's
// own compactions cannot be asked for that: they leave values in the tables of the
// upper levels until the levels are full, and in the log that is being written to
// for ever. So what is left is written to a new database, which takes the old
// one's place at once, or, if the machine stops, not at all.
func (d *database) compact(atLeast int) error {
	if err := d.flush(); errors.Is(err, tmpfile.ErrFull) {
		return nil // first there has to be room
	} else if err != nil {
		return err
	}
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	if d.deleted < atLeast || d.damaged.Load() {
		return nil
	}
	if err := d.settle(); err != nil || d.badger == nil {
		return err
	}
	takes, err := diskUsage(d.dir)
	if err != nil {
		return err
	}
	holds, err := d.holds()
	if err != nil || takes <= holds+holds/8+slack {
		return err
	}
	if !roomFor(d.dir, headroom+holds) {
		return nil
	}
	if err := d.rewrite(); err != nil {
		return fmt.Errorf("compacting the cache's database: %w", err)
	}
	d.deleted = 0
	return nil
}

// holds gives about what the values take together.
func (d *database) holds() (bytes int64, err error) {
	err = d.view(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.PrefetchValues = false
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			bytes += it.Item().EstimatedSize()
		}
		return nil
	})
	return bytes, err
}

// rewrite writes all values to a new database, and takes that. flushMu is held, so
// that nobody writes; readers go on until the exchange.
func (d *database) rewrite() error {
	dir, err := os.MkdirTemp(filepath.Dir(d.dir), "trash-db-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := d.copyTo(dir); err != nil {
		return err
	}
	// The name must not reach the disk before what it is the name of.
	if err := syncFolder(dir); err != nil {
		return err
	}
	d.life.Lock()
	defer d.life.Unlock()
	if err := d.badger.Close(); err != nil {
		return err
	}
	exchange := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, d.dir, unix.RENAME_EXCHANGE)
	b, err := openBadger(d.dir, light, d.warn)
	if err != nil {
		return errors.Join(exchange, err)
	}
	d.badger, d.load, d.written = b, light, 0
	if errors.Is(exchange, unix.EINVAL) || errors.Is(exchange, unix.ENOSYS) {
		// A file system without exchange keeps the old one.
		return nil
	}
	return exchange
}

// syncFolder makes a folder of files durable.
func syncFolder(dir string) error {
	files, err := glob(dir, "*")
	if err != nil {
		return err
	}
	for _, path := range append(files, dir) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// copyTo writes all values to a new database in the folder dir.
func (d *database) copyTo(dir string) error {
	d.life.RLock()
	defer d.life.RUnlock()
	// Larger values go to the log, as a bulk write puts them there.
	to, err := openBadger(dir, bulk, d.warn)
	if err != nil {
		return err
	}
	writer := to.NewStreamWriter()
	if err := writer.Prepare(); err != nil {
		return errors.Join(err, to.Close())
	}
	stream := d.badger.NewStreamAt(math.MaxUint64)
	stream.NumGo, stream.LogPrefix, stream.Send = 1, "compacting", writer.Write
	err = stream.Orchestrate(context.Background())
	if err == nil {
		err = writer.Flush()
	} else {
		writer.Cancel()
	}
	return errors.Join(err, to.Close())
}

// shrink opens Badger for a light load again, once nobody writes.
func (d *database) shrink() error {
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	if d.load <= light || !roomFor(d.dir, headroom) {
		return nil
	}
	if err := d.mergeLogs(); err != nil {
		return err
	}
	if d.load != light {
		if err := d.reopen(light); err != nil {
			return fmt.Errorf("opening the cache's database again: %w", err)
		}
	}
	d.written = 0
	return nil
}
