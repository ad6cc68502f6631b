package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/internal/tmpfile"
	"github.com/kiln-build/kiln/cache/pool"
)

// PruneOptions say what to collect. The zero value collects whatever no build
// holds, but for what parts of the worker remember.
//
// With a bound, what may go goes longest unused first, until the bounds hold. Of
// records that were used together, those go first that others do not stand on.
type PruneOptions struct {
	All          bool             // what parts of the worker remember, too
	KeepDuration time.Duration    // keep what was used since; 0 is no such bound
	MaxUsed      int64            // how large the folder may be; 0 is no bound
	MinFree      int64            // how much is to be free on the disk; 0 is no bound
	Reserved     int64            // while the folder is no larger nothing goes; 0 is no bound
	Filter       func(Usage) bool // consider only these; nil is all
}

// Bounded reports whether the options have a bound of bytes.
func (o PruneOptions) Bounded() bool { return o.MaxUsed > 0 || o.MinFree > 0 || o.Reserved > 0 }

// Limit gives how large the folder may be that takes used bytes, on a disk with
// free bytes to spare. It means something for options with a bound only.
func (o PruneOptions) Limit(used, free int64) int64 {
	limit := o.MaxUsed
	if o.MinFree > 0 {
		// What is missing is taken from the folder.
		room := used - max(0, o.MinFree-free)
		if limit == 0 || room < limit {
			limit = room
		}
	}
	return max(limit, o.Reserved)
}

// Prune collects and gives what went. Builds may run meanwhile: what an open
// lease holds or has used stays. With bounds it collects until the folder's disk
// usage, each inode counted once, is within them or nothing is left that may go.
func (c *Cache) Prune(ctx context.Context, o PruneOptions) ([]Usage, error) {
	c.pruneMu.Lock()
	defer c.pruneMu.Unlock()
	gone, err := c.prune(ctx, o)
	if err != nil {
		return gone, fmt.Errorf("pruning the cache: %w", err)
	}
	return gone, nil
}

// pruner is a Prune that is going on.
type pruner struct {
	*Cache
	o         PruneOptions
	limit     int64            // of the folder, where o is bounded
	keepLoose map[LayerID]bool // layers that no record leads to, and that stay
	gone      []Usage
}

func (c *Cache) prune(ctx context.Context, o PruneOptions) ([]Usage, error) {
	p := &pruner{Cache: c, o: o, keepLoose: map[LayerID]bool{}}
	if o.Bounded() {
		used, err := c.measure()
		if err != nil {
			return nil, err
		}
		space, err := c.Space()
		if err != nil {
			return nil, err
		}
		if p.limit = o.Limit(used, space.Free); used <= p.limit {
			return nil, nil
		}
	}
	if err := c.boundBuckets(maxBucket); err != nil {
		return nil, err
	}
	c.guard.Renew()
	all, err := c.items(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].passed {
			// What says so now may go.
			c.used.pass(&all[i].id, all[i].LastUsed)
		}
	}
	items := candidates(all, o, c.opt.Clock())
	for _, it := range all {
		if it.layer != nil {
			p.keepLoose[it.id] = true
		}
	}
	for _, it := range items {
		delete(p.keepLoose, it.id)
	}
	if !o.Bounded() {
		if o.All && o.Filter == nil && o.KeepDuration == 0 {
			err = c.dropBuckets()
		}
		return p.gone, errors.Join(err, p.collect(ctx, items), p.remeasure())
	}
	loose := func(it item) bool { return it.layer != nil }
	first := slices.DeleteFunc(slices.Clone(items), func(it item) bool { return !loose(it) })
	if err = p.collect(ctx, first); err == nil {
		err = p.shrink(ctx, slices.DeleteFunc(items, loose))
	}
	return p.gone, err
}

func (p *pruner) remeasure() error {
	_, err := p.measure()
	return err
}

