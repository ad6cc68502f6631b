package cache

import (
	"context"
	"testing"
	"time"
)

// TestUsesArePassedOn has builds that look at the last step only, as they do when
// it is found: what that stands on counts as used with it, and goes after it.
func TestUsesArePassedOn(t *testing.T) {
	ck := &clock{now: time.Unix(1_700_000_000, 0)}
	c := open(t, t.TempDir(), Options{Clock: ck.Now})
	defer closeCache(t, c)
	step := func(n int, name string, parent ChainID, needs ...Key) ChainID {
		ck.add(time.Minute)
		id := putChain(t, c, parent, map[string]string{name: random(uint64(n), 500_000)})
		if err := c.Store(Record{Outputs: []ChainID{id}, Name: name, Created: ck.Now(), Needs: needs}, key(n)); err != nil {
			t.Fatal(err)
		}
		return id
	}
	deps := step(1, "fetch modules", ChainID{})
	step(2, "compile", deps, key(1))
	base := step(3, "base", ChainID{})
	step(4, "copy the program", base, key(3), key(2))
	step(5, "another's", ChainID{})
	ck.add(24 * time.Hour)
	if _, err := c.Lookup(key(4)); err != nil {
		t.Fatal(err)
	}
	usage, err := c.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range usage {
		if want := u.Description != "another's"; u.LastUsed.Equal(ck.Now()) != want {
			t.Errorf("%s was last used %v, want now: %v", u.Description, u.LastUsed, want)
		}
		if u.Description == "compile" && u.Uses != 1 {
			t.Errorf("a use that was passed on is counted")
		}
	}
	// An order, as far as there is one: what stands on something goes before it.
	before := map[string][]string{
		"another's": nil, "copy the program": {"another's"}, "compile": {"copy the program"},
		"base": {"copy the program"}, "fetch modules": {"compile"},
	}
	went := map[string]bool{}
	for len(went) < len(before) {
		gone := prune(t, c, PruneOptions{MaxUsed: diskUsed(t, c) - 300_000})
		if len(gone) == 0 {
			t.Fatalf("nothing went after %v", went)
		}
		for _, u := range gone {
			for _, b := range before[u.Description] {
				if !went[b] {
					t.Errorf("%s went before %s", u.Description, b)
				}
			}
			went[u.Description] = true
		}
	}
}
