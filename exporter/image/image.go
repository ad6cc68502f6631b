package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/layer"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// layersAtOnce is how many layers are looked for or made at the same time: enough
// that a download does not hold up what can be made meanwhile.
const layersAtOnce = 4

// Document is a manifest, index or config.
type Document struct {
	Desc ocispecs.Descriptor
	Data []byte
}

// Manifest is the image for one platform.
type Manifest struct {
	Document
	Config Document
	Layers []Layer
}

// Image is a result as an image: one manifest, or an index of several.
type Image struct {
	// Root is the manifest or the index.
	Root      Document
	Manifests []Manifest
	// Attestations are what is said of the manifests, where something is.
	Attestations []AttestationManifest
	// Index reports whether Root is an index.
	Index bool
}

// Response gives what exporters tell of an image.
func (i *Image) Response() map[string]string {
	resp := map[string]string{"containerimage.digest": i.Root.Desc.Digest.String()}
	if !i.Index {
		resp["containerimage.config.digest"] = i.Manifests[0].Config.Desc.Digest.String()
	}
	if b, err := json.Marshal(i.Root.Desc); err == nil {
		resp["containerimage.descriptor"] = base64.StdEncoding.EncodeToString(b)
	}
	return resp
}

// Documents gives what an image has beside its layers, each before what names it.
func (i *Image) Documents() []Document {
	var out []Document
	for _, m := range i.Manifests {
		out = append(out, m.Config, m.Document)
	}
	for _, a := range i.Attestations {
		out = append(out, a.documents()...)
	}
	if i.Index {
		out = append(out, i.Root)
	}
	return out
}

// keep gives an image's documents to who keeps them.
func (i *Image) keep(env exporter.Env) {
	if env.Keep == nil {
		return
	}
	for _, d := range i.Documents() {
		env.Keep(exporter.Document{MediaType: d.Desc.MediaType, Data: d.Data, Root: d.Desc.Digest == i.Root.Desc.Digest})
	}
}

// Assemble makes an image of r. It gives each layer to ready as soon as it can be
// read, in their order and one at a time, while later ones are still being made;
// a nil ready takes none. A layer that is in several images is given once.
func Assemble(ctx context.Context, env exporter.Env, o Options, r exporter.Result, p exporter.Progress, ready func(Layer) error) (*Image, error) {
	a, err := newAssembly(env, o, r)
	if err != nil {
		return nil, err
	}
	return a.run(ctx, p, ready)
}

// AssembleAt makes an image of r, and writes the first layer that has to be made
// where at says: it is Placed in the image then.
func AssembleAt(ctx context.Context, env exporter.Env, o Options, r exporter.Result, p exporter.Progress, at Place) (*Image, error) {
	a, err := newAssembly(env, o, r)
	if err != nil {
		return nil, err
	}
	if err := a.place(ctx, at); err != nil {
		return nil, err
	}
	return a.run(ctx, p, nil)
}

func newAssembly(env exporter.Env, o Options, r exporter.Result) (*assembly, error) {
	if len(r.Images) == 0 {
		return nil, errors.New("the build has no result to export")
	}
	annotations, err := o.Annotations.merge(r.Metadata)
	if err != nil {
		return nil, err
	}
	index := o.Index(r)
	if err := annotations.check(r, index, o.OCI); err != nil {
		return nil, err
	}
	a := &assembly{env: env, opts: o, annotations: annotations, result: r, layers: newLayers(env, &o)}
	if r.Came != nil {
		var once sync.Once
		var came map[blob.Digest]bool
		a.layers.came = func(ctx context.Context) map[blob.Digest]bool {
			once.Do(func() { came = r.Came(ctx) })
			return came
		}
	}
	return a, nil
}

