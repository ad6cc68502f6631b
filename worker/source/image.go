package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/registry"
)

// Mode says when a registry is asked what a tag means now. The values are those
// of BuildKit's image.resolvemode attribute.
type Mode string

const (
	// ModeDefault asks each time.
	ModeDefault Mode = "default"
	// ModePull asks each time.
	ModePull Mode = "pull"
	// ModeLocal takes what the tag meant when it was last asked for, if it was.
	ModeLocal Mode = "local"
)

// ParseMode reads an image.resolvemode attribute; empty is ModeDefault.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case "":
		return ModeDefault, nil
	case ModeDefault, ModePull, ModeLocal:
		return m, nil
	}
	return "", fmt.Errorf("image resolve mode %q is none of default, pull and local", s)
}

// Image is an image of one platform, resolved: everything about it is known, and
// none of its layers fetched.
type Image struct {
	// Ref is the reference, spelled out.
	Ref string
	// Digest is that of what Ref names: of an index, or of a manifest. It is the pin.
	Digest blob.Digest
	// Manifest is the manifest for the platform; its bytes are in Cache.Blobs.
	Manifest blob.Descriptor
	// Platform is what the image was made for, by its config.
	Platform ocispecs.Platform
	// Config is the image's config, as it was made.
	Config []byte

	layers       []imageLayer
	configDigest blob.Digest
}

// imageLayer is a layer as manifest and config together describe it.
type imageLayer struct {
	diff blob.Digest
	blob blob.Descriptor
}

// Images resolves and pulls images. It is safe for concurrent use.
type Images struct {
	cache    *cache.Cache
	registry *registry.Client
	tags     *cache.Bucket // what tags meant, see remember

	remote    Remote
	resolving singleflight.Group
	unpacking flights
	slots     *semaphore.Weighted // layers that are fetched at once
}

// ImagesOptions are the settings of Images; the zero value works.
type ImagesOptions struct {
	// Parallel is how many layers are fetched and unpacked at once; 0 is 6. More
	// than processors, since part of the time is spent waiting for the registry.
	Parallel int
	// Remote is asked for what no origin has; nil is nobody.
	Remote Remote
}

// Remote are the remote caches that running builds use.
type Remote interface {
	// Holds reports whether one of them lists a layer. Where such a layer cannot be
	// had it is gone, and no failure of the build: it can be built.
	Holds(id cache.LayerID) bool
	// Blob reads a blob from offset on, unverified. Nobody's wraps fs.ErrNotExist.
	Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error)
	// Passing gives a blob of a layer that one of them holds for those who need the
	// layer's files, which is not worth keeping: a copy of an image's layer, which takes
	// less to be unpacked than the layer's own, or that of a layer that no image has.
	Passing(l cache.Layer) (d blob.Descriptor, ok bool)
}

// NewImages makes the image source of a state folder.
func NewImages(c *cache.Cache, r *registry.Client, o ImagesOptions) *Images {
	if o.Parallel <= 0 {
		o.Parallel = 6
	}
	s := &Images{cache: c, registry: r, tags: c.Bucket("image tags"), remote: o.Remote, slots: semaphore.NewWeighted(int64(o.Parallel))}
	s.unpacking.m = make(map[cache.LayerID]*flight)
	return s
}

// Resolve finds the image that ref names for a platform (the zero Platform is this
// machine's), whose config and manifests it fetches unless they are here. A reference by digest whose manifests
// are here, and came from its repository, needs no network.
func (s *Images) Resolve(ctx context.Context, cred registry.Credentials, ref string, p ocispecs.Platform, mode Mode) (Image, error) {
	r, err := registry.ParseReference(ref)
	if err != nil {
		return Image{}, err
	}
	if p.OS == "" && p.Architecture == "" {
		p = platforms.DefaultSpec()
	}
	img := Image{Ref: r.String()}
	d, data, err := s.named(ctx, cred, r, mode)
	if err != nil {
		return Image{}, err
	}
	err = img.describe(d, data, p, func(d blob.Descriptor) ([]byte, error) { return s.fetch(ctx, cred, r, d) })
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", r, err)
	}
	return img, nil
}

// describe fills an image in, from the bytes of what its reference names and what
// fetch gives of the manifests and the config below that.
func (img *Image) describe(d blob.Descriptor, data []byte, p ocispecs.Platform, fetch fetchFunc) error {
	img.Digest = d.Digest
	m, d, err := findManifest(d, data, p, fetch)
	if err != nil {
		return err
	}
	img.Manifest = d
	return img.readConfig(m, fetch)
}

