package cache

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// CacheMount gives the folder of the cache mount called id, and marks it as in
// use until release is called; any number may use it at once. Where it is new,
// fill is called with an empty folder that becomes the mount's when fill returns
// without an error; fill may be nil. What a step writes there is the step's
// affair: it is in no epoch and in no lease.
func (c *Cache) CacheMount(id string, fill func(dir string) error) (path string, release func(), err error) {
	c.leaseMu.Lock()
	c.mounts[id]++
	c.leaseMu.Unlock()
	release = sync.OnceFunc(func() {
		c.leaseMu.Lock()
		defer c.leaseMu.Unlock()
		if c.mounts[id]--; c.mounts[id] == 0 {
			delete(c.mounts, id)
		}
	})
	object := mountObject(id)
	path, err = c.makeMount(id, object, fill)
	if err != nil {
		release()
		return "", nil, fmt.Errorf("opening cache mount %q: %w", id, err)
	}
	c.used.note(object, c.opt.Clock())
	return path, release, nil
}

// mountObject is the name under which the guard, the database and the log of
// uses know a cache mount.
func mountObject(id string) *[32]byte {
	sum := sha256.Sum256([]byte("kiln cache mount\x00" + id))
	return &sum
}

func (c *Cache) mountPath(object *[32]byte) string {
	return c.Path("mounts", hex.EncodeToString(object[:16]))
}

func (c *Cache) makeMount(id string, object *[32]byte, fill func(string) error) (string, error) {
	path := c.mountPath(object)
	key := dbKey(prefixMount, object)
	v := binary.AppendVarint(appendText(nil, id), c.opt.Clock().UnixNano())
	if _, err := os.Lstat(path); err == nil {
		if c.db.has(key) {
			return path, nil
		}
		// The database was lost; the folder was not.
		return path, c.db.put(key, v)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	temp, err := os.MkdirTemp(c.Path("tmp"), "mount-")
	if err != nil {
		return "", err
	}
	// It is what the step sees as the folder's mode; a fill may set another.
	if err := os.Chmod(temp, 0o755); err != nil {
		return "", err
	}
	if fill != nil {
		if err := fill(temp); err != nil {
			return "", errors.Join(err, os.RemoveAll(temp))
		}
	}
	if err := c.db.put(key, v); err != nil {
		return "", err
	}
	err = os.Rename(temp, path)
	if errors.Is(err, fs.ErrExist) {
		// Another step made it meanwhile.
		return path, os.RemoveAll(temp)
	}
	return path, err
}

func decodeMount(b []byte) (id string, created time.Time, err error) {
	d := decoder{b: b}
	id, created = d.text(), time.Unix(0, d.int())
	return id, created, d.end()
}