// run finds or makes the layers, and composes the image.
func (a *assembly) run(ctx context.Context, p exporter.Progress, ready func(Layer) error) (*Image, error) {
	done := p.Step("exporting layers")
	found, err := a.findLayers(ctx, ready)
	done(err)
	if err != nil {
		return nil, err
	}
	img, err := a.compose(ctx, found, p)
	if err != nil {
		return nil, err
	}
	img.keep(a.env)
	if a.result.Assembled != nil {
		a.result.Assembled()
	}
	return img, nil
}

// compose gives the image that has those layers.
func (a *assembly) compose(ctx context.Context, found [][]Layer, p exporter.Progress) (*Image, error) {
	img := &Image{Index: a.opts.Index(a.result)}
	for i := range a.result.Images {
		m, err := a.manifest(i, found[i], p)
		if err != nil {
			return nil, err
		}
		img.Manifests = append(img.Manifests, m)
		if !img.Index {
			img.Root = m.Document
			return img, nil
		}
		said, err := a.attestations(ctx, i, m, p)
		if err != nil {
			return nil, err
		}
		if said != nil {
			img.Attestations = append(img.Attestations, *said)
		}
	}
	var err error
	img.Root, err = a.index(img, p)
	return img, err
}

// assembly is an image in the making.
type assembly struct {
	env         exporter.Env
	opts        Options
	annotations Annotations
	result      exporter.Result
	layers      *layers
}

// slot is a layer's place in the result.
type slot struct {
	at    *Layer
	chain cache.ChainID // that the layer is in
	layer cache.Layer
	clamp layer.Options
	done  chan struct{} // closed when at is set or found is false
	found bool
}

// findLayers gives the layers of each image.
func (a *assembly) findLayers(ctx context.Context, ready func(Layer) error) ([][]Layer, error) {
	found, slots, err := a.slots()
	if err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		finders, ctx := errgroup.WithContext(ctx)
		finders.SetLimit(layersAtOnce)
		for _, s := range slots {
			finders.Go(func() (err error) {
				defer close(s.done)
				if *s.at, err = a.layers.get(ctx, s.chain, s.layer, s.clamp); err != nil {
					return err
				}
				s.found = true
				return nil
			})
		}
		return finders.Wait()
	})
	if ready != nil {
		g.Go(func() error { return give(ctx, slots, ready) })
	}
	return found, g.Wait()
}

// slots gives a place for each layer of each image.
func (a *assembly) slots() (found [][]Layer, slots []*slot, err error) {
	found = make([][]Layer, len(a.result.Images))
	for i, img := range a.result.Images {
		chain, err := a.env.Cache.Layers(img.Root)
		if err != nil {
			return nil, nil, err
		}
		epoch, err := a.opts.epoch(a.result.Metadata, img.Name())
		if err != nil {
			return nil, nil, err
		}
		found[i] = make([]Layer, len(chain))
		for j, l := range chain {
			slots = append(slots, &slot{at: &found[i][j], done: make(chan struct{}), chain: img.Root, layer: l, clamp: a.opts.clamp(epoch)})
		}
	}
	return found, slots, nil
}

