package cache

import (
	"cmp"
	"context"
	"maps"
	"math"
	"os"
	"slices"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/pool"
	"github.com/kiln-build/kiln/cache/tree"
)

// owner is who has an object: an index into a list of what can be pruned.
type owner int32

const (
	nobody owner = -1 - iota
	// several have it; only a census for Usage says so.
	several
	// pinned is what stays whatever is pruned.
	pinned
)

// short is the first half of an object's name. Half of a sha256 is enough to
// tell objects apart, and a census of millions of them is held in memory.
type short [16]byte

// census finds out who has what, from chains down to files. Objects are claimed
// by walking from an owner's chains. With exclusive set an object that two
// owners have is several's; otherwise the first to claim an object keeps it, and
// then every object is looked at once.
//
// A walk stops at an object whose owner does not change by the claim: what is
// below it was claimed with it. So no object is walked through more than twice.
type census struct {
	c         *Cache
	exclusive bool

	chains map[ChainID]owner
	layers map[LayerID]owner
	nodes  map[short]owner
	files  map[short]owner
	blobs  map[blob.Digest]owner
	chunks map[blob.ChunkID]owner

	folders map[string]owner // by name, those that a layer's tree has
	dirs    map[owner]int64  // directories in trees of layers
	bytes   map[owner]int64  // of nodes, in the database
}

func (c *Cache) newCensus(exclusive bool) *census {
	return &census{
		c: c, exclusive: exclusive,
		chains: map[ChainID]owner{}, layers: map[LayerID]owner{}, nodes: map[short]owner{},
		files: map[short]owner{}, blobs: map[blob.Digest]owner{}, chunks: map[blob.ChunkID]owner{},
		folders: map[string]owner{}, dirs: map[owner]int64{}, bytes: map[owner]int64{},
	}
}

// claim claims the object called k for o; changed says whether its owner changed
// by that, and now who it is.
func claim[K comparable](s *census, m map[K]owner, k K, o owner) (old, now owner, changed bool) {
	old, ok := m[k]
	switch {
	case !ok:
		m[k] = o
		return nobody, o, true
	case old == o || old == several || !s.exclusive:
		return old, old, false
	}
	m[k] = several
	return old, several, true
}

// chain claims a chain's links and layers, not what the layers lead to.
func (s *census) chain(id ChainID, o owner) {
	for id != (ChainID{}) {
		_, now, changed := claim(s, s.chains, id, o)
		if !changed {
			return
		}
		o = now
		ch, err := s.c.chain(id)
		if err != nil {
			return
		}
		claim(s, s.layers, ch.Layer, o)
		id = ch.Parent
	}
}

// contents claims what the claimed chains and layers lead to: for pinned first,
// then for the owners from the last to the first.
func (s *census) contents(ctx context.Context) error {
	for _, id := range byRank(s.layers) {
		l, err := s.c.layer(id)
		if err != nil {
			continue
		}
		if err := s.layer(ctx, l, s.layers[id]); err != nil {
			return err
		}
	}
	if err := s.documents(); err != nil {
		return err
	}
	for _, id := range byRank(s.chains) {
		d := decoder{b: unstamp(s.c.db.get(dbKey(prefixState, (*[32]byte)(&id))))}
		if e := d.entry(); d.end() == nil {
			if err := s.tree(ctx, e, s.chains[id], false); err != nil {
				return err
			}
		}
	}
	return nil
}

func byRank[K comparable](m map[K]owner) []K {
	rank := func(k K) owner {
		if o := m[k]; o != pinned {
			return o
		}
		return math.MaxInt32
	}
	return slices.SortedFunc(maps.Keys(m), func(a, b K) int { return cmp.Compare(rank(b), rank(a)) })
}

func (s *census) layer(ctx context.Context, l Layer, o owner) error {
	for _, b := range l.Blobs {
		claim(s, s.blobs, b.Digest, o)
		for _, id := range s.c.blobs.Chunks(b.Digest) {
			claim(s, s.chunks, id, o)
		}
	}
	if l.Root.Kind == tree.None {
		return nil
	}
	name := LayerFolder(l.Root)
	claim(s, s.folders, name, o)
	_, err := os.Lstat(s.c.Path("layers", name))
	return s.tree(ctx, l.Root, o, err == nil)
}

// tree claims the nodes and files of a tree. A node that is not here ends the
// walk there: its layer is found to be gone when somebody reads it. folder says
// that the tree has a folder on the disk, whose directories count.
func (s *census) tree(ctx context.Context, root tree.Entry, o owner, folder bool) error {
	type step struct {
		addr tree.Addr
		o    owner
	}
	if root.Kind != tree.Dir || root.Children.Addr == (tree.Addr{}) {
		return nil
	}
	for stack := []step{{root.Children.Addr, o}}; len(stack) > 0; {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		old, now, changed := claim(s, s.nodes, short(at.addr[:16]), at.o)
		if !changed {
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		b := s.c.nodes.get(at.addr)
		if b == nil {
			b = s.c.db.get(dbKey(prefixNode, (*[32]byte)(&at.addr)))
		}
		s.bytes[old] -= int64(len(b))
		s.bytes[now] += int64(len(b))
		for ref, err := range tree.Refs(b) {
			if err != nil {
				break
			}
			if ref.Addr != (tree.Addr{}) {
				stack = append(stack, step{ref.Addr, now})
			}
		}
		for e, err := range tree.NodeEntries(b) {
			if err != nil {
				break
			}
			switch e.Kind {
			case tree.File:
				id := pool.IDOf(e)
				claim(s, s.files, short(id[:16]), now)
			case tree.Dir:
				if folder {
					s.dirs[old]--
					s.dirs[now]++
				}
			}
		}
	}
	return nil
}

// dirSize is about what a directory of a layer's folder takes.
const dirSize = 4096

// sizes gives what each owner has on the disk.
func (s *census) sizes() (map[owner]int64, error) {
	sizes := map[owner]int64{}
	err := s.c.pool.Each(func(id pool.FileID, bytes int64) error {
		if o, ok := s.files[short(id[:16])]; ok {
			sizes[o] += bytes
		}
		return nil
	})
	for d, o := range s.blobs {
		sizes[o] += s.c.blobs.Size(d)
	}
	for id, o := range s.chunks {
		sizes[o] += s.c.blobs.ChunkSize(id)
	}
	for o, n := range s.bytes {
		sizes[o] += n + dirSize*s.dirs[o]
	}
	return sizes, err
}
