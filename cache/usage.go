package cache

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// Usage is one line of what the state folder holds: a record, a layer that no
// record leads to, a cache mount, or a folder that a source keeps.
type Usage struct {
	ID          string // of the record, layer, mount or folder, in hex
	Kind        string // one of the Kind constants
	Description string // the vertex's name, the mount's id
	Size        int64  // bytes on disk that it adds to what those have that it stands on
	Shared      bool   // others stand on it, or have the same layer
	InUse       bool   // a build holds it
	Created     time.Time
	LastUsed    time.Time
	Uses        int
	Parents     []string // records whose output is this one's, less its top layer
}

// Kinds of what the state folder holds, as BuildKit names them.
const (
	KindRegular = "regular" // a record
	// KindInternal is a layer that no record leads to.
	KindInternal = "internal"
	KindMount    = "exec.cachemount"
	KindLocal    = "source.local"        // the copy of a client's folder
	KindGit      = "source.git.checkout" // a repository that was fetched
)

// Mutable reports whether it changes by being used: it is no record and no layer.
func (u Usage) Mutable() bool { return u.Kind != KindRegular && u.Kind != KindInternal }

// item is a line of Usage with what stands behind it.
type item struct {
	Usage
	id     [32]byte
	chains []ChainID // of a record
	below  []ChainID // what is below their top layers
	depth  int       // layers of the longest
	needs  []Key     // of a record
	passed bool      // LastUsed is that of a record that stands on this one
	height int       // how many records it stands on, one on the other
	layer  *Layer    // that no record leads to
	mount  string    // the mount's folder
	shelf  string    // the folder on a shelf
}

// Usage lists what the folder holds, largest first.
func (c *Cache) Usage(ctx context.Context) ([]Usage, error) {
	c.pruneMu.Lock()
	defer c.pruneMu.Unlock()
	items, err := c.items(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing what the cache holds: %w", err)
	}
	lines := make([]Usage, len(items))
	for i := range items {
		lines[i] = items[i].Usage
	}
	slices.SortStableFunc(lines, func(a, b Usage) int { return cmp.Compare(b.Size, a.Size) })
	return lines, nil
}

// items lists what can be pruned, with sizes.
func (c *Cache) items(ctx context.Context) ([]item, error) {
	uses, err := c.used.read()
	if err != nil {
		return nil, err
	}
	items, err := c.records(uses)
	if err != nil {
		return nil, err
	}
	s := c.newCensus(false)
	s.claimRecords(items)
	if items, err = c.looseLayers(items, s); err != nil {
		return nil, err
	}
	if err := s.contents(ctx); err != nil {
		return nil, err
	}
	sizes, err := s.sizes()
	if err != nil {
		return nil, err
	}
	for i := range items {
		items[i].Size = sizes[owner(i)]
	}
	both := c.newCensus(true)
	both.claimRecords(items)
	both.markShared(items)
	parents(items)
	if err := c.passUses(items); err != nil {
		return nil, err
	}
	if items, err = c.addMounts(items, uses); err != nil {
		return nil, err
	}
	return c.addShelves(items, uses)
}

// claimRecords claims records' chains, for those first that others stand on: a
// layer is that record's which made it.
func (s *census) claimRecords(items []item) {
	order := make([]int, len(items))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(items[a].depth, items[b].depth) })
	for _, i := range order {
		for _, id := range items[i].chains {
			s.chain(id, owner(i))
		}
	}
}

// records lists the records.
func (c *Cache) records(uses map[[16]byte]use) ([]item, error) {
	held := c.heldChains()
	var items []item
	err := c.db.each([]byte{prefixRecord}, true, func(k, v []byte) error {
		id := [32]byte(k[1:])
		r, err := decodeRecord(unstamp(v))
		if err != nil {
			r = Record{Name: "a damaged record"}
		}
		u := uses[short(id[:16])]
		it := item{id: id, chains: r.Outputs, needs: r.Needs, Usage: Usage{
			ID: hex.EncodeToString(id[:]), Kind: KindRegular, Description: r.Name,
			Created: r.Created, LastUsed: u.last, Uses: int(u.count), InUse: c.guard.Used(&id),
		}}
		if it.LastUsed.Before(it.Created) {
			it.LastUsed = it.Created
		}
		for _, o := range r.Outputs {
			if _, ok := held[o]; ok {
				it.InUse = true
			}
			ch, err := c.chain(o)
			if err != nil {
				continue
			}
			it.depth = max(it.depth, ch.Depth)
			if ch.Parent != (ChainID{}) {
				it.below = append(it.below, ch.Parent)
			}
		}
		items = append(items, it)
		return nil
	})
	return items, err
}

// looseLayers adds the layers that no record claims, and claims them.
func (c *Cache) looseLayers(items []item, s *census) ([]item, error) {
	held := c.newCensus(false)
	for id := range c.heldChains() {
		held.chain(id, pinned)
	}
	err := c.db.each([]byte{prefixLayer}, true, func(k, v []byte) error {
		id := [32]byte(k[1:])
		if _, ok := s.layers[id]; ok {
			return nil
		}
		l, err := decodeLayer(id, unstamp(v))
		if err != nil {
			l = Layer{ID: id}
		}
		_, inUse := held.layers[id]
		what := "a layer"
		if len(l.Origins) > 0 {
			what = "a layer of " + l.Origins[0]
		}
		s.layers[id] = owner(len(items))
		items = append(items, item{id: id, layer: &l, Usage: Usage{
			ID: hex.EncodeToString(id[:]), Kind: KindInternal, Description: what,
			InUse: inUse || c.guard.Used(&id),
		}})
		return nil
	})
	return items, err
}

