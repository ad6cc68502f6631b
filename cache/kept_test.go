package cache

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
)

// whole reads all nodes of a tree.
func whole(c *Cache, root tree.Entry) error {
	c.nodes.clear()
	return tree.Walk(c, root, func(string, tree.Entry) error { return nil })
}

func TestKeptTreesKeepTheirNodes(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	files := map[string]string{}
	for i := range 300 {
		files[fmt.Sprintf("dir%d/file%d", i%7, i)] = fmt.Sprint(i)
	}
	root := putTree(t, c, files)
	if err := c.KeepTree("ours", root); err != nil {
		t.Fatal(err)
	}
	prune(t, c, PruneOptions{})
	if err := whole(c, root); err != nil {
		t.Errorf("a kept tree was collected: %v", err)
	}
	var pooled int
	err := tree.Walk(c, root, func(_ string, e tree.Entry) error {
		if e.Kind == tree.File && c.Pool().Has(e) {
			pooled++
		}
		return nil
	})
	if err != nil || pooled != 0 {
		t.Errorf("%d files of a kept tree were kept (%v), want none", pooled, err)
	}
	if got, ok := c.KeptTree("ours"); !ok || !got.Equal(root) {
		t.Errorf("KeptTree gave %+v, %v, want %+v", got, ok, root)
	}
	if names, err := c.KeptTrees(); err != nil || !slices.Equal(names, []string{"ours"}) {
		t.Errorf("KeptTrees gave %q, %v", names, err)
	}

	if err := c.ForgetTree("ours"); err != nil {
		t.Fatal(err)
	}
	prune(t, c, PruneOptions{})
	if whole(c, root) == nil {
		t.Error("the nodes of a tree that is kept no longer are still here")
	}
}

func TestLimitTakesKeptTrees(t *testing.T) {
	c := open(t, t.TempDir(), Options{})
	defer closeCache(t, c)
	root := putTree(t, c, map[string]string{"a/b": "c"})
	if err := c.KeepTree("ours", root); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Prune(context.Background(), PruneOptions{MaxUsed: 1}); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.KeptTree("ours"); ok || whole(c, root) == nil {
		t.Error("a limit that cannot be kept otherwise left a kept tree")
	}
}
