// Package cache is the state folder: records of what was built, and the trees,
// chains, layers, blobs and files that they lead to.
//
// A Record is found under Keys and names Chains. A chain is a list of layers,
// each link of it stored under its ChainID. A Layer leads to a tree (package
// tree), whose nodes the cache stores, whose files lie in the pool (package
// pool), and whose compressed forms lie among the blobs (package blob). Records,
// chains, layers and nodes are in a database; docs/formats.md draws it all.
//
// A cache can only miss. What is not here, damaged, or not known to have reached
// the disk before the machine crashed (see epoch.go) makes a lookup miss, never
// a build fail.
//
// One process at a time owns a state folder. Within it everything is safe for
// concurrent use, Prune while builds run too: what is found or put under an open
// Lease is kept. The locks are taken in this order: Cache.pruneMu, Cache.layerMu,
// a shard of the guard, Cache.leaseMu, epochs.closing, epochs.stamp,
// database.flushMu, database.life, database.mu. sizes.mu comes before the database's.
package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/internal/guard"
	"github.com/kiln-build/kiln/cache/internal/placement"
	"github.com/kiln-build/kiln/cache/pool"
	"github.com/kiln-build/kiln/cache/tree"
	"golang.org/x/sync/singleflight"
)

// Version is the format of state folders that this package reads and writes. It
// goes up with every change that older code would misread.
const Version = 1

// Options are the settings of a cache; the zero value works.
type Options struct {
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
	// Waiting is called when another process holds the state folder and Open
	// waits for it; nil says nothing.
	Waiting func(pid int, command string)
	// Warn takes what went wrong and costs cached results only; nil says nothing.
	Warn func(error)
	// SingleID is pool.Options.SingleID.
	SingleID bool
	// LazyClose makes Close return before what was written is durable. Nothing is
	// lost by that unless the machine stops within the half minute in which the
	// kernel writes it to the disk by itself, or is started anew before the next
	// process on this folder has closed the epoch: then the results written since
	// are misses.
	LazyClose bool

	bootID   string // for tests; empty is the machine's
	noRecent bool   // for tests: Badger is written to at once
}

// Cache is an open state folder. It is safe for concurrent use.
type Cache struct {
	dir   string
	opt   Options
	lock  *os.File
	root  *os.File
	guard *guard.Guard
	db    *database
	pool  *pool.Pool
	blobs *blob.Store
	nodes nodeCache
	used  usedLog
	epoch epochs
	size  sizes
	done  chan struct{}
	group sync.WaitGroup // of what runs until done

	removals sync.WaitGroup // of what discard moved away

	layerMu sync.Mutex // serialises changes of layers

	chains verified
	merged singleflight.Group

	leaseMu  sync.Mutex // guards what follows
	leases   map[*Lease]struct{}
	replaced []tree.Entry   // roots that layers had since the oldest lease began
	mounts   map[string]int // cache mounts in use
	shelved  map[string]int // folders of shelves in use

	pruneMu sync.Mutex // one Prune or Usage at a time
}

var _ tree.Nodes = (*Cache)(nil)

// Open opens or makes the state folder dir. It waits while another process owns it.
func Open(ctx context.Context, dir string, o Options) (*Cache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the state folder: %w", err)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	c := &Cache{
		dir: dir, opt: o, guard: new(guard.Guard), done: make(chan struct{}),
		leases: map[*Lease]struct{}{}, mounts: map[string]int{}, shelved: map[string]int{},
	}
	if err := c.open(ctx); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w (choose another folder with --root or KILN_ROOT)", err)
		}
		return nil, fmt.Errorf("opening the state folder %s: %w", dir, err)
	}
	return c, nil
}