// fetchFunc gives the bytes of a manifest or config.
type fetchFunc func(d blob.Descriptor) ([]byte, error)

// named gives the descriptor and bytes of what r names.
func (s *Images) named(ctx context.Context, cred registry.Credentials, r registry.Reference, mode Mode) (blob.Descriptor, []byte, error) {
	if !r.Digest.IsZero() {
		if s.vouched(r, r.Digest) {
			if d, data, err := s.kept(r.Digest); err == nil {
				return d, data, nil
			}
		}
		d, data, err := s.fetchNamed(ctx, cred, r)
		if err == nil {
			s.vouch(r, r.Digest)
		}
		return d, data, err
	}
	known, ok := s.recall(r)
	if ok {
		d, data, err := s.kept(known)
		if ok = err == nil; ok && mode == ModeLocal {
			s.vouch(r, known)
			return d, data, nil
		}
	}
	if !ok {
		// Nothing of it is here: one request instead of two.
		d, data, err := s.fetchNamed(ctx, cred, r)
		if err == nil {
			s.remember(r, d.Digest)
		}
		return d, data, err
	}
	d, err := s.registry.Resolve(ctx, cred, r.String())
	if err != nil {
		return d, nil, err
	}
	_, data, err := s.kept(d.Digest)
	if err != nil {
		if data, err = s.fetch(ctx, cred, r, d); err != nil {
			return d, nil, err
		}
	}
	s.remember(r, d.Digest)
	return d, data, nil
}

// fetchNamed fetches what r names. Builds that ask for it at the same time share
// one request, if they log in the same way.
func (s *Images) fetchNamed(ctx context.Context, cred registry.Credentials, r registry.Reference) (blob.Descriptor, []byte, error) {
	type result struct {
		d    blob.Descriptor
		data []byte
	}
	fetch := func() (any, error) {
		d, data, err := s.registry.Manifest(ctx, cred, r.String())
		if err != nil {
			return nil, err
		}
		if err := checkManifest(d, data); err != nil {
			return nil, fmt.Errorf("image %s: %w", r, err)
		}
		return result{d, data}, s.cache.Blobs().Put(ctx, d.Digest, d.Size, bytes.NewReader(data))
	}
	v, err, shared := s.resolving.Do(fmt.Sprintf("%s %p", r, cred), fetch)
	if err != nil && shared && ctx.Err() == nil {
		v, err = fetch() // the one that asked may have been cancelled
	}
	if err != nil {
		return blob.Descriptor{}, nil, err
	}
	res := v.(result)
	return res.d, res.data, nil
}

// fetch gives the bytes of a manifest or config, from here or from r's repository.
func (s *Images) fetch(ctx context.Context, cred registry.Credentials, r registry.Reference, d blob.Descriptor) ([]byte, error) {
	if d.Size < 0 || d.Size > registry.MaxManifest {
		return nil, fmt.Errorf("%s has %d bytes, more than the %d that manifests and configs may have", d.Digest, d.Size, registry.MaxManifest)
	}
	if data, err := s.read(d.Digest); err == nil {
		return data, nil
	}
	body, err := s.registry.Fetch(ctx, cred, r.String(), d)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	return data, s.cache.Blobs().Put(ctx, d.Digest, d.Size, bytes.NewReader(data))
}

// kept gives a manifest that is here already.
func (s *Images) kept(d blob.Digest) (blob.Descriptor, []byte, error) {
	data, err := s.read(d)
	if err != nil {
		return blob.Descriptor{}, nil, err
	}
	return blob.Descriptor{Digest: d, Size: int64(len(data))}, data, nil
}

// read gives the bytes of a small blob that is here.
func (s *Images) read(d blob.Digest) ([]byte, error) {
	r, size, err := s.cache.Blobs().Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > registry.MaxManifest {
		return nil, fmt.Errorf("blob %s of %d bytes is no manifest: %w", d, size, fs.ErrNotExist)
	}
	data, err := io.ReadAll(io.LimitReader(r, registry.MaxManifest))
	if err == nil && sha256.Sum256(data) != d {
		return nil, s.drop(d)
	}
	return data, err
}

// drop removes a blob that was damaged behind kiln's back, so that it is fetched
// again. The error says that it is not here.
func (s *Images) drop(d blob.Digest) error {
	if err := s.cache.Blobs().Drop(d); err != nil {
		return fmt.Errorf("what was damaged: %w", err)
	}
	return fmt.Errorf("blob %s was damaged: %w", d, fs.ErrNotExist)
}

