package kiln

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/image"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/request"
	"github.com/kiln-build/kiln/solver"
)

// RemoteCache names a cache that is shared with other machines.
type RemoteCache = request.RemoteCache

// cacheExportTimeout bounds what a build waits for its caches when it is done.
const cacheExportTimeout = 10 * time.Minute

// cacheLimits are shorter than those of images: a build can do without its caches.
var cacheLimits = registry.Limits{Dial: 10 * time.Second, Header: 15 * time.Second, Stall: 15 * time.Second, Attempts: 2}

// records are those of the state folder, and behind them those of the remote
// caches of the builds that run.
type records struct {
	*cache.Cache
	forget func(cache.LayerID) error // the solver's

	mu      sync.Mutex // guards imports
	imports []*remote.Import
}

func (r *records) add(i *remote.Import) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.imports = append(slices.Clip(r.imports), i)
}

func (r *records) remove(i *remote.Import) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.imports = slices.DeleteFunc(slices.Clone(r.imports), func(o *remote.Import) bool { return o == i })
}

func (r *records) open() []*remote.Import {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.imports
}

// Lookup finds a record here or in a remote cache, which makes it one of those here.
func (r *records) Lookup(k cache.Key) (cache.Record, error) {
	rec, err := r.Cache.Lookup(k)
	if err == nil {
		return rec, nil
	}
	for _, i := range r.open() {
		if rec, rerr := i.Lookup(k); rerr == nil {
			return rec, r.Cache.Store(rec, k)
		}
	}
	return cache.Record{}, err
}

// ForgetLayer forgets a layer that could not be had, and with it what a remote
// cache is not counted on for any more.
func (r *records) ForgetLayer(id cache.LayerID) error {
	err := r.Cache.ForgetLayer(id)
	for _, i := range r.open() {
		for _, other := range i.Lost(id) {
			err = errors.Join(err, r.forget(other))
		}
	}
	return err
}

// Holds says whether a remote cache lists a layer.
func (r *records) Holds(id cache.LayerID) bool {
	return slices.ContainsFunc(r.open(), func(i *remote.Import) bool { return i.Holds(id) })
}

// Blob reads a blob of a remote cache.
func (r *records) Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	err := fmt.Errorf("blob %s is in no remote cache: %w", d.Digest, fs.ErrNotExist)
	for _, i := range r.open() {
		var body io.ReadCloser
		if body, err = i.Blob(ctx, d, offset); err == nil {
			return body, nil
		}
	}
	return nil, err
}

// cacheSource is a cache that a build reads.
type cacheSource struct {
	name   string
	store  remote.Store
	origin string
}

// cacheTarget is a cache that a build writes.
type cacheTarget struct {
	name        string
	store       remote.Target // nil for an inline cache
	options     image.Options
	max         bool
	ignoreError bool
}

// caches are the remote caches of a build.
type caches struct {
	sources []cacheSource
	targets []cacheTarget
	inline  bool
}

// parseCaches reads what r says of caches, before anything is built.
func (b *build) parseCaches(r *Request) (caches, error) {
	var c caches
	for _, from := range r.CacheFrom {
		s, err := b.cacheSource(from, r.Session == nil)
		if err != nil {
			return c, fmt.Errorf("cache-from type=%s: %w", from.Type, err)
		}
		c.sources = append(c.sources, s)
	}
	for _, to := range r.CacheTo {
		t, err := b.cacheTarget(to, r.Session == nil)
		if err != nil {
			return c, fmt.Errorf("cache-to type=%s: %w", to.Type, err)
		}
		c.inline = c.inline || t.store == nil
		c.targets = append(c.targets, t)
	}
	return c, nil
}

// attrs takes attributes one after the other; what is left is not known.
type attrs map[string]string

func (a attrs) take(name string) string {
	v := a[name]
	delete(a, name)
	return v
}

func (a attrs) bool(name string, otherwise bool) (bool, error) {
	v, ok := a[name]
	delete(a, name)
	if !ok {
		return otherwise, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("%s=%s: want true or false", name, v)
	}
	return b, nil
}

func (a attrs) end() error {
	for _, name := range slices.Sorted(maps.Keys(a)) {
		return fmt.Errorf("unknown attribute %s", name)
	}
	return nil
}

