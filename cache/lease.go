package cache

import "sync"

// Lease keeps what it holds from being collected, until Release.
type Lease struct {
	c   *Cache
	end func()

	mu   sync.Mutex
	held map[ChainID]struct{}
}

// Lease makes a lease that holds nothing yet. Whatever is put into the cache or
// the pool between its making and its Release, or found there, is held too.
func (c *Cache) Lease() *Lease {
	l := &Lease{c: c, end: c.guard.Begin(), held: map[ChainID]struct{}{}}
	c.leaseMu.Lock()
	defer c.leaseMu.Unlock()
	c.leases[l] = struct{}{}
	return l
}

// Hold adds a chain and all that it leads to. The chain must have been found or
// made under an open lease, this one or another that is open still.
func (l *Lease) Hold(id ChainID) {
	if id == (ChainID{}) || id == Absent {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[id] = struct{}{}
}

// Release ends the lease. Further calls do nothing.
func (l *Lease) Release() {
	c := l.c
	c.leaseMu.Lock()
	defer c.leaseMu.Unlock()
	if _, open := c.leases[l]; !open {
		return
	}
	delete(c.leases, l)
	if len(c.leases) == 0 {
		c.replaced = nil
	}
	l.end()
}

// leased reports whether a lease is open.
func (c *Cache) leased() bool {
	c.leaseMu.Lock()
	defer c.leaseMu.Unlock()
	return len(c.leases) > 0
}

// heldChains gives the chains that leases hold.
func (c *Cache) heldChains() map[ChainID]struct{} {
	held := map[ChainID]struct{}{}
	c.leaseMu.Lock()
	defer c.leaseMu.Unlock()
	for l := range c.leases {
		l.mu.Lock()
		for id := range l.held {
			held[id] = struct{}{}
		}
		l.mu.Unlock()
	}
	return held
}
