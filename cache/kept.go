package cache

import (
	"context"

	"github.com/kiln-build/kiln/cache/tree"
)

// keptTrees is the bucket of the roots of trees whose nodes are kept. It goes with
// the other buckets where everything goes, and with it what it keeps.
const keptTrees = "kept tree"

// KeepTree keeps the nodes of a tree from being collected, and not its files, so
// that it can be compared with others: until ForgetTree, or until a Prune drops
// what parts of the worker remember.
func (c *Cache) KeepTree(name string, root tree.Entry) error {
	return c.Bucket(keptTrees).Put([]byte(name), root.AppendEncode(nil))
}

// ForgetTree ends what KeepTree began.
func (c *Cache) ForgetTree(name string) error { return c.Bucket(keptTrees).Delete([]byte(name)) }

// claimKept claims the nodes of kept trees. It comes after all else is claimed:
// a node that somebody has was claimed with all that is below it.
func (c *Cache) claimKept(ctx context.Context, s *census) error {
	var stack []tree.Addr
	err := c.Bucket(keptTrees).Each(nil, func(_, v []byte) error {
		if root, err := tree.DecodeEntry(v); err == nil && root.Children.Addr != (tree.Addr{}) {
			stack = append(stack, root.Children.Addr)
		}
		return nil
	})
	for err == nil && len(stack) > 0 {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if _, _, changed := claim(s, s.nodes, short(at[:16]), pinned); !changed {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for ref, err := range tree.Refs(c.db.get(dbKey(prefixNode, (*[32]byte)(&at)))) {
			if err != nil {
				break // a node that is gone: there is nothing to keep
			}
			if ref.Addr != (tree.Addr{}) {
				stack = append(stack, ref.Addr)
			}
		}
	}
	return err
}

// KeptTree gives a tree that KeepTree keeps.
func (c *Cache) KeptTree(name string) (tree.Entry, bool) {
	v, ok := c.Bucket(keptTrees).Get([]byte(name))
	if !ok {
		return tree.Entry{}, false
	}
	root, err := tree.DecodeEntry(v)
	return root, err == nil
}

// KeptTrees gives the names of the trees that KeepTree keeps.
func (c *Cache) KeptTrees() (names []string, err error) {
	err = c.Bucket(keptTrees).Each(nil, func(k, _ []byte) error {
		names = append(names, string(k))
		return nil
	})
	return names, err
}
