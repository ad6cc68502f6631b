package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Nothing is synced while a build runs, and still nothing wrong is left when the
// machine stops at any moment. Records, layers and states carry the number of
// the epoch in which they were written. An epoch is closed in the background:
//
//  1. the epoch's number goes up: what is written from now on is of the next one;
//  2. the buffer is flushed, and syncfs(2) makes the whole file system durable:
//     the database, the pool, the blobs;
//  3. a note is written to the database, and synced: the number of the closed
//     epoch, the time of step 1, and the boot id.
//
// When a process finds a note of another boot id the machine was restarted since.
// Values of epochs later than the noted one are dropped, and so are pool files,
// blobs and layer folders that changed after the noted time: they may not have
// reached the disk as they were. With the same boot id the kernel has everything
// still, however the last process ended.
type epochs struct {
	stamp sync.RWMutex // held for reading from reading current to the write
	// current is the epoch of what is written now; guarded by stamp.
	current uint64

	closing sync.Mutex // one closing at a time; before stamp
	boot    string
	// inherited is whether the last process left an epoch open.
	inherited atomic.Bool
}

const (
	// epochAge is how long an epoch stays open in a process that lives so long.
	// syncfs writes out what other programs wrote too: it should not be frequent.
	epochAge  = 30 * time.Second
	epochTick = 5 * time.Second
)

var epochKey = []byte{prefixEpoch}

// epochNote is what is known to be durable.
type epochNote struct {
	closed uint64
	since  int64 // nanoseconds since 1970: what is older is durable
	boot   string
}

func (n epochNote) encode() []byte {
	b := binary.AppendUvarint(nil, n.closed)
	b = binary.AppendVarint(b, n.since)
	return appendText(b, n.boot)
}

func decodeEpochNote(b []byte) (epochNote, error) {
	d := decoder{b: b}
	n := epochNote{closed: d.uint(), since: d.int(), boot: d.text()}
	return n, d.end()
}

// beginEpochs reads the note and drops what a crash of the machine may have cut.
func (c *Cache) beginEpochs(boot string, unclean bool) error {
	c.epoch.boot = boot
	var note epochNote
	if b := c.db.get(epochKey); b != nil {
		var err error
		if note, err = decodeEpochNote(b); err != nil {
			note = epochNote{}
		}
	}
	c.epoch.current = note.closed + 1
	if note.boot == boot {
		if unclean {
			// What the last process left open is this one's to close.
			c.epoch.inherited.Store(true)
		}
		return nil
	}
	if err := c.dropOpenEpochs(note); err != nil {
		return fmt.Errorf("dropping what had not become durable: %w", err)
	}
	note.boot = boot
	if err := c.db.putClean(epochKey, note.encode()); err != nil {
		return err
	}
	return c.db.flush()
}

// dropOpenEpochs drops what was written after the note.
func (c *Cache) dropOpenEpochs(note epochNote) error {
	since := note.since
	if time.Now().UnixNano() < since {
		// The clock has gone back: times say nothing.
		since = 0
	}
	if err := c.db.dropUnreadable(since); err != nil {
		return err
	}
	for _, prefix := range []byte{prefixKey, prefixRecord, prefixState, prefixLayer} {
		err := c.db.each([]byte{prefix}, true, func(k, v []byte) error {
			if e, n := binary.Uvarint(v); n > 0 && e <= note.closed {
				return nil
			}
			return c.db.delete(append([]byte(nil), k...))
		})
		if err != nil {
			return err
		}
	}
	if err := c.pool.DropSince(since); err != nil {
		return err
	}
	if err := c.blobs.DropSince(since); err != nil {
		return err
	}
	if err := c.dropFolders("layers", since); err != nil {
		return err
	}
	return c.db.flush()
}

