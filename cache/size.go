package cache

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache/internal/tmpfile"
)

// ErrFull is wrapped by errors of writing to a full disk.
var ErrFull = tmpfile.ErrFull

// sizes keeps account of what the folder takes without looking at it: what it took
// when it was last measured, and by how much it has grown since. That is what was
// put into the stores, or, where that is more (cache mounts grow too), by how much
// the disk has filled up while processes had the folder open and wrote to it. What
// other programs write counts too: whoever acts on it measures first.
type sizes struct {
	mu    sync.Mutex
	known bool // whether note was read
	note  sizeNote
	wrote bool  // something was written by this process
	used  int64 // of the disk, when this process began or measured
}

// sizeNote is what the database remembers of it, under a key of its own.
type sizeNote struct {
	total    int64 // when it was measured; less than 0 is never
	grown    int64 // since then, by the processes that have ended
	measured time.Time
}

var sizeKey = []byte{prefixSize}

func (n sizeNote) encode() []byte {
	b := binary.AppendVarint(nil, n.total)
	b = binary.AppendVarint(b, n.grown)
	return binary.AppendVarint(b, n.measured.UnixNano())
}

func decodeSizeNote(b []byte) sizeNote {
	d := decoder{b: b}
	n := sizeNote{total: d.int(), grown: d.int(), measured: time.Unix(0, d.int())}
	if d.end() != nil {
		return sizeNote{total: -1}
	}
	return n
}

// beginSizes is called when the folder is open. One that is new takes nothing.
func (c *Cache) beginSizes(fresh bool) error {
	space, err := c.Space()
	if err != nil {
		return err
	}
	c.size.used = space.Total - space.Free
	if fresh {
		c.size.known, c.size.note = true, sizeNote{measured: c.opt.Clock()}
	}
	return nil
}

// readSize reads the note; size.mu is held.
func (c *Cache) readSize() {
	if !c.size.known {
		c.size.known, c.size.note = true, decodeSizeNote(c.db.get(sizeKey))
	}
}

// Wrote reports whether this process has written anything that lasts.
func (c *Cache) Wrote() bool {
	if c.guard.Dirty() {
		return true
	}
	c.size.mu.Lock()
	defer c.size.mu.Unlock()
	return c.size.wrote
}

// Size gives about what the folder takes, without looking at it, and when it was
// last looked at; a zero time is never, and then the size is what the disk holds.
func (c *Cache) Size() (bytes int64, measured time.Time, err error) {
	space, err := c.Space()
	if err != nil {
		return 0, time.Time{}, err
	}
	used := space.Total - space.Free
	c.size.mu.Lock()
	defer c.size.mu.Unlock()
	c.readSize()
	n := c.size.note
	if n.total < 0 {
		return used, time.Time{}, nil
	}
	return min(used, n.total+n.grown+max(c.guard.Grown(), used-c.size.used)), n.measured, nil
}

// measure gives what the folder takes, and notes it.
func (c *Cache) measure() (int64, error) {
	space, err := c.Space()
	if err != nil {
		return 0, err
	}
	total, err := c.DiskUsage()
	if err != nil {
		return 0, err
	}
	c.size.mu.Lock()
	defer c.size.mu.Unlock()
	c.size.known, c.size.note = true, sizeNote{total: total, measured: c.opt.Clock()}
	c.size.used = space.Total - space.Free
	c.guard.ResetGrown()
	if err := c.db.putClean(sizeKey, c.size.note.encode()); err != nil && !errors.Is(err, ErrFull) {
		return total, err
	}
	return total, nil
}

// endSizes notes by how much the folder has grown, where this process wrote to it.
// An all-cached build writes nothing, this neither.
func (c *Cache) endSizes() error {
	if !c.Wrote() {
		return nil
	}
	total, measured, err := c.Size()
	if err != nil || measured.IsZero() {
		return err
	}
	c.size.mu.Lock()
	defer c.size.mu.Unlock()
	c.size.note.grown = total - c.size.note.total
	return c.db.putClean(sizeKey, c.size.note.encode())
}

// narrow gives back what folders take that had many more entries once.
func (c *Cache) narrow() error { return c.pool.Narrow() }
