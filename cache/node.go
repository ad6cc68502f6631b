package cache

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"sync"

	"github.com/kiln-build/kiln/cache/tree"
)

// nodeCacheBytes bounds the nodes that are kept in memory.
const nodeCacheBytes = 16 << 20

const nodeShards = 16

// nodeCache keeps the nodes that were used last. Each shard has two generations:
// when the young one is full it becomes the old one, and what was the old one
// goes. That costs no list to be kept in order, and less than a tenth of a
// percent of hits against one.
type nodeCache struct {
	shards [nodeShards]struct {
		sync.Mutex
		young, old map[tree.Addr][]byte
		size       int // of young
	}
}

const nodeOverhead = 96 // of a map's slot and a slice's header

func (c *nodeCache) get(a tree.Addr) []byte {
	s := &c.shards[a[0]%nodeShards]
	s.Lock()
	defer s.Unlock()
	if b, ok := s.young[a]; ok {
		return b
	}
	b, ok := s.old[a]
	if ok {
		c.add(int(a[0]%nodeShards), a, b)
	}
	return b
}

func (c *nodeCache) put(a tree.Addr, b []byte) {
	s := &c.shards[a[0]%nodeShards]
	s.Lock()
	defer s.Unlock()
	c.add(int(a[0]%nodeShards), a, b)
}

// add adds to the young generation of shard n, whose lock is held.
func (c *nodeCache) add(n int, a tree.Addr, b []byte) {
	s := &c.shards[n]
	if _, ok := s.young[a]; ok {
		return
	}
	if s.young == nil || s.size > nodeCacheBytes/nodeShards/2 {
		s.old, s.young, s.size = s.young, make(map[tree.Addr][]byte), 0
	}
	s.young[a] = b
	s.size += len(b) + nodeOverhead
}

func (c *nodeCache) drop(a tree.Addr) {
	s := &c.shards[a[0]%nodeShards]
	s.Lock()
	defer s.Unlock()
	if b, ok := s.young[a]; ok {
		s.size -= len(b) + nodeOverhead
		delete(s.young, a)
	}
	delete(s.old, a)
}

func (c *nodeCache) clear() {
	for i := range c.shards {
		s := &c.shards[i]
		s.Lock()
		s.young, s.old, s.size = nil, nil, 0
		s.Unlock()
	}
}

// Node gives a node of a tree; it makes a Cache a tree.Nodes. One that is not
// here, or whose bytes are damaged, wraps fs.ErrNotExist.
func (c *Cache) Node(a tree.Addr) ([]byte, error) {
	if b := c.nodes.get(a); b != nil {
		return b, nil
	}
	// Inside Use, so that a node that is being swept does not get back into memory.
	defer c.guard.Use((*[32]byte)(&a)).RUnlock()
	b := c.db.get(dbKey(prefixNode, (*[32]byte)(&a)))
	if b == nil {
		return nil, fmt.Errorf("node %x of a tree: %w", a[:6], fs.ErrNotExist)
	}
	if sha256.Sum256(b) != a {
		// PutNode must not find it here.
		if err := c.db.delete(dbKey(prefixNode, (*[32]byte)(&a))); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("node %x of a tree is damaged: %w", a[:6], fs.ErrNotExist)
	}
	c.nodes.put(a, b)
	return b, nil
}

// PutNode stores a node of a tree, unless it is known to be stored.
func (c *Cache) PutNode(a tree.Addr, node []byte) error {
	defer c.guard.Use((*[32]byte)(&a)).RUnlock()
	if c.nodes.get(a) != nil {
		return nil
	}
	key := dbKey(prefixNode, (*[32]byte)(&a))
	if !c.db.has(key) {
		if err := c.db.put(key, node); err != nil {
			return err
		}
	}
	c.nodes.put(a, node)
	return nil
}
