package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/moby/buildkit/solver/pb"
)

// cacheMounts says who uses which cache mount. A mount has as many folders as
// there were ever users at once that would not share; each user gets the first
// that is free to it. The zero value is ready.
type cacheMounts struct {
	mu   sync.Mutex
	used map[string]*cacheUse // by the folder's id
	// freed is closed and made anew when a folder is let go.
	freed chan struct{}
}

// Mounts is told of the cache mounts that steps use, and brings those back that
// are elsewhere.
type Mounts interface {
	// Fill fills the empty folder of a mount that is new here, on behalf of some
	// sessions; false leaves it empty.
	Fill(ctx context.Context, sessions []solver.SessionID, id, dir string, warn func(text string)) bool
	// Used is told that a step of a session uses a mount.
	Used(session solver.SessionID, id string)
}

// cacheUse is a folder that is in use.
type cacheUse struct {
	users  int
	shared bool // by those that all said so
	held   bool // while it is emptied nobody may come to share it
}

// slot is the id of the nth folder of a cache mount.
func slot(key string, n int) string {
	if n == 0 {
		return key
	}
	return key + "#" + strconv.Itoa(n)
}

// acquire finds a folder of a cache mount, waiting for one if it must not be
// another than the first.
func (c *cacheMounts) acquire(ctx context.Context, key string, sharing pb.CacheSharingOpt) (id string, release func(), err error) {
	for {
		id, wait, ok := c.try(key, sharing)
		if ok {
			return id, sync.OnceFunc(func() { c.release(id) }), nil
		}
		select {
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		case <-wait:
		}
	}
}

func (c *cacheMounts) try(key string, sharing pb.CacheSharingOpt) (id string, wait <-chan struct{}, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used == nil {
		c.used, c.freed = make(map[string]*cacheUse), make(chan struct{})
	}
	shared := sharing == pb.CacheSharingOpt_SHARED
	for n := 0; ; n++ {
		id = slot(key, n)
		u := c.used[id]
		switch {
		case u == nil:
			c.used[id] = &cacheUse{users: 1, shared: shared}
			return id, nil, true
		case shared && u.shared && u.held:
			return "", c.freed, false
		case shared && u.shared:
			u.users++
			return id, nil, true
		case sharing == pb.CacheSharingOpt_LOCKED:
			return "", c.freed, false
		}
	}
}

func (c *cacheMounts) release(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u := c.used[id]; u.users > 1 {
		u.users--
		return
	}
	delete(c.used, id)
	c.wake()
}

// wake has those look again who wait. c.mu is held.
func (c *cacheMounts) wake() {
	close(c.freed)
	c.freed = make(chan struct{})
}

// renew says whether a step is to empty a folder, for which it then holds it until done
// is called: once for each build, before its first step of those that ignore caches; the
// others find what that one left. A folder that others use too stays as it is.
func (c *cacheMounts) renew(id string, builds []*session) (done func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.used[id]
	if u.users > 1 || slices.ContainsFunc(builds, func(s *session) bool { return s.renewed[id] }) {
		return nil, false
	}
	u.held = true
	for _, s := range builds {
		if s.renewed == nil {
			s.renewed = map[string]bool{}
		}
		s.renewed[id] = true
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		u.held = false
		c.wake()
	}, true
}

// empty removes what is in a folder.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, cache.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err != nil {
		return fmt.Errorf("emptying a cache mount: %w", err)
	}
	return nil
}

// cacheWant is a cache mount as a step asks for it.
type cacheWant struct {
	key     string
	sharing pb.CacheSharingOpt
	chain   cache.ChainID      // its input
	fill    func(string) error // lays out the input; nil where there is none
}

