package kiln

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/cache/remote/azblob"
	"github.com/kiln-build/kiln/cache/remote/s3"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/image"
	"github.com/kiln-build/kiln/exporter/layer"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
)

// cacheExportTimeout bounds what a build waits for its caches when it is done.
const cacheExportTimeout = 10 * time.Minute

// cacheExport is a cache that a build writes while it goes on: the layers of each
// step are sent when the step has ended.
type cacheExport struct {
	target cacheTarget
	export *remote.Exporter

	wake chan struct{} // holds one: steps have ended
	over chan struct{} // closed when no more do
	fed  sync.WaitGroup

	mu    sync.Mutex // guards ended
	ended []llb.Digest
}

// beginCaches begins the exports of the build.
func (b *build) beginCaches(ctx context.Context, imports []*remote.Import) {
	var list []*cacheExport
	packed := sync.OnceValue(b.packed) // by the first that has something to write, at the end
	for _, t := range b.caches.targets {
		if t.store == nil || b.chronicle.dryRun {
			continue
		}
		x := &cacheExport{target: t, wake: make(chan struct{}, 1), over: make(chan struct{})}
		o := remote.ExportOptions{
			Forms: b.forms(t), Sign: t.sign, Parallel: t.parallel, Envelope: t.envelope,
			Created:  func(id cache.LayerID) time.Time { return image.Created(b.engine.cache, id) },
			Variants: func(l cache.Layer) []remote.Variant { return image.Variants(b.engine.cache, l) },
		}
		if t.max {
			o.Packed = packed
		}
		if t.copies {
			o.Copy = b.copies()
		}
		for n, s := range b.caches.sources {
			if t.is(s) && isNamedWhole(t.store) {
				o.Import = imports[n] // the same index, which need not be fetched twice
			}
		}
		x.export = remote.Begin(ctx, b.engine.cache, t.store, o)
		x.fed.Go(func() { b.feed(ctx, x) })
		list = append(list, x)
	}
	b.mu.Lock()
	b.exports = list
	b.mu.Unlock()
}

// leaveCaches cuts short the exports that go on.
func (b *build) leaveCaches() {
	if b.finishing != nil {
		b.finishing.cancel()
		<-b.finishing.done
	}
	for _, x := range b.exports {
		x.close()
		x.export.Cancel(context.Canceled)
		x.fed.Wait()
		x.export.Close()
	}
}

// is reports whether a cache is one that the build reads too. Names are for people: those
// of some leave out the server and folders.
func (t cacheTarget) is(s cacheSource) bool {
	if written, ok := t.store.(placed); ok {
		read, ok := s.store.(placed)
		return ok && written.Place() == read.Place()
	}
	return t.name == s.name
}

// placed is a store that can be told from others which have its name.
type placed interface {
	// Place gives all that chooses what is read there.
	Place() string
}

var _, _ placed = (*s3.Store)(nil), (*azblob.Store)(nil)

// isNamedWhole says of a store that its name, or its place, says all that chooses what is
// read there.
func isNamedWhole(s remote.Store) bool {
	switch s.(type) {
	case *registryStore, *remote.HTTP, *s3.Store, *azblob.Store:
		return true
	}
	return false
}

// forms makes the blobs of layers for a target. Those of the result are compressed as
// an image has them, so that its export and the cache's make one blob.
func (b *build) forms(t cacheTarget) remote.Forms {
	env := exporter.Env{Cache: b.engine.cache, Source: b.engine.worker.Reader(b.session), Clock: b.engine.clock}
	inside := image.NewBlobs(env, t.options)
	o := t.options
	o.Method = t.aside
	aside := image.NewBlobs(env, o)
	return func(ctx context.Context, chain cache.ChainID, l cache.Layer) (remote.Form, error) {
		blobs, has := inside, b.inResult(l.ID)
		apart := isAside(l, has)
		if apart {
			blobs = aside
		}
		made, err := blobs.Layer(ctx, chain, l)
		return remote.Form{DiffID: made.DiffID, Blob: made.Desc, Origins: made.Origins, Aside: apart && !has, Open: made.Open}, err
	}
}

