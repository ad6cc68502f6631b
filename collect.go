package kiln

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
)

// collector keeps the state folder within its policies. After a build, when its
// result is out, it compares what the folder is known to take with the bounds,
// which costs some microseconds, and only where it may take more it looks and
// collects, in the background.
type collector struct {
	engine *Engine

	mu      sync.Mutex // guards what follows
	running bool
	again   bool      // a build has ended meanwhile
	rest    time.Time // nothing is collected before
	// later is for a build that ended while the collector rested; nil is none.
	later  *time.Timer
	closed bool
	stop   context.CancelFunc
	group  sync.WaitGroup

	room sync.Mutex // held by who makes room for a step
}

const (
	// remeasure is how long a folder's size is taken from what the disk had less and
	// less of: what others removed from the disk hides what was written.
	remeasure = 24 * time.Hour
	// ageing is how long what has got too old may stay: what was measured more
	// lately was looked through for it then.
	ageing = time.Hour
	// restShare is the share of the time that collecting takes at most, where a
	// collection did not reach its bounds because builds hold what is there.
	restShare = 10
)

// after is called when a build has ended and lets go what it held.
func (c *collector) after() {
	if c.engine.cache.Wrote() {
		c.begin()
	}
}

// begin collects in the background if a policy may be exceeded: at once, or, where it
// goes on or rests, after that.
func (c *collector) begin() {
	over, err := c.over()
	if err != nil || len(over) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := c.rest.Sub(c.engine.clock())
	switch {
	case c.closed:
	case c.running:
		c.again = true
	case wait <= 0:
		ctx, cancel := context.WithCancel(context.Background())
		c.running, c.stop = true, cancel
		c.group.Go(func() { c.run(ctx, over) })
	case c.later == nil:
		c.later = time.AfterFunc(wait, c.rested)
	}
}

// rested looks again for a build that ended while the collector rested: there may be
// no other for long.
func (c *collector) rested() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.later = nil
	if !c.closed {
		c.group.Go(c.begin)
	}
}

// over gives what the policies ask for whose bounds may be exceeded.
func (c *collector) over() ([]cache.PruneOptions, error) {
	e := c.engine
	if gc := e.config.Worker.OCI.GC; gc != nil && !*gc {
		return nil, nil
	}
	space, err := e.cache.Space()
	if err != nil {
		return nil, err
	}
	size, measured, err := e.cache.Size()
	if err != nil {
		return nil, err
	}
	age := e.clock().Sub(measured)
	var over []cache.PruneOptions
	for _, p := range e.config.Worker.OCI.policies(space.Total) {
		o, err := p.options(space.Total)
		if err != nil {
			return nil, err
		}
		limit := o.Limit(size, space.Free)
		stale := age >= remeasure && size > limit/2
		if o.KeepDuration > 0 && age < ageing || o.Bounded() && size <= limit && !stale {
			continue
		}
		over = append(over, o)
	}
	return over, nil
}

// Policies gives the rules by which the state folder is collected, in their order,
// with shares of the disk as bytes.
func (e *Engine) Policies() ([]GCPolicy, error) {
	space, err := e.cache.Space()
	if err != nil {
		return nil, err
	}
	list := slices.Clone(e.config.Worker.OCI.policies(space.Total))
	for i := range list {
		p := &list[i]
		p.ReservedSpace = DiskSpace{Bytes: cmp.Or(p.ReservedSpace, p.KeepBytes).Of(space.Total)}
		p.KeepBytes = DiskSpace{}
		p.MaxUsedSpace = DiskSpace{Bytes: p.MaxUsedSpace.Of(space.Total)}
		p.MinFreeSpace = DiskSpace{Bytes: p.MinFreeSpace.Of(space.Total)}
	}
	return list, nil
}

// HoldFolder is Cache.HoldFolder.
func (e *Engine) HoldFolder(elem ...string) (release func()) { return e.cache.HoldFolder(elem...) }

// run collects until no policy is exceeded, or nothing more can be done about it.
func (c *collector) run(ctx context.Context, over []cache.PruneOptions) {
	start := c.engine.clock()
	for {
		err := c.follow(ctx, over)
		if err != nil && ctx.Err() == nil {
			c.engine.warn(fmt.Sprintf("collecting what the state folder need not hold: %v", err))
		}
		left, lerr := c.over()
		c.mu.Lock()
		if !c.again || len(left) == 0 || err != nil || lerr != nil || ctx.Err() != nil {
			c.running = false
			now := c.engine.clock()
			if c.rest = now; len(left) > 0 {
				c.rest = now.Add(restShare * now.Sub(start))
			}
			c.stop()
			c.mu.Unlock()
			return
		}
		c.again, over = false, left
		c.mu.Unlock()
	}
}

// follow collects by policies, in their order.
func (c *collector) follow(ctx context.Context, policies []cache.PruneOptions) error {
	for _, o := range policies {
		// A little more than what must go does, or else the next build would have to
		// collect again.
		o.MaxUsed -= o.MaxUsed / 16
		o.MinFree += o.MinFree / 16
		if _, err := c.engine.cache.Prune(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// close waits for a collection that is going on. None begins any more.
func (c *collector) close() {
	c.mu.Lock()
	if c.closed = true; c.later != nil {
		c.later.Stop()
	}
	c.mu.Unlock()
	c.group.Wait()
}

// stepRoom gives how much is to be free on a disk of that size before a step
// begins: a fiftieth, from 64 MB, below which nothing could be recorded, to 1 GB;
// but of small disks not more than a quarter.
func stepRoom(disk int64) int64 { return min(max(disk/50, 64<<20), 1<<30, disk/4) }

// makeRoom collects, longest unused first, until a step fits, whatever the policies
// reserve: a build that fails is worse than one that finds less cached. It gives
// whether anything went.
func (c *collector) makeRoom(ctx context.Context, need int64) (bool, error) {
	c.room.Lock()
	defer c.room.Unlock()
	gone, err := c.engine.cache.Prune(ctx, cache.PruneOptions{MinFree: need})
	return len(gone) > 0, err
}

// roomy is a worker that sees to it that there is room on the disk.
type roomy struct {
	*worker.Worker
	*collector
}

// Run runs a vertex once there is room for what it makes. One that found the disk
// full is run again if room could be made.
func (r roomy) Run(ctx context.Context, job *solver.Job) ([]cache.ChainID, error) {
	if gc := r.engine.config.Worker.OCI.GC; gc != nil && !*gc {
		return r.Worker.Run(ctx, job)
	}
	space, err := r.engine.cache.Space()
	if err == nil && space.Free < stepRoom(space.Total) && r.due() {
		if _, err := r.makeRoom(ctx, stepRoom(space.Total)); err != nil {
			job.Warn(fmt.Sprintf("the disk of the state folder is nearly full: %v", err))
		}
	}
	chains, err := r.Worker.Run(ctx, job)
	if !errors.Is(err, cache.ErrFull) || ctx.Err() != nil {
		return chains, err
	}
	if made, merr := r.makeRoom(ctx, 2*stepRoom(space.Total)); !made || merr != nil {
		return nil, err
	}
	return r.Worker.Run(ctx, job)
}

// due reports whether it is worth trying to make room: not where that was just done.
func (c *collector) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.engine.clock()
	if now.Before(c.rest) {
		return false
	}
	c.rest = now.Add(time.Second)
	return true
}
