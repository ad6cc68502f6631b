// Package guard keeps what running builds use from being swept.
//
// The stores of the state folder (database, pool, blobs) share one Guard. An
// object is anything with a 32-byte name. Three rules make it safe to sweep
// while builds run:
//
//   - Whoever finds an object present, or puts one, does so inside Use, which
//     notes the object as used and holds the object's shard for reading.
//   - Whoever removes an object does so inside Sweep, which holds the shard for
//     writing and refuses when the object was used since the oldest open lease
//     began. So "it is here" is answered either before the removal is decided,
//     and then the removal does not happen, or after it is done, and then the
//     answer is no.
//   - Sweeping goes from what refers to what is referred to: records, then
//     chains and layers, then nodes, files and blobs. What is marked is marked
//     after the level above was swept, so an object that survived there by being
//     used has what it leads to marked.
//
// The note of use is a bitmap with one bit for each value of an object's first
// bits: its size does not grow with the work, a use costs one atomic operation,
// and a collision keeps an object until a later sweep.
package guard

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
)

const (
	shards = 64
	// bits of an object's name that choose its bit: 2^23 bits are 1 MiB, and with
	// 300,000 objects used by one build 3.5% of the others are kept by collision.
	nameBits = 23
)

// Guard is what Use and Sweep go through. The zero Guard works and is safe for
// concurrent use.
type Guard struct {
	dirty  atomic.Bool
	grown  atomic.Int64
	shards [shards]struct {
		sync.RWMutex
		_ [40]byte // one cache line each
	}

	// newest is where uses are noted; nil before the first lease.
	newest atomic.Pointer[generation]

	mu   sync.Mutex // guards what follows
	open int        // leases
	gens []*generation
}

// generation is the uses between two calls of Renew. One is kept when the last
// lease ends, for the next: its bits then keep more than they must, until Renew.
type generation struct {
	leases int // that began in it; guarded by Guard.mu
	bits   [1 << (nameBits - 5)]atomic.Uint32
}

// Use notes that the object is used and locks it against removal until the
// returned lock is given back with RUnlock.
func (g *Guard) Use(id *[32]byte) *sync.RWMutex {
	s := &g.shards[id[31]%shards].RWMutex
	s.RLock()
	if gen := g.newest.Load(); gen != nil {
		word, mask := bit(id)
		if gen.bits[word].Load()&mask == 0 {
			gen.bits[word].Or(mask)
		}
	}
	return s
}

// Touch notes that the object is used, where there is nothing to look at.
func (g *Guard) Touch(id *[32]byte) { g.Use(id).RUnlock() }

// Sweep runs remove unless the object was used since the oldest open lease began.
func (g *Guard) Sweep(id *[32]byte, remove func() error) (swept bool, err error) {
	s := &g.shards[id[31]%shards].RWMutex
	s.Lock()
	defer s.Unlock()
	if g.Used(id) {
		return false, nil
	}
	return true, remove()
}

// Used reports whether the object was used since the oldest open lease began.
func (g *Guard) Used(id *[32]byte) bool {
	word, mask := bit(id)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == 0 {
		return false
	}
	for _, gen := range g.gens {
		if gen.bits[word].Load()&mask != 0 {
			return true
		}
	}
	return false
}

// Begin opens a lease: what is used from now on is kept until end is called.
func (g *Guard) Begin() (end func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.gens) == 0 {
		g.renew()
	}
	gen := g.gens[len(g.gens)-1]
	gen.leases++
	g.open++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		gen.leases--
		g.open--
		for len(g.gens) > 1 && g.gens[0].leases == 0 {
			g.gens = g.gens[1:]
		}
	})
}

// Renew is called before a sweep: leases that begin later do not keep what only
// earlier ones used, though they overlap.
func (g *Guard) Renew() {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.open == 0:
		g.gens = nil
		g.newest.Store(nil)
	case g.gens[len(g.gens)-1].leases > 0:
		g.renew()
	}
}

func (g *Guard) renew() {
	gen := new(generation)
	g.gens = append(g.gens, gen)
	g.newest.Store(gen)
}

// SetDirty notes that something was written that is not durable yet.
func (g *Guard) SetDirty() {
	if !g.dirty.Load() {
		g.dirty.Store(true)
	}
}

// Grow notes that an object was made that takes about so many bytes.
func (g *Guard) Grow(bytes int64) { g.grown.Add(bytes) }

// Grown gives how many bytes the objects take that were made since it was last reset.
func (g *Guard) Grown() int64 { return g.grown.Load() }

// ResetGrown begins to count anew.
func (g *Guard) ResetGrown() { g.grown.Store(0) }

// TakeDirty reports whether something was written since it was last called.
func (g *Guard) TakeDirty() bool { return g.dirty.Swap(false) }

// Dirty reports whether something was written since TakeDirty was last called.
func (g *Guard) Dirty() bool { return g.dirty.Load() }

func bit(id *[32]byte) (word, mask uint32) {
	n := binary.LittleEndian.Uint32(id[:]) >> (32 - nameBits)
	return n >> 5, 1 << (n & 31)
}