// copies gives the layers of base images by zstd, where they are here and come by
// gzip. A machine that starts empty spends more on inflating its base than on all else.
func (b *build) copies() func(context.Context, cache.ChainID, cache.Layer) (remote.Form, bool) {
	o := image.Options{Method: layer.Method{Compression: layer.Zstd}, Force: true}
	blobs := image.NewBlobs(exporter.Env{Cache: b.engine.cache, Clock: b.engine.clock}, o)
	return func(ctx context.Context, chain cache.ChainID, l cache.Layer) (remote.Form, bool) {
		made, ok := blobs.Copy(ctx, chain, l)
		return remote.Form{DiffID: made.DiffID, Blob: made.Desc, Open: made.Open}, ok
	}
}

// isAside says of a layer that it is compressed as one that the result does not have.
// One that has a blob already is taken as it is: it may be on another machine.
func isAside(l cache.Layer, inResult bool) bool {
	for _, d := range l.Blobs {
		if d.MediaType != layer.Zstd.MediaType() {
			return false
		}
	}
	return len(l.Blobs) > 0 || !inResult
}

// inResult says of a layer that the result has it, as far as is known.
func (b *build) inResult(id cache.LayerID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.results.layers[id]
	return ok
}

// resultLayers are the layers of a build's result, as far as they are known.
type resultLayers struct {
	layers map[cache.LayerID]struct{}
	chains map[cache.ChainID]struct{} // those of which all layers are noted
}

// resultHas notes that the layers of chains are in the result.
func (b *build) resultHas(chains ...cache.ChainID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &b.results
	if r.layers == nil {
		r.layers, r.chains = map[cache.LayerID]struct{}{}, map[cache.ChainID]struct{}{{}: {}, cache.Absent: {}}
	}
	for _, at := range chains {
		for {
			if _, ok := r.chains[at]; ok {
				break
			}
			link, err := b.engine.cache.Chain(at)
			if err != nil {
				break // who reads the chain says so
			}
			r.chains[at] = struct{}{}
			r.layers[link.Layer] = struct{}{}
			at = link.Parent
		}
	}
}

// stepEnded tells the exports of a step that has a result. b.mu is held.
func (b *build) stepEnded(v llb.Digest) {
	for _, x := range b.exports {
		x.mu.Lock()
		x.ended = append(x.ended, v)
		x.mu.Unlock()
		select {
		case x.wake <- struct{}{}:
		default:
		}
	}
}

// close says that no more steps end. It may be called again.
func (x *cacheExport) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case <-x.over:
	default:
		close(x.over)
	}
}