// dropFolders moves folders that changed since then away, to be removed.
func (c *Cache) dropFolders(name string, since int64) error {
	entries, err := os.ReadDir(c.Path(name))
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(c.Path(name, e.Name()), &st); err != nil {
			return err
		}
		if max(st.Ctim.Nano(), info.ModTime().UnixNano()) < since {
			continue
		}
		if err := c.discard(c.Path(name, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// stamped writes a value that begins with the number of the current epoch.
func (c *Cache) stamped(key []byte, body []byte) error {
	c.epoch.stamp.RLock()
	defer c.epoch.stamp.RUnlock()
	v := make([]byte, 0, len(body)+binary.MaxVarintLen64)
	v = binary.AppendUvarint(v, c.epoch.current)
	return c.db.put(key, append(v, body...))
}

// unstamp gives the body of a stamped value; nil is none.
func unstamp(v []byte) []byte {
	_, n := binary.Uvarint(v)
	if n <= 0 {
		return nil
	}
	return v[n:]
}

// tend closes epochs in the background, and gives memory back when no build runs.
func (c *Cache) tend() {
	tick := time.NewTicker(epochTick)
	defer tick.Stop()
	var age, idle time.Duration
	if c.undurable() {
		// An epoch that the last process left open is old enough.
		age = epochAge - epochTick
	}
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
		if idle += epochTick; c.leased() {
			idle = 0
		} else if idle == 2*epochTick {
			c.nodes.clear()
			c.warnOf(c.db.shrink())
			// What builds left would wait for the runtime's next collection, which
			// may be two minutes away where nothing is allocated.
			debug.FreeOSMemory()
		}
		if age += epochTick; !c.undurable() {
			age = 0
		} else if age >= epochAge {
			age = 0
			c.warnOf(c.used.flush())
			c.warnOf(c.closeEpoch())
		}
	}
}

func (c *Cache) warnOf(err error) {
	if err != nil {
		c.opt.Warn(err)
	}
}

// undurable reports whether there is something that is not durable yet.
func (c *Cache) undurable() bool { return c.guard.Dirty() || c.epoch.inherited.Load() }

// closeEpoch makes durable what was written until now.
func (c *Cache) closeEpoch() error {
	c.epoch.closing.Lock()
	defer c.epoch.closing.Unlock()
	c.epoch.inherited.Store(false)
	if c.guard.TakeDirty() {
		c.size.mu.Lock()
		c.size.wrote = true
		c.size.mu.Unlock()
	}
	since, err := fileClock()
	if err != nil {
		return err
	}
	c.epoch.stamp.Lock()
	note := epochNote{closed: c.epoch.current, since: since, boot: c.epoch.boot}
	c.epoch.current++
	c.epoch.stamp.Unlock()
	if err := c.makeDurable(note); err != nil {
		c.guard.SetDirty()
		return fmt.Errorf("making the cache durable: %w", err)
	}
	return nil
}

// fileClock gives a time of the clock that the kernel stamps files with: files
// stamped before the call are older than it, files stamped after it are not. The
// kernel stamps with a clock that stands still for some milliseconds between
// ticks and may then be behind by more than one, or (since Linux 6.13) with the
// exact time, as it likes. So the time is the exact one, and fileClock waits until
// the other clock has passed it.
func fileClock() (int64, error) {
	var exact, coarse unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &exact); err != nil {
		return 0, fmt.Errorf("reading the clock: %w", err)
	}
	since := exact.Nano() + 1
	for range fileClockTries {
		if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &coarse); err != nil {
			return 0, fmt.Errorf("reading the clock: %w", err)
		}
		if coarse.Nano() >= since {
			return since, nil
		}
		time.Sleep(time.Millisecond)
	}
	return 0, errors.New("the clock goes backwards")
}

// fileClockTries are more than any tick takes.
const fileClockTries = 1000

func (c *Cache) makeDurable(note epochNote) error {
	if err := c.db.flush(); err != nil {
		return err
	}
	if err := unix.Syncfs(int(c.root.Fd())); err != nil {
		return fmt.Errorf("syncfs: %w", err)
	}
	if err := c.db.putClean(epochKey, note.encode()); err != nil {
		return err
	}
	if err := c.db.flush(); err != nil {
		return err
	}
	return c.db.sync()
}
