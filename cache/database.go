package cache

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/kiln-build/kiln/cache/internal/guard"
	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"golang.org/x/sys/unix"
)

// Keys of the database begin with one of these, in the order in which a flush
// writes them: what is referred to before what refers to it, so that a process
// that is killed in the middle leaves nothing that leads nowhere.
const (
	prefixNode   = 'a'
	prefixBucket = 'b'
	prefixLayer  = 'c'
	prefixChain  = 'd'
	prefixState  = 'e'
	prefixRecord = 'f'
	prefixKey    = 'g'
	prefixMount  = 'm'
	prefixSize   = 's'
	prefixEpoch  = 'z'
)

const (
	// flushDelay is how long a write waits for others to go with.
	flushDelay = 50 * time.Millisecond
	// flushBytes is how much makes a flush begin at once, and twice that makes
	// writers wait for it.
	flushBytes = 8 << 20
	// headroom is the free disk space below which nothing is flushed: Badger maps
	// its files into memory, and a process that writes to a mapped file on a full
	// disk is killed. It covers a batch, the table made of it, and a compaction.
	headroom = 32 << 20
)

// database is Badger with a buffer before it. Writes go to the buffer, which
// reads look into first, and from there in batches to the file of what is recent, or
// to Badger, in the background. A buffered value is nil where the key is deleted.
type database struct {
	life   sync.RWMutex // held for writing while badger is exchanged
	badger *badger.DB   // nil while the load is absent

	dir   string
	guard *guard.Guard
	warn  func(error)

	damaged atomic.Bool

	mu       sync.RWMutex
	room     *sync.Cond // of mu: flushing has become nil
	active   map[string][]byte
	flushing map[string][]byte
	// recentValues are those of the file of what is recent; they are older than the others.
	recentValues map[string][]byte
	size         int
	failed       error // of the last flush, until one succeeds

	flushMu sync.Mutex // held by who flushes; before life and mu
	recent  recent     // guarded by flushMu
	deleted int        // keys since the last compaction; guarded by flushMu
	// version is the timestamp of the last batch; guarded by flushMu. Left to
	// itself Badger gives a reader the timestamp of the last write, and has it wait
	// until that is done: every reader stood still while a large batch was flushed.
	// What is being flushed is in memory here, so readers take whatever is newest.
	version uint64
	load    load  // what Badger is open for; guarded by flushMu
	written int64 // since it was opened light; guarded by flushMu
	views   atomic.Int64
	// bulkAfter is bulkBytes, recentMax recentBytes and mapped mappedBytes, but in tests.
	bulkAfter, recentMax int64
	mapped               func() int64
	urgent               chan struct{}
	wake                 chan struct{}
	done                 chan struct{}
	group                sync.WaitGroup
}

// recentFile is the name of the file of what is recent, beside Badger's.
const recentFile = "recent"

// openDatabase opens dir. One that Badger cannot open is set aside; what was
// found wrong while it was last open counts as that too.
func openDatabase(dir string, g *guard.Guard, now time.Time, warn func(error)) (*database, error) {
	marker := filepath.Join(dir, "damaged")
	var err error
	if _, serr := os.Lstat(marker); serr == nil {
		err = errors.New("it was found damaged when it was last read")
	}
	var b *badger.DB
	l := light
	if err == nil {
		b, l, err = openFirst(dir, warn)
	}
	if err != nil && !setAside(err) {
		return nil, tmpfile.Explain(fmt.Errorf("opening the database %s: %w", dir, err))
	}
	if err != nil {
		aside := dir + ".corrupt-" + now.UTC().Format("20060102T150405.000000000")
		if rerr := os.Rename(dir, aside); rerr != nil {
			return nil, fmt.Errorf("setting the damaged database aside: %w", rerr)
		}
		warn(fmt.Errorf("the cache starts empty, because its database is damaged (%w); it was set aside as %s, which kiln prune removes", err, aside))
		if b, l, err = openFirst(dir, warn); err != nil {
			return nil, tmpfile.Explain(fmt.Errorf("opening the database %s: %w", dir, err))
		}
	}
	recent, values, err := openRecent(filepath.Join(dir, recentFile))
	if err != nil {
		if b != nil {
			err = errors.Join(err, b.Close())
		}
		return nil, fmt.Errorf("opening the database %s: %w", dir, err)
	}
	d := &database{
		badger: b, load: l, dir: dir, guard: g, warn: warn, recent: recent, recentValues: values,
		bulkAfter: bulkBytes, recentMax: recentBytes, mapped: mappedBytes,
		active: map[string][]byte{},
		urgent: make(chan struct{}, 1), wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if b != nil {
		d.version = b.MaxVersion()
	}
	d.room = sync.NewCond(&d.mu)
	d.group.Go(d.run)
	return d, nil
}

// dbKey makes a key; it is on the stack where the caller's use allows that.
func dbKey(prefix byte, id *[32]byte) []byte {
	b := make([]byte, 33)
	b[0] = prefix
	copy(b[1:], id[:])
	return b
}

// lookup looks for a value that is not in Badger yet; nil is one that was deleted.
func (d *database) lookup(key []byte) (v []byte, ok bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, m := range []map[string][]byte{d.active, d.flushing, d.recentValues} {
		if v, ok = m[string(key)]; ok {
			return v, true
		}
	}
	return nil, false
}

// get gives a value, which the caller must not change; nil is none.
func (d *database) get(key []byte) []byte {
	v, ok := d.lookup(key)
	if ok {
		return v
	}
	err := d.view(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if err == nil {
			v, err = item.ValueCopy(nil)
		}
		return err
	})
	if err != nil {
		d.broken(key, err)
		return nil
	}
	if v == nil {
		v = []byte{}
	}
	return v
}