// next waits for steps that have ended; false is that there are no more.
func (x *cacheExport) next() ([]llb.Digest, bool) {
	more := true
	select {
	case <-x.wake:
	case <-x.over:
		more = false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	ended := x.ended
	x.ended = nil
	return ended, more
}

// feed adds the layers of steps to an export as the steps end.
func (b *build) feed(ctx context.Context, x *cacheExport) {
	var definitions map[llb.Digest]solver.Definition
	var wanted map[llb.Digest]bool
	known := 0
	for {
		ended, more := x.next()
		if !more {
			return // what is left is sent with the rest
		}
		b.mu.Lock()
		edges := slices.Clip(b.edges)
		b.mu.Unlock()
		if len(edges) != known {
			list, err := b.engine.solver.Definitions(ctx, b.session, edges...)
			if err != nil {
				continue // the build will say so itself; the layers are sent at its end
			}
			definitions, wanted, known = map[llb.Digest]solver.Definition{}, onTheWay(edges), len(edges)
			for _, d := range list {
				definitions[d.Vertex.Digest()] = d
			}
		}
		var add []cache.ChainID
		for _, v := range ended {
			d, ok := definitions[v]
			if !ok || !x.target.max && !wanted[v] {
				continue
			}
			if r, err := b.engine.cache.Lookup(d.Key); err == nil {
				if add = append(add, r.Outputs...); wanted[v] {
					b.resultHas(r.Outputs...)
				}
			}
		}
		for _, o := range add {
			x.export.Add(o)
		}
	}
}

// onTheWay gives the vertices whose layers are likely in the result of edges, while
// that is not there yet: those that they stand on, and not those that they read.
func onTheWay(edges []llb.Edge) map[llb.Digest]bool {
	on := map[llb.Digest]bool{}
	var visit func(llb.Edge)
	visit = func(e llb.Edge) {
		if e.Vertex == nil || on[e.Vertex.Digest()] {
			return
		}
		on[e.Vertex.Digest()] = true
		inputs := e.Vertex.Inputs()
		stand := func(n int64) {
			if n >= 0 && n < int64(len(inputs)) {
				visit(inputs[n])
			}
		}
		switch op := e.Vertex.Op().Op.(type) {
		case *pb.Op_Exec:
			for _, m := range op.Exec.Mounts {
				if m.Dest == pb.RootMount {
					stand(m.Input)
				}
			}
		case *pb.Op_File:
			for _, a := range op.File.Actions {
				stand(a.Input)
			}
		case *pb.Op_Merge:
			for _, in := range op.Merge.Inputs {
				stand(in.Input)
			}
		}
	}
	for _, e := range edges {
		visit(e)
	}
	return on
}

// finishing is the end of a build's exports, which is written while the build's last
// output is still being sent.
type finishing struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when err is set
	err    error
}

// finishCaches begins to end the exports. What an image is made of has to be known by
// then: the cache has it too.
func (b *build) finishCaches(ctx context.Context) {
	if b.finishing != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &finishing{cancel: cancel, done: make(chan struct{})}
	b.finishing = f
	go func() {
		defer close(f.done)
		defer cancel()
		f.err = b.exportCaches(ctx)
	}()
}

// cachesFinished waits for the end of the exports.
func (b *build) cachesFinished(ctx context.Context) error {
	b.finishCaches(ctx)
	<-b.finishing.done
	return b.finishing.err
}

// refinishCaches begins the exports anew where their end has begun, for a build that is
// solved again.
func (b *build) refinishCaches(ctx context.Context) {
	if b.finishing == nil {
		return
	}
	b.leaveCaches()
	b.finishing = nil
	b.imports.mu.Lock()
	list := slices.Clip(b.imports.list)
	b.imports.mu.Unlock()
	b.beginCaches(ctx, list)
}

// exportCaches waits for what is in flight of the exports, and writes the records down.
func (b *build) exportCaches(ctx context.Context) error {
	var group errgroup.Group
	for _, x := range b.exports {
		group.Go(func() error {
			err := b.step(x.step(), func() error { return b.exportCache(ctx, x) })
			switch {
			case err == nil:
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case !x.target.ignoreError:
				return fmt.Errorf("exporting the cache to %s: %w", x.target.name, err)
			default:
				b.warn(fmt.Sprintf("the cache was not exported to %s: %v", x.target.name, err))
			}
			return nil
		})
	}
	return group.Wait()
}

func (b *build) exportCache(ctx context.Context, x *cacheExport) error {
	t := x.target
	timeout := t.timeout
	if timeout == 0 {
		timeout = cacheExportTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than %v", timeout))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { x.export.Cancel(context.Cause(ctx)) }) // also what feed waits for
	defer stop()
	x.close()
	x.fed.Wait()
	b.resultHas(b.roots...)
	entries, err := b.cacheEntries(ctx)
	if err == nil && !t.max {
		entries, err = remote.Toward(b.engine.cache, entries, b.roots)
	}
	if err != nil {
		return err
	}
	var mounts []remote.Mount
	if t.mounts {
		var release func()
		mounts, release = b.usedMounts()
		defer release()
	}
	stats, err := x.export.Finish(ctx, entries, mounts, b.engine.clock())
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return err
	}
	b.tellExport(x, stats)
	return nil
}

