package caller

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// keepMirrors is how long a mirror that nobody uses is kept.
const keepMirrors = 48 * time.Hour

// Mirrors are the mirrors of a state folder. A client's folder is known by the key
// that its owner gives it (the session's shared key) and its name in the build. It
// has as many mirrors as sessions build from it at the same time, since each sees
// the folder as it was for its own client. It is safe for concurrent use.
type Mirrors struct {
	dir   string
	clock func() time.Time
	hold  func(elem ...string) (release func())

	mu    sync.Mutex
	inUse map[string]*mirror // by path
}

// mirror is a mirror in use. Transfers into it take turns.
type mirror struct {
	path  string
	owner string // id of the session
	keep  bool   // when it is not in use any more
	users int    // builds; guarded by Mirrors.mu
	let   func() // ends its being held

	transfer sync.Mutex
}

// OpenMirrors gives the mirrors in the folder dir, which it makes, and removes
// those that were not used for long. While a mirror is in use it is held by hold,
// which is given the last two elements of its path.
func OpenMirrors(dir string, clock func() time.Time, hold func(elem ...string) (release func())) (*Mirrors, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of mirrors: %w", err)
	}
	m := &Mirrors{dir: dir, clock: clock, hold: hold, inUse: make(map[string]*mirror)}
	return m, m.Prune(keepMirrors)
}

// Prune removes the mirrors that were not used for that long.
func (m *Mirrors) Prune(unused time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return fmt.Errorf("listing the mirrors: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(m.dir, e.Name())
		info, err := e.Info()
		if err != nil || m.inUse[path] != nil || m.clock().Sub(info.ModTime()) < unused {
			continue
		}
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

// take gives a mirror to a build of the session owner: the one that the session
// uses already, or else one that is free. Without a key of the folder's owner it
// is one for this session alone.
func (m *Mirrors) take(key, name, owner string) (*mirror, error) {
	private := key == ""
	if private {
		key = owner
	}
	sum := sha256.Sum256([]byte(key + "\x00" + name))
	base := filepath.Join(m.dir, hex.EncodeToString(sum[:16]))
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := 0; ; i++ {
		path := base + "-" + strconv.Itoa(i)
		if used := m.inUse[path]; used != nil {
			if used.owner != owner {
				continue
			}
			used.users++
			return used, nil
		}
		// First, for one that is there could be collected meanwhile.
		let := m.hold(filepath.Base(m.dir), filepath.Base(path))
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			let()
			return nil, fmt.Errorf("making a mirror: %w", err)
		}
		used := &mirror{path: path, owner: owner, keep: !private, users: 1, let: let}
		m.inUse[path] = used
		return used, nil
	}
}

// release ends what take began.
func (m *Mirrors) release(used *mirror) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if used.users--; used.users > 0 {
		return
	}
	delete(m.inUse, used.path)
	defer used.let()
	if !used.keep {
		os.RemoveAll(used.path) // else Prune does
		return
	}
	now := m.clock()
	os.Chtimes(used.path, now, now) // says when it was used; without, it is pruned early
}