// shrink collects items, from the first, until the folder is within the limit.
func (p *pruner) shrink(ctx context.Context, items []item) error {
	for {
		used, err := p.measure()
		if err != nil || used <= p.limit {
			return err
		}
		// The space of what was removed already comes before what is still of use.
		if err := p.db.compact(1); err != nil {
			return err
		}
		if err := p.narrow(); err != nil {
			return err
		}
		if used, err = p.measure(); err != nil || used <= p.limit {
			return err
		}
		if len(items) == 0 {
			return p.forget(ctx)
		}
		n, err := p.enough(ctx, items, used-p.limit)
		if err != nil {
			return err
		}
		if err := p.collect(ctx, items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
}

// forget drops what parts of the worker remember, where everything may go: it is
// what is left that can.
func (p *pruner) forget(ctx context.Context) error {
	if p.o.Filter != nil || p.o.KeepDuration > 0 {
		return nil
	}
	if err := p.dropBuckets(); err != nil {
		return err
	}
	// The nodes of kept trees are free now.
	return errors.Join(p.collect(ctx, nil), p.db.compact(1), p.remeasure())
}

// candidates are the items that o lets go, longest unused first.
func candidates(items []item, o PruneOptions, now time.Time) []item {
	keep := func(it item) bool {
		return it.InUse ||
			o.KeepDuration > 0 && !it.LastUsed.Before(now.Add(-o.KeepDuration)) ||
			o.Filter != nil && !o.Filter(it.Usage)
	}
	items = slices.DeleteFunc(slices.Clone(items), keep)
	slices.SortStableFunc(items, func(a, b item) int {
		// Of what was used together, what nothing stands on goes first, and of that
		// the larger: it may be enough.
		return cmp.Or(a.LastUsed.Compare(b.LastUsed), cmp.Compare(b.height, a.height), cmp.Compare(b.Size, a.Size))
	})
	return items
}

// enough gives how many of the items, from the first, must go to free need
// bytes. An object that several have goes with the last of them.
func (p *pruner) enough(ctx context.Context, items []item, need int64) (int, error) {
	going := make(map[[32]byte]bool, len(items))
	for _, it := range items {
		going[it.id] = true
	}
	s := p.newCensus(false)
	if err := p.claimRoots(s, func(id [32]byte) bool { return going[id] }); err != nil {
		return 0, err
	}
	for i, it := range slices.Backward(items) {
		for _, id := range it.chains {
			s.chain(id, owner(i))
		}
	}
	if err := s.contents(ctx); err != nil {
		return 0, err
	}
	sizes, err := s.sizes()
	if err != nil {
		return 0, err
	}
	var freed int64
	for i, it := range items {
		freed += sizes[owner(i)]
		if it.mount != "" || it.shelf != "" {
			freed += it.Size
		}
		if freed >= need {
			return i + 1, nil
		}
	}
	return len(items), nil
}

// claimRoots claims for pinned the chains of the records but for those to skip,
// those that leases hold, and the loose layers that stay.
func (p *pruner) claimRoots(s *census, skip func([32]byte) bool) error {
	for id := range p.heldChains() {
		s.chain(id, pinned)
	}
	for id := range p.keepLoose {
		s.layers[id] = pinned
	}
	return p.db.each([]byte{prefixRecord}, true, func(k, v []byte) error {
		if skip([32]byte(k[1:])) {
			return nil
		}
		r, err := decodeRecord(unstamp(v))
		if err != nil {
			return nil
		}
		for _, o := range r.Outputs {
			s.chain(o, pinned)
		}
		return nil
	})
}

// collect removes the items, and then all that nothing leads to. The order is
// that of the guard's rules: what leads to something goes before it.
func (p *pruner) collect(ctx context.Context, items []item) error {
	for i := range items {
		swept, err := p.collectItem(&items[i])
		if err != nil {
			return err
		}
		if swept {
			p.gone = append(p.gone, items[i].Usage)
		}
	}
	if err := p.sweepLinks(); err != nil {
		return err
	}
	keep := p.newCensus(false)
	if err := p.mark(ctx, keep); err != nil {
		return err
	}
	err := p.sweepKeys(prefixNode, func(id [32]byte) bool {
		_, ok := keep.nodes[short(id[:16])]
		return ok
	})
	if err != nil {
		return err
	}
	// What led to a file should be gone for good before the file is. On a full
	// disk it cannot be, until files are gone: should the process end before that,
	// the records that are left lead to files that are not, and are found out.
	if err := errors.Join(p.db.flush(), p.db.sync()); err != nil && !errors.Is(err, tmpfile.ErrFull) {
		return err
	}
	if err := p.sweepFiles(keep); err != nil {
		return err
	}
	return p.tidy()
}

// collectItem removes a record, a cache mount or a folder. A layer goes with sweepLinks.
func (c *Cache) collectItem(it *item) (bool, error) {
	switch {
	case it.mount != "":
		return c.collectMount(it)
	case it.shelf != "":
		return c.collectShelved(it.shelf)
	case it.layer != nil:
		return !c.guard.Used(&it.id), nil
	}
	return c.guard.Sweep(&it.id, func() error { return c.db.delete(dbKey(prefixRecord, &it.id)) })
}

func (c *Cache) collectMount(it *item) (bool, error) {
	c.leaseMu.Lock()
	defer c.leaseMu.Unlock()
	if c.mounts[it.Description] > 0 {
		return false, nil
	}
	if err := c.discard(it.mount); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	return true, c.db.delete(dbKey(prefixMount, &it.id))
}

// sweepLinks removes the keys of records that are gone, and the chains, states
// and layers that nothing leads to.
func (p *pruner) sweepLinks() error {
	err := p.db.each([]byte{prefixKey}, false, func(k, _ []byte) error {
		id := [32]byte(k[1:])
		_, err := p.guard.Sweep(&id, func() error {
			// A key may lead to another record by now.
			d := decoder{b: unstamp(p.db.get(k))}
			record := d.id()
			if d.end() == nil && p.db.has(dbKey(prefixRecord, &record)) {
				return nil
			}
			return p.db.delete(k)
		})
		return err
	})
	if err != nil {
		return err
	}
	keep := p.newCensus(false)
	if err := p.claimRoots(keep, func([32]byte) bool { return false }); err != nil {
		return err
	}
	keepChain := func(id [32]byte) bool { _, ok := keep.chains[id]; return ok }
	keepLayer := func(id [32]byte) bool { _, ok := keep.layers[id]; return ok }
	err = errors.Join(
		p.sweepKeys(prefixState, keepChain), p.sweepKeys(prefixChain, keepChain), p.sweepKeys(prefixLayer, keepLayer),
		p.forgetDocuments())
	p.chains.forget()
	return err
}

// sweepKeys removes the keys that keep does not want and no open lease used.
func (p *pruner) sweepKeys(prefix byte, keep func(id [32]byte) bool) error {
	return p.db.each([]byte{prefix}, false, func(k, _ []byte) error {
		id := [32]byte(k[1:])
		if keep(id) {
			return nil
		}
		_, err := p.guard.Sweep(&id, func() error {
			if prefix == prefixNode {
				p.nodes.drop(id)
			}
			return p.db.delete(k)
		})
		return err
	})
}

// mark claims what all chains and layers that are left lead to, and the trees
// that builds began with.
func (c *Cache) mark(ctx context.Context, s *census) error {
	for _, prefix := range []byte{prefixChain, prefixLayer} {
		err := c.db.each([]byte{prefix}, false, func(k, _ []byte) error {
			if prefix == prefixChain {
				s.chains[[32]byte(k[1:])] = pinned
			} else {
				s.layers[[32]byte(k[1:])] = pinned
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := s.contents(ctx); err != nil {
		return err
	}
	c.leaseMu.Lock()
	replaced := slices.Clone(c.replaced)
	c.leaseMu.Unlock()
	for _, root := range replaced {
		s.folders[LayerFolder(root)] = pinned
		if err := s.tree(ctx, root, pinned, true); err != nil {
			return err
		}
	}
	return c.claimKept(ctx, s)
}

// sweepFiles removes layers' folders, files and blobs.
func (c *Cache) sweepFiles(keep *census) error {
	folders, err := os.ReadDir(c.Path("layers"))
	if err != nil {
		return err
	}
	for _, f := range folders {
		if _, ok := keep.folders[f.Name()]; ok {
			continue
		}
		_, err := c.guard.Sweep(folderObject(f.Name()), func() error { return c.discard(c.Path("layers", f.Name())) })
		if err != nil {
			return err
		}
	}
	_, err = c.pool.Sweep(func(id pool.FileID) bool {
		_, ok := keep.files[short(id[:16])]
		return ok
	})
	if err != nil {
		return err
	}
	err = c.blobs.Sweep(
		func(d blob.Digest) bool { _, ok := keep.blobs[d]; return ok },
		func(id blob.ChunkID) bool { _, ok := keep.chunks[id]; return ok })
	if err != nil {
		return err
	}
	return c.sweepMounts()
}

// dropBuckets removes the values of all buckets.
func (c *Cache) dropBuckets() error {
	return c.db.each([]byte{prefixBucket}, false, func(k, _ []byte) error { return c.db.delete(k) })
}

// sweepMounts removes folders of cache mounts that the database does not know.
func (c *Cache) sweepMounts() error {
	folders, err := os.ReadDir(c.Path("mounts"))
	if err != nil {
		return err
	}
	known := map[string]bool{}
	c.leaseMu.Lock()
	defer c.leaseMu.Unlock()
	for id := range c.mounts {
		known[filepath.Base(c.mountPath(mountObject(id)))] = true
	}
	err = c.db.each([]byte{prefixMount}, false, func(k, _ []byte) error {
		known[filepath.Base(c.mountPath((*[32]byte)(k[1:])))] = true
		return nil
	})
	for _, f := range folders {
		if err == nil && !known[f.Name()] {
			err = c.discard(c.Path("mounts", f.Name()))
		}
	}
	return err
}

// tidy removes what else is of no use, gives the space of removed values back,
// and waits until all is off the disk.
func (c *Cache) tidy() error {
	aside, err := glob(c.Path(), "db.corrupt-*")
	if err != nil {
		return err
	}
	for _, path := range aside {
		if err := c.discard(path); err != nil {
			return err
		}
	}
	known := map[[16]byte]bool{}
	for _, prefix := range []byte{prefixRecord, prefixMount} {
		err := c.db.each([]byte{prefix}, false, func(k, _ []byte) error {
			known[[16]byte(k[1:17])] = true
			return nil
		})
		if err != nil {
			return err
		}
	}
	err = c.eachShelved(func(_ shelf, name string, _ fs.FileInfo) error {
		known[[16]byte(shelfObject(name)[:16])] = true
		return nil
	})
	if err != nil {
		return err
	}
	c.removals.Wait()
	err = c.used.rewrite(func(id [16]byte) bool { return known[id] })
	if errors.Is(err, tmpfile.ErrFull) {
		err = nil // it stays as it was
	}
	return errors.Join(err, c.db.compact(compactAfter))
}