// step is what the writing of the cache is called in progress.
func (x *cacheExport) step() string { return "exporting cache to " + x.target.name }

// tellExport says what became of an export.
func (b *build) tellExport(x *cacheExport, stats remote.Stats) {
	name := x.target.name
	if stats.Manifest.Size > 0 {
		// BuildKit's clients keep the index of a local cache themselves.
		if manifest, err := json.Marshal(stats.Manifest); err == nil {
			b.mu.Lock()
			b.result.Metadata["cache.manifest"] = string(manifest)
			b.mu.Unlock()
		}
	}
	if stats.Replaced != nil {
		b.warnIn(x.step(), fmt.Sprintf("what the cache %s held was not kept: %v", name, stats.Replaced))
	}
	if stats.Skipped > 0 {
		b.warnIn(x.step(), fmt.Sprintf("%d of %d records were left out of the cache %s; %s", stats.Skipped, stats.Skipped+stats.Records, name, stats.Reason))
	}
	for _, reason := range stats.Unsaved {
		b.warnIn(x.step(), fmt.Sprintf("the cache %s: %s", name, reason))
	}
}

// usedMounts gives the cache mounts of the build: those that its steps used, and
// those of steps that did not have to run. release lets go of them.
func (b *build) usedMounts() (mounts []remote.Mount, release func()) {
	var held []func()
	seen := map[string]bool{}
	for _, id := range b.engine.records.mountsOf(b.session) {
		seen[id] = true
		dir, leave, err := b.engine.cache.CacheMount(id, nil)
		if err != nil {
			continue // it was collected or removed: then there is nothing to save
		}
		held = append(held, leave)
		mounts = append(mounts, remote.Mount{ID: id, Dir: dir})
	}
	b.mu.Lock()
	edges := slices.Clip(b.edges)
	b.mu.Unlock()
	for _, v := range llb.Walk(edges...) {
		for _, m := range v.Op().GetExec().GetMounts() {
			if id := m.GetCacheOpt().GetID(); id != "" && m.Input == int64(pb.Empty) && !seen[id] {
				seen[id] = true
				mounts = append(mounts, remote.Mount{ID: id})
			}
		}
	}
	return mounts, func() {
		for _, leave := range held {
			leave()
		}
	}
}

// cacheEntries gives the records of all that the build solved.
func (b *build) cacheEntries(ctx context.Context) ([]remote.Entry, error) {
	b.mu.Lock()
	edges := slices.Clip(b.edges)
	b.mu.Unlock()
	definitions, err := b.engine.solver.Definitions(ctx, b.session, edges...)
	if err != nil {
		return nil, err
	}
	var entries []remote.Entry
	for _, d := range definitions {
		r, err := b.engine.records.LookupFor(b.session, d.Key)
		if err != nil || len(r.Outputs) != d.Vertex.Outputs() {
			continue // what was not needed and is not known
		}
		e := remote.Entry{Keys: []cache.Key{d.Key}, Record: r}
		if len(r.Inputs) > 0 {
			e.Keys = append(e.Keys, d.ContentKey(r.Inputs))
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// addInline puts the inline cache into the configs of the result's images.
func (b *build) addInline(ctx context.Context, r *exporter.Result) {
	if !b.caches.inline {
		return
	}
	entries, err := b.cacheEntries(ctx)
	for i := range r.Images {
		img := &r.Images[i]
		if err != nil {
			continue
		}
		config := img.Config
		if len(config) == 0 { // of a graph that no frontend made
			config, err = image.DefaultConfig(img.Platform)
		}
		if err == nil {
			config, err = remote.Inline(b.engine.cache, config, img.Root, entries)
		}
		if err == nil {
			img.Config = config
		}
	}
	if err != nil && ctx.Err() == nil {
		b.warn(fmt.Sprintf("the image has no inline cache: %v", err))
	}
}