func (c *Cache) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	boot, err := c.bootID()
	if err != nil {
		return err
	}
	lock, unclean, err := takeLock(ctx, c.dir, boot, c.opt.Waiting)
	if err != nil {
		return err
	}
	c.lock = lock
	defer func() {
		if err != nil {
			c.abandon()
		}
	}()
	fresh, err := checkVersion(c.dir)
	if err != nil {
		return err
	}
	if c.root, err = os.Open(c.dir); err != nil {
		return err
	}
	for _, d := range []string{"layers", "mounts"} {
		if err := os.Mkdir(c.Path(d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := c.emptyTemp(); err != nil {
		return err
	}
	if c.pool, err = pool.Open(c.Path("files"), pool.Options{SingleID: c.opt.SingleID, Guard: c.guard}); err != nil {
		return err
	}
	if c.blobs, err = blob.OpenStore(c.dir, blob.Options{Guard: c.guard}); err != nil {
		return err
	}
	if c.db, err = openDatabase(c.Path("db"), c.guard, c.opt.Clock(), c.opt.Warn); err != nil {
		return err
	}
	if c.opt.noRecent {
		c.db.recentMax = 0
	}
	if err := c.beginSizes(fresh); err != nil {
		return err
	}
	c.used.path = c.Path("used")
	if err := c.beginEpochs(boot, unclean); err != nil {
		return err
	}
	c.group.Go(c.tend)
	return nil
}

// abandon lets go what a failed open had taken.
func (c *Cache) abandon() {
	if c.db != nil {
		_ = c.db.close()
	}
	if c.blobs != nil {
		_ = c.blobs.Close()
	}
	if c.pool != nil {
		_ = c.pool.Close()
	}
	if c.root != nil {
		_ = c.root.Close()
	}
	c.removals.Wait()
	_ = c.lock.Close()
}

// Close makes what was written durable and lets the folder go. Nothing of the
// Cache may be in use any more.
func (c *Cache) Close() error {
	close(c.done)
	c.group.Wait()
	c.removals.Wait()
	errs := []error{c.used.flush(), c.endSizes()}
	durable := true
	if c.opt.LazyClose {
		durable = !c.undurable()
	} else if c.undurable() {
		err := c.closeEpoch()
		durable = err == nil
		errs = append(errs, err)
	}
	errs = append(errs, c.db.close(), c.blobs.Close(), c.pool.Close(), c.root.Close())
	if durable {
		// An empty lock file says that no epoch is open.
		errs = append(errs, c.lock.Truncate(0))
	}
	errs = append(errs, c.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("closing the state folder %s: %w", c.dir, err)
	}
	return nil
}

// Path gives the path of a file or folder of the state folder, Path("layers") for one.
func (c *Cache) Path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// Pool is the folder of files that layers link to.
func (c *Cache) Pool() *pool.Pool { return c.pool }

// Blobs are the manifests, configs and compressed layers.
func (c *Cache) Blobs() *blob.Store { return c.blobs }

// checkVersion refuses folders of other formats, and marks a new one as ours.
func checkVersion(dir string) (fresh bool, err error) {
	path := filepath.Join(dir, "version")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := checkForeign(dir); err != nil {
			return false, err
		}
		return true, writeVersion(path)
	}
	if err != nil {
		return false, err
	}
	if len(b) == 0 {
		// The machine crashed before the file's bytes reached the disk.
		return false, writeVersion(path)
	}
	n, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(string(b)), "kiln state "))
	switch {
	case err != nil || n < 1:
		return false, fmt.Errorf("its file version says %.40q, which is no format of kiln's; remove the folder or choose another", b)
	case n > Version:
		return false, fmt.Errorf("it has format %d and this kiln knows formats up to %d: use a newer kiln, or another folder", n, Version)
	}
	return false, nil
}

func writeVersion(path string) error {
	temp := path + ".new"
	if err := os.WriteFile(temp, []byte("kiln state "+strconv.Itoa(Version)+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// checkForeign keeps a folder that holds other things from being taken for an empty one.
func checkForeign(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		switch n.Name() {
		case "lock", "version.new", "lost+found", "daemon.log":
			continue // a daemon's log is made before it opens the folder
		case "tmp":
			// Whoever sets a daemon up may have made it already, to be its TMPDIR.
			if inside, err := os.ReadDir(filepath.Join(dir, "tmp")); err == nil && len(inside) == 0 {
				continue
			}
		}
		return fmt.Errorf("it is not empty (%q is in it) and is no state folder of kiln's: choose another", n.Name())
	}
	return nil
}

// emptyTemp empties the folder tmp. What is in it may be large: it is moved away
// and removed in the background.
func (c *Cache) emptyTemp() error {
	tmp := c.Path("tmp")
	trash, err := glob(c.Path(), "trash-*")
	if err != nil {
		return err
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		if err := c.discard(tmp); err != nil {
			return err
		}
	}
	for _, t := range trash {
		c.removals.Go(func() { c.remove(t) })
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	dir, err := os.Open(tmp)
	if err != nil {
		return err
	}
	defer dir.Close()
	placement.Spread(dir) // the folders of layers and of steps begin here
	return nil
}

// discard moves a file or folder away, to be removed in the background.
func (c *Cache) discard(path string) error {
	trash := c.Path("trash-" + rand.Text())
	if err := os.Rename(path, trash); err != nil {
		return err
	}
	c.removals.Go(func() { c.remove(trash) })
	return nil
}

func (c *Cache) remove(path string) {
	if err := RemoveAll(path); err != nil {
		c.opt.Warn(fmt.Errorf("removing what is not needed any more: %w", err))
	}
}