// has reports whether there is a value.
func (d *database) has(key []byte) bool {
	if v, ok := d.lookup(key); ok {
		return v != nil
	}
	err := d.view(func(txn *badger.Txn) error {
		_, err := txn.Get(key)
		return err
	})
	if err != nil {
		d.broken(key, err)
	}
	return err == nil
}

// view reads from Badger; fn must not come back to d. Where there is no Badger yet
// there is no key.
func (d *database) view(fn func(*badger.Txn) error) error {
	if d.views.Add(1)%viewsBetween == 0 {
		d.trimMapped()
	}
	d.life.RLock()
	defer d.life.RUnlock()
	if d.badger == nil {
		return badger.ErrKeyNotFound
	}
	txn := d.badger.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	return fn(txn)
}

// broken notes that the database could not be read, so that the next process
// sets it aside. For this one what cannot be read is not there.
func (d *database) broken(key []byte, err error) {
	if errors.Is(err, badger.ErrKeyNotFound) || errors.Is(err, badger.ErrDBClosed) || d.damaged.Swap(true) {
		return
	}
	_ = os.WriteFile(filepath.Join(d.dir, "damaged"), []byte(err.Error()+"\n"), 0o600)
	d.warn(fmt.Errorf("the cache's database is damaged, and will be set aside when it is next opened: reading key %.8x: %w", key, err))
}

// put stores a value, which the caller leaves alone afterwards.
func (d *database) put(key, value []byte) error {
	if value == nil {
		value = []byte{}
	}
	d.guard.SetDirty()
	return d.write(string(key), value)
}

// putClean is put for a value that needs no epoch to be closed for it.
func (d *database) putClean(key, value []byte) error { return d.write(string(key), value) }

// delete removes a value. That the disk is full is no error of it: what is removed
// makes room, and what could not be written down as removed is found not to be there.
func (d *database) delete(key []byte) error {
	d.guard.SetDirty()
	if err := d.write(string(key), nil); !errors.Is(err, tmpfile.ErrFull) {
		return err
	}
	return nil
}

func (d *database) write(key string, value []byte) error {
	d.mu.Lock()
	for d.size >= 2*flushBytes && d.failed == nil {
		d.signal(d.urgent)
		d.room.Wait()
	}
	first := len(d.active) == 0
	d.active[key] = value
	d.size += len(key) + len(value) + 64
	full, err := d.size >= flushBytes, d.failed
	d.mu.Unlock()
	switch {
	case full:
		d.signal(d.urgent)
	case first:
		d.signal(d.wake)
	}
	return err
}

func (d *database) signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run flushes in the background.
func (d *database) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-d.done:
			return
		case <-d.urgent:
		case <-d.wake:
			timer.Reset(flushDelay)
			select {
			case <-d.done:
				return
			case <-d.urgent:
			case <-timer.C:
			}
		}
		if err := d.flush(); err != nil {
			// The buffer keeps what was not written; writers see the error.
			timer.Reset(time.Second)
			select {
			case <-d.done:
				return
			case <-timer.C:
				d.signal(d.wake)
			}
		}
	}
}

// flush hands what is buffered to Badger.
func (d *database) flush() error {
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	d.mu.Lock()
	if len(d.active) == 0 {
		d.mu.Unlock()
		return nil
	}
	d.flushing, d.active = d.active, make(map[string][]byte, len(d.active)/2)
	batch, size := d.flushing, d.size
	d.size = 0
	d.mu.Unlock()

	err := d.writeBatch(batch, size)

	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("writing to the cache's database: %w", tmpfile.Explain(err))
		for k, v := range batch {
			if _, newer := d.active[k]; !newer {
				d.active[k] = v
			}
		}
		d.size += size
	}
	d.flushing, d.failed = nil, err
	d.room.Broadcast()
	return err
}