func (b *build) cacheSource(from RemoteCache, here bool) (s cacheSource, err error) {
	a := attrs(maps.Clone(from.Attrs))
	switch from.Type {
	case "registry":
		store, err := b.registryStore(a.take("ref"))
		if err != nil {
			return s, err
		}
		s = cacheSource{store.ref.String(), store, store.ref.Repository()}
	case "local":
		var d blob.Digest
		if v := a.take("digest"); v != "" {
			if d, err = blob.Parse(v); err != nil {
				return s, err
			}
		}
		dir := a.take("src")
		store, err := b.cacheFolder(dir, "src", a.take("tag"), d, here)
		if err != nil {
			return s, err
		}
		s = cacheSource{name: dir, store: store}
	case "http":
		store, err := httpStore(a)
		if err != nil {
			return s, err
		}
		s = cacheSource{name: store.Name(), store: store}
	default:
		return s, errors.New("unknown type; the types are registry, local and http")
	}
	return s, a.end()
}

func (b *build) cacheTarget(to RemoteCache, here bool) (t cacheTarget, err error) {
	a := attrs(maps.Clone(to.Attrs))
	switch to.Type {
	case "registry":
		store, err := b.registryStore(a.take("ref"))
		if err != nil {
			return t, err
		}
		t.name, t.store = store.ref.String(), store
	case "local":
		dir := a.take("dest")
		if t.store, err = b.cacheFolder(dir, "dest", a.take("tag"), blob.Digest{}, here); err != nil {
			return t, err
		}
		t.name = dir
		if reset, err := a.bool("reset", false); err != nil || reset && here {
			return t, errors.Join(err, errors.New("reset=true: remove the folder instead"))
		} // a client that asks for it empties its folder itself
	case "http":
		store, err := httpStore(a)
		if err != nil {
			return t, err
		}
		t.name, t.store = store.Name(), store
	case "inline":
		t.name = "the image's config"
	default:
		return t, errors.New("unknown type; the types are registry, local, inline and http")
	}
	switch mode := a.take("mode"); mode {
	case "", "min":
	case "max":
		if t.max = true; t.store == nil {
			return t, errors.New("mode=max: an inline cache has the layers of the image and no others")
		}
	default:
		return t, fmt.Errorf("mode=%s: want min or max", mode)
	}
	if t.ignoreError, err = a.bool("ignore-error", true); err != nil {
		return t, err
	}
	// What caches are in anyway.
	for _, name := range []string{"oci-mediatypes", "image-manifest"} {
		if v, err := a.bool(name, true); err != nil || !v {
			return t, errors.Join(err, fmt.Errorf("%s=false: caches are OCI image manifests", name))
		}
	}
	layers := map[string]string{}
	for _, name := range []string{"compression", "compression-level"} {
		if v := a.take(name); v != "" {
			layers[name] = v
		}
	}
	if t.options, err = image.ParseOptions(layers); err != nil {
		return t, err
	}
	return t, a.end()
}

// httpStore gives the cache that url= and name= stand for.
func httpStore(a attrs) (*remote.HTTP, error) {
	address, name := a.take("url"), a.take("name")
	if address == "" {
		return nil, errors.New("url=ADDRESS is missing")
	}
	if name == "" {
		name = "main"
	}
	return remote.NewHTTP(address, name)
}

// cacheFolder gives the cache in a folder: of this machine, or of a caller elsewhere
// who lends it.
func (b *build) cacheFolder(dir, attr, tag string, manifest blob.Digest, here bool) (remote.Target, error) {
	switch {
	case dir == "":
		return nil, fmt.Errorf("%s=FOLDER is missing", attr)
	case here:
		return remote.NewLayout(dir, tag, manifest), nil
	case b.cacheFolders == nil:
		return nil, errors.New("the build has no session by which its folder could be reached")
	}
	return b.cacheFolders.CacheFolder(dir, manifest), nil
}

// warn tells the build's user of something that does not stop it.
func (b *build) warn(text string) {
	b.emit(FrontendWarning{Subject: solver.Subject{Time: b.engine.clock()}, Warning: frontend.Warning{Short: text, Level: 1}})
}