// give gives each layer to ready once, in their order.
func give(ctx context.Context, slots []*slot, ready func(Layer) error) error {
	given := map[blob.Digest]bool{}
	for _, s := range slots {
		select {
		case <-s.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !s.found {
			return nil // its finder says why
		}
		if given[s.at.Desc.Digest] {
			continue
		}
		given[s.at.Desc.Digest] = true
		if err := ready(*s.at); err != nil {
			return err
		}
	}
	return nil
}

// manifest completes the config of an image and writes its manifest.
func (a *assembly) manifest(i int, layers []Layer, p exporter.Progress) (Manifest, error) {
	img := a.result.Images[i]
	epoch, err := a.opts.epoch(a.result.Metadata, img.Name())
	if err != nil {
		return Manifest{}, err
	}
	config := a.opts.Config(img.Name())
	if config == nil {
		config = img.Config
	}
	if len(config) == 0 {
		config, err = DefaultConfig(img.Platform)
	} else {
		config, err = withPlatform(config, img.Platform)
	}
	if err != nil {
		return Manifest{}, err
	}
	infos := make([]layerInfo, len(layers))
	for j, l := range layers {
		infos[j] = layerInfo{diffID: l.DiffID, name: "created by kiln"}
		if infos[j].created, err = a.layers.created(l.ID); err != nil {
			return Manifest{}, fmt.Errorf("noting when a layer was made: %w", err)
		}
	}
	if config, err = completeConfig(config, img.BaseConfig, infos, epoch); err != nil {
		return Manifest{}, err
	}
	configType, manifestType := ocispecs.MediaTypeImageConfig, ocispecs.MediaTypeImageManifest
	if !a.opts.OCI {
		configType, manifestType = dockerConfig, dockerManifest
	}
	m := Manifest{Config: document(configType, config), Layers: layers}
	manifest := ocispecs.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   manifestType,
		Config:      m.Config.Desc,
		Layers:      make([]ocispecs.Descriptor, len(layers)),
		Annotations: a.annotations.of(onManifest, &img.Platform),
	}
	for j, l := range layers {
		manifest.Layers[j] = a.layerDescriptor(l)
	}
	data, err := json.MarshalIndent(manifest, "", "  ")
	if err != nil {
		return Manifest{}, fmt.Errorf("writing the manifest: %w", err)
	}
	m.Document = document(manifestType, data)
	platform := img.Platform
	m.Desc.Platform = &platform
	m.Desc.Annotations = a.annotations.of(onManifestDescriptor, &platform)
	p.Step("exporting manifest " + m.Desc.Digest.String())(nil)
	p.Step("exporting config " + m.Config.Desc.Digest.String())(nil)
	return m, nil
}

func (a *assembly) layerDescriptor(l Layer) ocispecs.Descriptor {
	d := ocispecs.Descriptor{
		MediaType: l.Desc.MediaType,
		Digest:    digest.Digest(l.Desc.Digest.String()),
		Size:      l.Desc.Size,
	}
	if !a.opts.OCI {
		d.MediaType = dockerMediaType(d.MediaType)
		return d
	}
	for k, v := range l.Desc.Annotations {
		// Notes of other builders about their own stores.
		if k == "containerd.io/uncompressed" || k == "buildkit/createdat" || strings.HasPrefix(k, "containerd.io/distribution.source.") {
			continue
		}
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[k] = v
	}
	return d
}

func (a *assembly) index(img *Image, p exporter.Progress) (Document, error) {
	idx := ocispecs.Index{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispecs.MediaTypeImageIndex,
		Annotations: a.annotations.of(onIndex, nil),
	}
	if !a.opts.OCI {
		idx.MediaType = dockerIndex
	}
	for _, m := range img.Manifests {
		idx.Manifests = append(idx.Manifests, m.Desc)
	}
	for _, m := range img.Attestations {
		idx.Manifests = append(idx.Manifests, m.Desc)
	}
	data, err := json.MarshalIndent(idx, "", "  ")
	if err != nil {
		return Document{}, fmt.Errorf("writing the index: %w", err)
	}
	d := document(idx.MediaType, data)
	d.Desc.Annotations = a.annotations.of(onIndexDescriptor, nil)
	p.Step("exporting manifest list " + d.Desc.Digest.String())(nil)
	return d, nil
}

func document(mediaType string, data []byte) Document {
	return Document{Data: data, Desc: ocispecs.Descriptor{
		MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data)),
	}}
}

// Names gives the names of an image in full, with host and tag: those of the
// attribute, where "*" stands for what the frontend names it.
func (o *Options) Names(metadata map[string][]byte) ([]string, error) {
	name := o.Name
	if given, ok := metadata["image.name"]; ok && name == "*" {
		name = string(given)
	}
	if name == "" {
		return nil, nil
	}
	var out []string
	for n := range strings.SplitSeq(name, ",") {
		ref, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return nil, fmt.Errorf("image name %q: %w", n, err)
		}
		out = append(out, reference.TagNameOnly(ref).String())
	}
	return out, nil
}
