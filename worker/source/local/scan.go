package local

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/worker/internal/dirfd"
	"github.com/kiln-build/kiln/worker/layer"
	"golang.org/x/sys/unix"
)

// scan is one walk over a folder.
type scan struct {
	ctx      context.Context
	nodes    tree.Nodes
	stats    Bucket
	now      int64 // when the scan began, nanoseconds since 1970
	matchers *matchers
	// slots bounds the goroutines beside the first one. Who finds no slot free
	// does the work itself, so that no one ever waits for a slot.
	slots chan struct{}
}

// scanned is what became of a directory.
type scanned struct {
	ref tree.Ref
	any bool // something below it is included
	// xattrs are the directory's own.
	xattrs []tree.Xattr
}

// item is a name in a directory that is being scanned.
type item struct {
	entry  tree.Entry
	stat   unix.Stat_t
	known  *record // what is known, or becomes known, of a name that is no directory
	stale  bool    // known has to be made
	keep   bool
	isDir  bool
	match  match
	failed error
}

// room is where a directory's names are held while it is scanned. It is used again
// for others: of the 1.7 KB that a scan allocated for a file, most was this, and
// memory that is touched for the first time costs more than the system call that
// fills it.
type room struct {
	records []record
	items   []item
	entries []tree.Entry
}

var rooms = sync.Pool{New: func() any { return new(room) }}

// maxRoom is for how many names a room is kept. Few directories have more.
const maxRoom = 1024

func (r *room) free() {
	if cap(r.records) > maxRoom || cap(r.items) > maxRoom || cap(r.entries) > maxRoom {
		return
	}
	clear(r.records)
	clear(r.items)
	clear(r.entries)
	rooms.Put(r)
}

// dir scans the open directory fd, whose path in the folder is rel.
func (sc *scan) dir(fd int, st unix.Stat_t, rel string, in match, included bool) (scanned, error) {
	if err := sc.ctx.Err(); err != nil {
		return scanned{}, context.Cause(sc.ctx)
	}
	names, err := dirfd.Names(fd)
	if err != nil {
		if !included && errors.Is(err, unix.EACCES) {
			return scanned{}, nil
		}
		return scanned{}, fmt.Errorf("reading %q: %w", rel, err)
	}
	held := rooms.Get().(*room)
	defer held.free()
	old := loadStats(sc.stats, st, held.records[:0])
	held.records = old.records
	items, carried, err := sc.judge(fd, rel, names, in, old, slices.Grow(held.items[:0], len(names)))
	held.items = items
	if err != nil {
		return scanned{}, err
	}
	if err := sc.settle(fd, rel, items); err != nil {
		return scanned{}, err
	}
	sc.save(st, old, items, carried)
	out := scanned{}
	entries := slices.Grow(held.entries[:0], len(items))
	for i := range items {
		if items[i].keep {
			entries = append(entries, items[i].entry)
		}
	}
	held.entries = entries
	out.any = len(entries) > 0
	if included || out.any {
		if out.xattrs, err = dirfd.Xattrs(fd, "", layer.KeepXattr); err != nil {
			return out, fmt.Errorf("reading the attributes of %q: %w", rel, err)
		}
	}
	out.ref, err = tree.PutDir(sc.nodes, entries)
	return out, err
}