// markShared tells on which records others stand, or whose layer others have too.
func (s *census) markShared(items []item) {
	for i := range items {
		for _, id := range items[i].chains {
			ch, err := s.c.chain(id)
			if err == nil && (s.chains[id] == several || s.layers[ch.Layer] == several) {
				items[i].Shared = true
			}
		}
	}
}

// parents links records by their chains.
func parents(items []item) {
	by := byOutput(items)
	for i := range items {
		for _, id := range items[i].below {
			for _, p := range by[id] {
				items[i].Parents = append(items[i].Parents, items[p].ID)
			}
		}
		slices.Sort(items[i].Parents)
		items[i].Parents = slices.Compact(items[i].Parents)
	}
}

// byOutput gives the items, by number, that have a chain as an output.
func byOutput(items []item) map[ChainID][]int {
	by := map[ChainID][]int{}
	for i := range items {
		for _, id := range items[i].chains {
			by[id] = append(by[id], i)
		}
	}
	return by
}

// passUses has what a record stands on count as used when the record was: a build
// whose last step is found looks at no other, and still the others are what the
// next change needs.
func (c *Cache) passUses(items []item) error {
	below, err := c.below(items)
	if err != nil {
		return err
	}
	lately := make([]int, len(items))
	for i := range lately {
		lately[i] = i
	}
	slices.SortStableFunc(lately, func(a, b int) int { return items[b].LastUsed.Compare(items[a].LastUsed) })
	done := make([]bool, len(items))
	for _, first := range lately {
		// Whatever is reached for the first time is reached from the latest use.
		at := items[first].LastUsed
		for stack := []int{first}; len(stack) > 0; {
			i := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if done[i] {
				continue
			}
			done[i], items[i].passed, items[i].LastUsed = true, items[i].LastUsed.Before(at), at
			stack = append(stack, below[i]...)
		}
	}
	heights(items, below)
	return nil
}

// below gives the numbers of the items that each stands on.
func (c *Cache) below(items []item) ([][]int, error) {
	records, err := c.byKey(items)
	if err != nil {
		return nil, err
	}
	by := byOutput(items)
	below := make([][]int, len(items))
	for i, it := range items {
		for _, k := range it.needs {
			if r, ok := records[k]; ok {
				below[i] = append(below[i], r)
			}
		}
		for _, id := range it.below {
			below[i] = append(below[i], by[id]...)
		}
	}
	return below, nil
}

// heights sets the heights: one more than the highest of what is below.
func heights(items []item, below [][]int) {
	const unseen, open = -1, 0
	for i := range items {
		items[i].height = unseen
	}
	for i := range items {
		for stack := []int{i}; len(stack) > 0; {
			at := stack[len(stack)-1]
			if items[at].height == unseen {
				// Until it is known; should a record stand on itself it is known now.
				items[at].height = open
				for _, b := range below[at] {
					if items[b].height == unseen {
						stack = append(stack, b)
					}
				}
				continue
			}
			stack = stack[:len(stack)-1]
			for _, b := range below[at] {
				if b != at {
					items[at].height = max(items[at].height, items[b].height+1)
				}
			}
		}
	}
}

// byKey gives the numbers of the records that items need, by key.
func (c *Cache) byKey(items []item) (map[Key]int, error) {
	wanted, number := map[Key]bool{}, map[[32]byte]int{}
	for i, it := range items {
		number[it.id] = i
		for _, k := range it.needs {
			wanted[k] = true
		}
	}
	records := map[Key]int{}
	err := c.db.each([]byte{prefixKey}, true, func(k, v []byte) error {
		key := Key(k[1:])
		if !wanted[key] {
			return nil
		}
		d := decoder{b: unstamp(v)}
		if n, ok := number[d.id()]; ok && d.end() == nil {
			records[key] = n
		}
		return nil
	})
	return records, err
}

// addMounts adds the cache mounts.
func (c *Cache) addMounts(items []item, uses map[[16]byte]use) ([]item, error) {
	err := c.db.each([]byte{prefixMount}, true, func(k, v []byte) error {
		object := [32]byte(k[1:])
		id, created, err := decodeMount(v)
		if err != nil {
			id = "a damaged entry"
		}
		c.leaseMu.Lock()
		inUse := c.mounts[id] > 0
		c.leaseMu.Unlock()
		it := item{id: object, mount: c.mountPath(&object), Usage: Usage{
			ID: hex.EncodeToString(object[:]), Kind: KindMount, Description: id,
			Created: created, InUse: inUse,
		}}
		u := uses[short(object[:16])]
		it.LastUsed, it.Uses = u.last, int(u.count)
		if it.LastUsed.Before(created) {
			it.LastUsed = created
		}
		if it.Size, err = diskUsage(it.mount); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		items = append(items, it)
		return nil
	})
	return items, err
}
