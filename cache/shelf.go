package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// shelf is a folder of the state folder in whose folders somebody above the cache
// keeps what costs time only to be had again. What they hold is not the cache's to
// know; how large they are is.
type shelf struct{ name, kind, what string }

var shelves = []shelf{
	{"mirrors", KindLocal, "the copy of a client's folder"},
	{"git", KindGit, "a git repository"},
}

// HoldFolder notes the use of a folder of the state folder, "mirrors/x" or "git/x",
// that parts above the cache keep, and keeps it from being collected until release
// is called. It is called before the folder is looked for, or made.
func (c *Cache) HoldFolder(elem ...string) (release func()) {
	name := filepath.Join(elem...)
	c.used.note(shelfObject(name), c.opt.Clock())
	c.leaseMu.Lock()
	defer c.leaseMu.Unlock()
	c.shelved[name]++
	return sync.OnceFunc(func() {
		c.leaseMu.Lock()
		defer c.leaseMu.Unlock()
		if c.shelved[name]--; c.shelved[name] == 0 {
			delete(c.shelved, name)
		}
	})
}

// shelfObject is the name under which the log of uses knows a folder of a shelf.
func shelfObject(name string) *[32]byte {
	sum := sha256.Sum256([]byte("kiln folder\x00" + name))
	return &sum
}

// eachShelved calls fn for the folders of the shelves.
func (c *Cache) eachShelved(fn func(s shelf, name string, info fs.FileInfo) error) error {
	for _, s := range shelves {
		entries, err := os.ReadDir(c.Path(s.name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				continue
			}
			if err := fn(s, filepath.Join(s.name, e.Name()), info); err != nil {
				return err
			}
		}
	}
	return nil
}

// addShelves adds what is on the shelves.
func (c *Cache) addShelves(items []item, uses map[[16]byte]use) ([]item, error) {
	err := c.eachShelved(func(s shelf, name string, info fs.FileInfo) error {
		object := shelfObject(name)
		c.leaseMu.Lock()
		inUse := c.shelved[name] > 0
		c.leaseMu.Unlock()
		u := uses[short(object[:16])]
		it := item{id: *object, shelf: name, Usage: Usage{
			ID: hex.EncodeToString(object[:]), Kind: s.kind, Description: s.what + ", " + strings.TrimPrefix(name, s.name+"/"),
			Created: info.ModTime(), LastUsed: u.last, Uses: int(u.count), InUse: inUse,
		}}
		if it.LastUsed.IsZero() {
			it.LastUsed = info.ModTime()
		}
		var err error
		if it.Size, err = diskUsage(c.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		items = append(items, it)
		return nil
	})
	return items, err
}

// collectShelved removes a folder of a shelf that nobody holds.
func (c *Cache) collectShelved(name string) (bool, error) {
	c.leaseMu.Lock()
	defer c.leaseMu.Unlock()
	if c.shelved[name] > 0 {
		return false, nil
	}
	if err := c.discard(c.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, nil
}
