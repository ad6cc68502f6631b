package kiln

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/exporter/image"
	"github.com/kiln-build/kiln/exporter/layer"
	"github.com/kiln-build/kiln/request"
)

// cacheSource is a cache that a build reads.
type cacheSource struct {
	name   string
	store  remote.Store
	origin string
	verify []ed25519.PublicKey // none takes all
}

// cacheTarget is a cache that a build writes.
type cacheTarget struct {
	name        string
	store       remote.Target // nil for an inline cache
	options     image.Options
	aside       layer.Method // of layers that the build's result does not have
	copies      bool         // of the layers of base images
	envelope    remote.Envelope
	max, mounts bool
	sign        ed25519.PrivateKey // nil signs nothing
	parallel    int
	timeout     time.Duration
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
	who := namer{here: r.Session == nil, keys: r.Session == nil || r.KeyFiles}
	for _, from := range r.CacheFrom {
		s, err := b.cacheSources(from, who)
		if err != nil {
			return c, fmt.Errorf("cache-from type=%s: %w", from.Type, err)
		}
		c.sources = append(c.sources, s...)
	}
	for _, to := range r.CacheTo {
		t, err := b.cacheTargets(to, who)
		if err != nil {
			return c, fmt.Errorf("cache-to type=%s: %w", to.Type, err)
		}
		for _, t := range t {
			c.inline = c.inline || t.store == nil
			c.targets = append(c.targets, t)
		}
	}
	return c, nil
}

// namer is who names a cache: on this machine (here), or so near that files of keys on
// it may be named (keys).
type namer struct{ here, keys bool }

// attrs takes attributes one after the other; what is left is not known.
type attrs map[string]string

func (a attrs) take(name string) string {
	v := a[name]
	delete(a, name)
	return v
}

// first takes several names of one attribute; the first that says something counts.
func (a attrs) first(names ...string) (value string) {
	for _, n := range names {
		if v := a.take(n); value == "" {
			value = v
		}
	}
	return value
}

// or takes an attribute that may be empty.
func (a attrs) or(name, otherwise string) string {
	if v, ok := a[name]; ok {
		delete(a, name)
		return v
	}
	return otherwise
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

// names takes the names of caches that an attribute lists.
func (a attrs) names() ([]string, error) {
	names := strings.Split(a.or("name", "main"), ";")
	for i, n := range names {
		if names[i] = strings.TrimSpace(n); names[i] == "" {
			return nil, errors.New("name: want names with semicolons between them")
		}
	}
	return names, nil
}

func (a attrs) duration(name string, otherwise time.Duration) (time.Duration, error) {
	v := a.take(name)
	if v == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s=%s: want a time like 24h or 90s", name, v)
	}
	return d, nil
}

// patience is how long a cache's server may stand still.
func (a attrs) patience() (time.Duration, error) { return a.duration("patience", cachePatience) }

func (a attrs) end() error {
	for _, name := range slices.Sorted(maps.Keys(a)) {
		return fmt.Errorf("unknown attribute %s", name)
	}
	return nil
}

// cacheSources gives the caches that one entry stands for.
func (b *build) cacheSources(from RemoteCache, who namer) ([]cacheSource, error) {
	a := attrs(maps.Clone(from.Attrs))
	keys, err := b.verifyKeys(a, who)
	if err != nil {
		return nil, err
	}
	sources, err := b.openSources(from.Type, a, who.here)
	if err != nil {
		return nil, err
	}
	for i := range sources {
		sources[i].verify = keys
	}
	// What a cache is written with, in lists that are used for both.
	a.take("mode")
	return sources, a.end()
}

func (b *build) openSources(kind string, a attrs, here bool) ([]cacheSource, error) {
	switch kind {
	case "registry":
		store, err := b.registryStore(a)
		if err != nil {
			return nil, err
		}
		return []cacheSource{{name: store.ref.String(), store: store, origin: store.ref.Repository()}}, nil
	case "local":
		var d blob.Digest
		if v := a.take("digest"); v != "" {
			var err error
			if d, err = blob.Parse(v); err != nil {
				return nil, err
			}
		}
		dir := a.take("src")
		store, err := b.cacheFolder(dir, "src", a.take("tag"), d, here)
		return []cacheSource{{name: dir, store: store}}, err
	}
	servers, err := cacheServers(kind, a, here)
	if err == nil && len(servers) == 0 {
		err = errors.New("unknown type; the types are " + strings.Join(request.CacheTypes, ", "))
	}
	var out []cacheSource
	for _, s := range servers {
		out = append(out, cacheSource{name: s.name, store: s.store})
	}
	return out, err
}

