package kiln

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/exporter/image"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/request"
)

// RemoteCache names a cache that is shared with other machines.
type RemoteCache = request.RemoteCache

// cachePatience is how long a cache's server may stand still where nothing is said.
const cachePatience = 15 * time.Second

// cacheLimits are shorter than those of images: a build can do without its caches.
var cacheLimits = registry.Limits{Dial: 10 * time.Second, Header: cachePatience, Stall: cachePatience, Attempts: 2, RetryAfter: 5 * time.Second}

// maxCaches bounds how many caches a build's frontends may name.
const maxCaches = 64

// imports are the caches that a build reads.
type imports struct {
	mu    sync.Mutex // guards what follows
	named []RemoteCache
	list  []*remote.Import
	over  bool // no more are opened
}

// end ends the use of all caches, and gives them. Nobody waits any more for one that does
// not answer.
func (i *imports) end() []*remote.Import {
	i.mu.Lock()
	i.over = true
	list := i.list
	i.mu.Unlock()
	var group sync.WaitGroup
	for _, one := range list {
		group.Go(one.Close)
	}
	group.Wait()
	return list
}

// openCaches begins to read the build's caches, and to write them; end ends their use.
func (b *build) openCaches(ctx context.Context, from []RemoteCache) (end func()) {
	b.imports.mu.Lock()
	b.imports.named = slices.Clip(from)
	for _, s := range b.caches.sources {
		b.importCache(ctx, s)
	}
	list := slices.Clip(b.imports.list)
	b.imports.mu.Unlock()
	b.beginCaches(ctx, list)
	// Those that a frontend names are opened by a call of its, which ends before the build.
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		b.imports.end()
	})
	return func() {
		if !stop() {
			<-interrupted
		}
		b.leaveCaches()
		b.engine.records.endMounts(b.session)
		for _, i := range b.imports.end() {
			b.engine.records.remove(i)
			b.tellRefused(i)
		}
	}
}

// importCache begins to read a cache. b.imports.mu is held.
func (b *build) importCache(ctx context.Context, s cacheSource) {
	done := steps{b}.Step("importing cache manifest from " + s.name)
	o := remote.Options{
		Name: s.name, Origin: s.origin, Verify: s.verify,
		// Where an output wants a layer's own blob too, a copy would be fetched besides.
		Copies: !b.packs,
		// Another cache would want the blob.
		Aside:   !slices.ContainsFunc(b.caches.targets, func(t cacheTarget) bool { return !t.is(s) }),
		Created: func(id cache.LayerID, at time.Time) { _ = image.SetCreated(b.engine.cache, id, at) },  // a time is not worth a failure
		Variant: func(of blob.Digest, v remote.Variant) { _ = image.SetVariant(b.engine.cache, of, v) }, // nor is this
	}
	i := remote.Open(ctx, b.engine.cache, s.store, o, func(err error) {
		done(err)
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			b.warn(fmt.Sprintf("the cache %s is not used: %v", s.name, err))
		}
	})
	b.engine.records.add(b.session, i)
	b.imports.list = append(b.imports.list, i)
}

// tellRefused warns of records that were not taken from a cache.
func (b *build) tellRefused(i *remote.Import) {
	n := i.Refused()
	if n == 0 {
		return
	}
	name := "checking the signatures in " + i.Name()
	_ = b.step(name, func() error {
		b.warnIn(name, fmt.Sprintf("records of the cache %s were not taken, %d of those looked up: no key that is asked for has signed them", i.Name(), n))
		return nil
	})
}

// ReadCaches reads caches that a frontend names, until the build ends. A frontend
// may run elsewhere: files of this machine it cannot name.
func (b bridge) ReadCaches(ctx context.Context, caches []frontend.Cache) error {
	b.imports.mu.Lock()
	defer b.imports.mu.Unlock()
	for _, c := range caches {
		same := func(o RemoteCache) bool { return o.Type == c.Type && maps.Equal(o.Attrs, c.Attrs) }
		if b.imports.over || slices.ContainsFunc(b.imports.named, same) {
			continue // frontends are told of the build's caches, and name them again
		}
		named := RemoteCache{Type: c.Type, Attrs: c.Attrs}
		sources, err := b.cacheSources(named, namer{})
		if err != nil {
			return fmt.Errorf("cache import type=%s: %w", c.Type, err)
		}
		if len(b.imports.list)+len(sources) > maxCaches {
			return fmt.Errorf("the build reads more than %d caches", maxCaches)
		}
		b.imports.named = append(b.imports.named, named)
		for _, s := range sources {
			b.importCache(context.WithoutCancel(ctx), s) // the call ends before the build does, which ends this
		}
	}
	return nil
}