// cacheWant says what a cache mount asks for. An input of the mount is what the folder
// begins with.
func (m *mounted) cacheWant(ctx context.Context, mnt *pb.Mount) (want cacheWant, err error) {
	if mnt.CacheOpt == nil {
		return want, errors.New("missing cache mount options")
	}
	id, err := inputOf(m.job.Vertex, m.job.Inputs, mnt.Input)
	if err != nil {
		return want, err
	}
	want.key, want.sharing = mnt.CacheOpt.ID, mnt.CacheOpt.Sharing
	if mnt.Input != int64(pb.Empty) {
		if id, err = m.w.solid(ctx, m.job, id); err != nil {
			return want, err
		}
		want.key += ":" + id.String()
		want.chain = id
		want.fill = func(dir string) error {
			root, err := m.w.state(ctx, m.job, id)
			if err != nil {
				return err
			}
			return m.w.lost(ctx, m.w.folders.Copy(ctx, root, dir), []cache.ChainID{id})
		}
	}
	return want, nil
}

// acquireCaches gets the folders of a step's cache mounts where it has several: in the
// order of their keys, so that no two steps wait for what the other one has locked.
func (m *mounted) acquireCaches(ctx context.Context, mounts []*pb.Mount) error {
	var wants []cacheWant
	for _, mnt := range mounts {
		if mnt.MountType != pb.MountType_CACHE {
			continue
		}
		want, err := m.cacheWant(ctx, mnt)
		if err != nil {
			return fmt.Errorf("mount %s: %w", mnt.Dest, err)
		}
		wants = append(wants, want)
	}
	if len(wants) < 2 {
		return nil
	}
	slices.SortStableFunc(wants, func(a, b cacheWant) int { return strings.Compare(a.key, b.key) })
	for _, want := range wants {
		if _, err := m.cacheFolder(ctx, want); err != nil {
			return fmt.Errorf("the cache mount %s: %w", want.key, err)
		}
	}
	return nil
}

// cacheMount mounts a folder that outlives the step.
func (m *mounted) cacheMount(ctx context.Context, mnt *pb.Mount, dest string) error {
	want, err := m.cacheWant(ctx, mnt)
	if err != nil {
		return err
	}
	if want.fill != nil && mnt.Output != int64(pb.SkipOutput) {
		m.outs[mnt.Output] = output{chain: want.chain}
	}
	dir, err := m.cacheFolder(ctx, want)
	if err != nil {
		return err
	}
	m.mounts = append(m.mounts, executor.Mount{Dest: dest, Source: dir, Selector: mnt.Selector, ReadOnly: mnt.Readonly})
	return nil
}

// cacheFolder gives the folder of a cache mount. A step that mounts one twice
// shares it with itself, however it may be locked.
func (m *mounted) cacheFolder(ctx context.Context, want cacheWant) (string, error) {
	if dir, ok := m.caches[want.key]; ok {
		return dir, nil
	}
	id, release, err := m.w.mounts.acquire(ctx, want.key, want.sharing)
	if err != nil {
		return "", err
	}
	m.cleanup = append(m.cleanup, release)
	// A build without caches is one without what earlier builds left here, or elsewhere.
	renew := false
	if m.job.Vertex.Meta().IgnoreCache {
		var done func()
		if done, renew = m.w.mounts.renew(id, m.w.of(m.job)); renew {
			defer done()
		}
	}
	fill := want.fill
	if m.w.afar != nil && id == want.key {
		for _, s := range m.job.Sessions() {
			m.w.afar.Used(s, id)
		}
		if !renew {
			fill = m.fromAfar(ctx, id, fill)
		}
	}
	dir, leave, err := m.w.cache.CacheMount(id, fill)
	if err != nil {
		return "", err
	}
	m.cleanup = append(m.cleanup, leave)
	if renew {
		if err := empty(dir); err != nil {
			return "", err
		}
		if fill != nil {
			if err := fill(dir); err != nil {
				return "", err
			}
		}
	}
	m.caches[want.key] = dir
	return dir, nil
}

// fromAfar fills a mount with what is known of it elsewhere, or else as fill does.
func (m *mounted) fromAfar(ctx context.Context, id string, fill func(string) error) func(string) error {
	return func(dir string) error {
		if m.w.afar.Fill(ctx, m.job.Sessions(), id, dir, m.job.Warn) || fill == nil {
			return context.Cause(ctx)
		}
		return fill(dir)
	}
}