// openCaches begins to read the build's caches; close ends their use.
func (b *build) openCaches(ctx context.Context) (close func()) {
	var imports []*remote.Import
	for _, s := range b.caches.sources {
		name := "importing cache manifest from " + s.name
		done := steps{b}.Step(name)
		made := func(id cache.LayerID, at time.Time) { _ = image.SetCreated(b.engine.cache, id, at) } // a time is not worth a failure
		i := remote.Open(ctx, b.engine.cache, s.store, remote.Options{Name: s.name, Origin: s.origin, Created: made}, func(err error) {
			done(err)
			if err != nil && ctx.Err() == nil {
				b.warn(fmt.Sprintf("the cache %s is not used: %v", s.name, err))
			}
		})
		b.engine.records.add(i)
		imports = append(imports, i)
	}
	return func() {
		for _, i := range imports {
			b.engine.records.remove(i)
			i.Close()
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
		r, err := b.engine.records.Lookup(d.Key)
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
		if err != nil || len(img.Config) == 0 {
			continue
		}
		var config []byte
		if config, err = remote.Inline(b.engine.cache, img.Config, img.Root, entries); err == nil {
			img.Config = config
		}
	}
	if err != nil && ctx.Err() == nil {
		b.warn(fmt.Sprintf("the image has no inline cache: %v", err))
	}
}

// exportCaches writes the build's caches.
func (b *build) exportCaches(ctx context.Context) error {
	for _, t := range b.caches.targets {
		if t.store == nil {
			continue
		}
		err := b.step("exporting cache to "+t.name, func() error { return b.exportCache(ctx, t) })
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !t.ignoreError:
			return fmt.Errorf("exporting the cache to %s: %w", t.name, err)
		default:
			b.warn(fmt.Sprintf("the cache was not exported to %s: %v", t.name, err))
		}
	}
	return nil
}

func (b *build) exportCache(ctx context.Context, t cacheTarget) error {
	ctx, cancel := context.WithTimeoutCause(ctx, cacheExportTimeout, fmt.Errorf("it took longer than %v", cacheExportTimeout))
	defer cancel()
	entries, err := b.cacheEntries(ctx)
	if err == nil && !t.max {
		entries, err = remote.Toward(b.engine.cache, entries, b.roots)
	}
	if err != nil {
		return err
	}
	blobs := image.NewBlobs(exporter.Env{Cache: b.engine.cache, Source: b.engine.worker.Reader(b.session), Clock: b.engine.clock}, t.options)
	forms := func(ctx context.Context, chain cache.ChainID, l cache.Layer) (remote.Form, error) {
		made, err := blobs.Layer(ctx, chain, l)
		return remote.Form{DiffID: made.DiffID, Blob: made.Desc, Origins: made.Origins, Open: made.Open, Created: image.Created(b.engine.cache, l.ID)}, err
	}
	stats, err := remote.Export(ctx, b.engine.cache, t.store, remote.ExportOptions{Forms: forms}, entries, b.engine.clock())
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return err
	}
	if stats.Manifest.Size > 0 {
		// BuildKit's clients keep the index of a local cache themselves.
		manifest, err := json.Marshal(stats.Manifest)
		if err != nil {
			return err
		}
		b.result.Metadata["cache.manifest"] = string(manifest)
	}
	if stats.Replaced != nil {
		b.warn(fmt.Sprintf("what the cache %s held was not kept: %v", t.name, stats.Replaced))
	}
	if stats.Skipped > 0 {
		b.warn(fmt.Sprintf("%d of %d records were left out of the cache %s; %s", stats.Skipped, stats.Skipped+stats.Records, t.name, stats.Reason))
	}
	return nil
}

// registryStore is a cache in a registry.
type registryStore struct {
	client      *registry.Client
	credentials registry.Credentials
	ref         registry.Reference
}

var _ remote.Target = (*registryStore)(nil)

func (b *build) registryStore(ref string) (*registryStore, error) {
	if ref == "" {
		return nil, errors.New("ref=REGISTRY/NAME:TAG is missing")
	}
	r, err := registry.ParseReference(ref)
	return &registryStore{b.engine.cacheRegistry, b.credentials, r}, err
}

// Manifest makes a registryStore a remote.Store.
func (s *registryStore) Manifest(ctx context.Context, d blob.Digest) ([]byte, error) {
	ref := s.ref
	if !d.IsZero() {
		ref = registry.Reference{Host: s.ref.Host, Name: s.ref.Name, Digest: d}
	}
	_, data, err := s.client.Manifest(ctx, s.credentials, ref.String())
	return data, missing(err)
}

// Blob makes a registryStore a remote.Store.
func (s *registryStore) Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	r, err := s.client.FetchFrom(ctx, s.credentials, s.ref.Repository(), d, offset)
	return r, missing(err)
}

// missing says in the standard library's way that a registry does not have something.
func missing(err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// Put makes a registryStore a remote.Target.
func (s *registryStore) Put(ctx context.Context, d blob.Descriptor, origins []string, open func(context.Context) (io.ReadCloser, error)) error {
	_, err := s.client.Push(ctx, s.credentials, s.ref.Repository(), d, origins, open)
	return err
}

// Commit makes a registryStore a remote.Target. Registries know no conditions.
func (s *registryStore) Commit(ctx context.Context, d blob.Descriptor, manifest []byte, _ blob.Digest) (bool, error) {
	return false, s.client.PushManifest(ctx, s.credentials, s.ref.String(), d, manifest)
}