// bear sees to it that Badger is open for a batch of that size. flushMu is held.
func (d *database) bear(size int) error {
	switch {
	case d.load < bulk && d.written > d.bulkAfter:
		return d.reopen(bulk)
	case d.load < heavy && size > lightMemTable:
		return d.reopen(heavy)
	case d.load < light:
		return d.reopen(light)
	}
	return nil
}

func (d *database) writeBatch(batch map[string][]byte, size int) error {
	if !roomFor(d.dir, int64(headroom+4*size)) {
		return unix.ENOSPC
	}
	keys := sortedKeys(batch)
	if done, err := d.note(batch, keys); done || err != nil {
		return d.wrote(batch, size, err)
	}
	if err := d.settle(); err != nil {
		return err
	}
	d.written += int64(size)
	if err := d.bear(size); err != nil {
		return err
	}
	err := d.setAll(batch, keys)
	if d.mapped() > mappedMax {
		d.unmapPages()
	}
	return d.wrote(batch, size, err)
}

// wrote takes account of a batch.
func (d *database) wrote(batch map[string][]byte, size int, err error) error {
	if err != nil {
		return err
	}
	for _, v := range batch {
		if v == nil {
			d.deleted++
		}
	}
	d.guard.Grow(int64(size))
	return nil
}

// setAll writes values to Badger, in the order of their keys. flushMu is held.
func (d *database) setAll(batch map[string][]byte, keys []string) error {
	d.life.RLock()
	defer d.life.RUnlock()
	d.version++
	wb := d.badger.NewWriteBatchAt(d.version)
	defer wb.Cancel()
	for _, k := range keys {
		var err error
		if v := batch[k]; v != nil {
			err = wb.Set([]byte(k), v)
		} else {
			err = wb.Delete([]byte(k))
		}
		if err != nil {
			return err
		}
	}
	if err := wb.Flush(); err != nil {
		return err
	}
	d.badger.SetDiscardTs(d.version)
	return nil
}

// each calls fn for the keys that begin with prefix, in their order, with values for
// their values too. fn may keep what it is given, and write to d. Keys that are put
// meanwhile may be met or not.
func (d *database) each(prefix []byte, values bool, fn func(key, value []byte) error) error {
	buffered := d.buffered(prefix)
	waiting := sortedKeys(buffered)
	// until calls fn for what is buffered before a key, or with it.
	until := func(key []byte) error {
		for len(waiting) > 0 && (key == nil || waiting[0] <= string(key)) {
			k := waiting[0]
			waiting = waiting[1:]
			if v := buffered[k]; v != nil {
				if err := fn([]byte(k), v); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for at := prefix; at != nil; {
		pairs, err := d.page(prefix, at, values)
		if err != nil {
			d.broken(prefix, err)
			return fmt.Errorf("reading the cache's database: %w", err)
		}
		for _, p := range pairs {
			if err := until(p.k); err != nil {
				return err
			}
			if _, ok := buffered[string(p.k)]; ok {
				continue
			}
			if err := fn(p.k, p.v); err != nil {
				return err
			}
		}
		at = nil
		if len(pairs) == pageSize {
			at = append(pairs[pageSize-1].k, 0)
		}
	}
	return until(nil)
}

// buffered gives what the buffer has of the keys that begin with prefix.
func (d *database) buffered(prefix []byte) map[string][]byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	found := map[string][]byte{}
	for _, m := range []map[string][]byte{d.recentValues, d.flushing, d.active} {
		for k, v := range m {
			if strings.HasPrefix(k, string(prefix)) {
				found[k] = v
			}
		}
	}
	return found
}

type pair struct{ k, v []byte }

// pageSize is how many keys each reads at once: fn runs while nothing is locked.
const pageSize = 512

func (d *database) page(prefix, at []byte, values bool) (pairs []pair, err error) {
	err = d.view(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.Prefix, o.PrefetchValues = prefix, false
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Seek(at); it.Valid() && len(pairs) < pageSize; it.Next() {
			p := pair{k: it.Item().KeyCopy(nil)}
			if values {
				var err error
				if p.v, err = it.Item().ValueCopy(nil); err != nil {
					return err
				}
			}
			pairs = append(pairs, p)
		}
		return nil
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		err = nil
	}
	return pairs, err
}

// close flushes and closes Badger. What could not be flushed is lost: a miss.
func (d *database) close() error {
	close(d.done)
	d.group.Wait()
	err := errors.Join(d.flush(), d.recent.close())
	if errors.Is(err, tmpfile.ErrFull) {
		// Closing Badger would write a table, and kill the process on a full disk.
		// Its log holds everything; the next process replays it.
		return err
	}
	return errors.Join(err, d.closeBadger())
}