// remember notes what a tag meant.
func (s *Images) remember(r registry.Reference, d blob.Digest) {
	// Losing it costs a request, and offline a clear error.
	_ = s.tags.Put([]byte(r.String()), d[:])
	s.vouch(r, d)
}

// vouch notes that a repository gave what has that digest. Who knows a digest can
// have what is here from a repository that gave it, and from no other: what one
// login was good for is not for all.
func (s *Images) vouch(r registry.Reference, d blob.Digest) {
	if !s.vouched(r, d) {
		_ = s.tags.Put(voucher(r, d), d[:]) // losing it costs a request
	}
}

func (s *Images) vouched(r registry.Reference, d blob.Digest) bool {
	_, ok := s.tags.Get(voucher(r, d))
	return ok
}

func voucher(r registry.Reference, d blob.Digest) []byte {
	return []byte(r.Repository() + "@" + d.String())
}

// recall gives what a tag meant when it was last asked for.
func (s *Images) recall(r registry.Reference) (d blob.Digest, ok bool) {
	v, ok := s.tags.Get([]byte(r.String()))
	if !ok || len(v) != len(d) {
		return d, false
	}
	return blob.Digest(v), true
}

// Chain puts an image's layers into the cache, unfetched, and gives the chain
// that they make and the image's config. limit is how many layers count, from the
// bottom; 0 is all.
func (s *Images) Chain(ctx context.Context, img Image, limit int) (cache.ChainID, []byte, error) {
	r, err := registry.ParseReference(img.Ref)
	if err != nil {
		return cache.ChainID{}, nil, err
	}
	id, err := img.chain(s.cache, limit, []string{r.Repository()})
	if n := len(img.layers); err == nil && n > 0 && (limit == 0 || limit == n) {
		err = s.cache.KeepDocuments(cache.ImageLayerID(img.layers[n-1].diff), img.Digest, img.Manifest.Digest, img.configDigest)
	}
	if err != nil {
		return id, nil, fmt.Errorf("image %s: %w", img.Ref, err)
	}
	return id, img.Config, ctx.Err()
}

// chain puts the layers, which the origins have, into the cache.
func (img *Image) chain(c *cache.Cache, limit int, origins []string) (id cache.ChainID, err error) {
	layers, err := img.limited(limit)
	if err != nil {
		return id, err
	}
	for _, l := range layers {
		layer := cache.Layer{
			ID:      cache.ImageLayerID(l.diff),
			DiffID:  l.diff,
			Blobs:   []blob.Descriptor{l.blob},
			Origins: origins,
		}
		if err := c.PutLayer(layer); err != nil {
			return id, err
		}
		if id, err = c.Extend(id, layer.ID); err != nil {
			return id, err
		}
	}
	return id, nil
}

// Blobs gives the digests of the blobs that the image's layers came as.
func (img *Image) Blobs() []blob.Digest {
	var out []blob.Digest
	for _, l := range img.layers {
		out = append(out, l.blob.Digest)
	}
	return out
}

// limited gives the lowest layers; a limit of 0 is all.
func (img *Image) limited(limit int) ([]imageLayer, error) {
	switch {
	case limit < 0 || limit > len(img.layers):
		return nil, fmt.Errorf("it has %d layers, and the limit is %d", len(img.layers), limit)
	case limit == 0:
		limit = len(img.layers)
	}
	return img.layers[:limit], nil
}

// readConfig fetches the config of a manifest and fills in what it says.
func (img *Image) readConfig(m manifest, fetch fetchFunc) error {
	data, err := fetch(m.Config)
	if err != nil {
		return fmt.Errorf("its config: %w", err)
	}
	var c ocispecs.Image
	if err := json.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("its config %s cannot be read: %w", m.Config.Digest, err)
	}
	img.Config, img.Platform, img.configDigest = data, c.Platform, m.Config.Digest
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return fmt.Errorf("its manifest has %d layers and its config %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	for i, l := range m.Layers {
		diff, err := blob.Parse(c.RootFS.DiffIDs[i].String())
		if err != nil {
			return fmt.Errorf("its config: diff id %d: %w", i, err)
		}
		if err := l.check(); err != nil {
			return fmt.Errorf("its layer %d: %w", i, err)
		}
		d := l.Descriptor
		d.Annotations = nil // of no use here, and kept for each layer
		img.layers = append(img.layers, imageLayer{diff, d})
	}
	return nil
}

var errNoConfig = errors.New("it is no container image")