// judge stats every name that the patterns do not leave out, and finds what is
// known of it. The items are appended to the empty slice items; carried are the
// records of names that are left out this time.
func (sc *scan) judge(fd int, rel string, names []dirfd.Name, in match, old *dirStats, items []item) (_ []item, carried []record, err error) {
	p := sc.matchers.borrow()
	defer sc.matchers.give(p)
	taken := 0
	for _, n := range names {
		known := old.find(n.Name)
		items = append(items[:taken], item{})
		it := &items[taken]
		statted := n.Kind == unix.DT_UNKNOWN
		if statted {
			if err := dirfd.Stat(fd, n.Name, &it.stat); err != nil {
				if notThere(err) {
					continue
				}
				return nil, nil, fmt.Errorf("reading %q: %w", path.Join(rel, n.Name), err)
			}
			n.Kind = dirfd.KindOf(&it.stat)
		}
		it.isDir = n.Kind == unix.DT_DIR
		v, m := take, match{}
		if p.any() {
			if v, m, err = sc.matchers.judge(p, path.Join(rel, n.Name), it.isDir, in); err != nil {
				return nil, nil, err
			}
		}
		if v == leave || n.Kind == unix.DT_SOCK {
			if known != nil {
				carried = append(carried, *known)
			}
			continue
		}
		if !statted {
			if err := dirfd.Stat(fd, n.Name, &it.stat); err != nil {
				if notThere(err) {
					continue
				}
				return nil, nil, fmt.Errorf("reading %q: %w", path.Join(rel, n.Name), err)
			}
		}
		it.match, it.keep = m, v == take
		it.entry = entryOf(rel, n.Name, &it.stat)
		it.isDir = it.entry.Kind == tree.Dir
		if !it.isDir {
			it.known, it.stale = known, known == nil || !known.fits(n.Name, &it.stat)
		}
		taken++
	}
	return items[:taken], carried, nil
}

// entryOf makes an entry of a name, but for what only reading it tells.
func entryOf(rel, name string, st *unix.Stat_t) tree.Entry {
	e := tree.Entry{Name: name, Mode: st.Mode & 0o7777, MTime: st.Mtim.Nano()}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Kind, e.Size = tree.File, st.Size
		e.Tag = tagOf(rel, name, st)
	case unix.S_IFDIR:
		e.Kind = tree.Dir
	case unix.S_IFLNK:
		e.Kind, e.Mode = tree.Symlink, 0o777
	case unix.S_IFIFO:
		e.Kind = tree.Fifo
	case unix.S_IFCHR:
		e.Kind, e.Dev = tree.CharDev, st.Rdev
	case unix.S_IFBLK:
		e.Kind, e.Dev = tree.BlockDev, st.Rdev
	case unix.S_IFSOCK:
		e.Kind = tree.Socket
	}
	return e
}

// settle finds out what judge left open: it reads the names that are not known,
// and scans the subdirectories, as much of it at once as there are slots.
func (sc *scan) settle(fd int, rel string, items []item) error {
	var wg sync.WaitGroup
	for i := range items {
		it := &items[i]
		if !it.isDir && !it.stale {
			it.complete()
			continue
		}
		select {
		case sc.slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-sc.slots }()
				it.failed = sc.one(fd, rel, it)
			})
			continue
		default:
		}
		if it.failed = sc.one(fd, rel, it); it.failed != nil {
			break
		}
	}
	wg.Wait()
	for i := range items {
		if items[i].failed != nil {
			return items[i].failed
		}
	}
	return nil
}

// one reads a name that is not known, or scans a subdirectory.
func (sc *scan) one(fd int, rel string, it *item) error {
	if it.isDir {
		return sc.sub(fd, rel, it)
	}
	if err := sc.ctx.Err(); err != nil {
		return context.Cause(sc.ctx)
	}
	if err := it.read(fd); err != nil {
		if notThere(err) {
			it.keep = false // it went away since the directory was listed
			return nil
		}
		return fmt.Errorf("reading %q: %w", path.Join(rel, it.entry.Name), err)
	}
	it.complete()
	return nil
}

func (sc *scan) sub(fd int, rel string, it *item) error {
	name := path.Join(rel, it.entry.Name)
	sub, err := dirfd.Dir(fd, it.entry.Name)
	if err != nil {
		if notThere(err) || !it.keep && errors.Is(err, unix.EACCES) {
			it.keep = false
			return nil
		}
		return fmt.Errorf("opening %q: %w", name, err)
	}
	defer unix.Close(sub)
	out, err := sc.dir(sub, it.stat, name, it.match, it.keep)
	if err != nil {
		return err
	}
	it.entry.Children, it.entry.Xattrs = out.ref, out.xattrs
	it.keep = it.keep || out.any
	return nil
}

// complete takes over what is known of the name.
func (it *item) complete() {
	it.entry.Xattrs = it.known.xattrs
	switch it.entry.Kind {
	case tree.File:
		it.entry.Content = it.known.content
	case tree.Symlink:
		it.entry.Target = it.known.target
	case tree.Socket:
		it.keep = false
	}
}