// cacheTargets gives the caches that one entry stands for.
func (b *build) cacheTargets(to RemoteCache, who namer) ([]cacheTarget, error) {
	a := attrs(maps.Clone(to.Attrs))
	targets, err := b.openTargets(to.Type, a, who.here)
	if err != nil {
		return nil, err
	}
	var t cacheTarget // what is said of all of them
	inline := targets[0].store == nil
	if t.sign, err = b.signKey(a, who, inline); err != nil {
		return nil, err
	}
	if err := t.set(a, inline); err != nil {
		return nil, err
	}
	if t.envelope != remote.Image && to.Type != "registry" && to.Type != "local" {
		return nil, errors.New("image-manifest=false: caches in registries and folders only have other forms")
	}
	for i := range targets {
		o := &targets[i]
		o.envelope = t.envelope
		o.options, o.aside, o.copies, o.max, o.mounts, o.sign, o.ignoreError = t.options, t.aside, t.copies, t.max, t.mounts, t.sign, t.ignoreError
	}
	return targets, a.end()
}

func (b *build) openTargets(kind string, a attrs, here bool) ([]cacheTarget, error) {
	switch kind {
	case "registry":
		store, err := b.registryStore(a)
		if err != nil {
			return nil, err
		}
		return []cacheTarget{{name: store.ref.String(), store: store}}, nil
	case "local":
		dir := a.take("dest")
		store, err := b.cacheFolder(dir, "dest", a.take("tag"), blob.Digest{}, here)
		if err != nil {
			return nil, err
		}
		if reset, err := a.bool("reset", false); err != nil || reset && here {
			return nil, errors.Join(err, errors.New("reset=true: remove the folder instead"))
		} // a client that asks for it empties its folder itself
		return []cacheTarget{{name: dir, store: store}}, nil
	case "inline":
		return []cacheTarget{{name: "the image's config"}}, nil
	}
	servers, err := cacheServers(kind, a, here)
	switch {
	case err != nil:
		return nil, err
	case len(servers) == 0:
		return nil, errors.New("unknown type; the types are inline, " + strings.Join(request.CacheTypes, ", "))
	case kind == "gha":
		return servers[:1], nil // the job's own branch; it may write no other
	}
	return servers, nil
}

// set reads the attributes that all types of caches have.
func (t *cacheTarget) set(a attrs, inline bool) (err error) {
	switch mode := a.take("mode"); mode {
	case "", "min":
	case "max":
		if t.max = true; inline {
			return errors.New("mode=max: an inline cache has the layers of the image and no others")
		}
	default:
		return fmt.Errorf("mode=%s: want min or max", mode)
	}
	if t.ignoreError, err = a.bool("ignore-error", true); err != nil {
		return err
	}
	if t.mounts, err = a.bool("mounts", false); err != nil {
		return err
	}
	if inline && t.mounts {
		return errors.New("mounts=true: an inline cache has no cache mounts")
	}
	oci, err := a.bool("oci-mediatypes", true)
	if err != nil {
		return err
	}
	manifest, err := a.bool("image-manifest", oci)
	switch {
	case err != nil:
		return err
	case manifest && !oci:
		return errors.New("oci-mediatypes=false: image manifests of caches are OCI's; image-manifest=false has Docker's types")
	case !manifest && oci:
		t.envelope = remote.Index
	case !manifest:
		t.envelope = remote.List
	}
	layers := map[string]string{}
	if !oci {
		layers["oci-mediatypes"] = "false"
	}
	named := false
	for _, name := range []string{"compression", "compression-level", "force-compression"} {
		if v := a.take(name); v != "" {
			layers[name], named = v, true
		}
	}
	if t.options, err = image.ParseOptions(layers); err != nil {
		return err
	}
	// Nobody but kiln reads what no image has, and a runner that needs it inflates zstd in a
	// quarter of the time. The other envelopes are for old registries, which may not take it.
	zstd := !named && t.envelope == remote.Image
	if t.aside = t.options.Method; zstd {
		t.aside.Compression = layer.Zstd
	}
	t.copies, err = a.bool("copies", zstd && t.max)
	if err == nil && t.copies && inline {
		err = errors.New("copies=true: an inline cache has the layers of the image and no others")
	}
	return err
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
