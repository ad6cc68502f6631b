package kiln

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/containerd/platforms"
	dockerfileversion "github.com/moby/buildkit/frontend/dockerfile/version"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/provenance"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/worker/source"
)

// Provenance says what one image of a result was built from.
type Provenance struct {
	// ID is what the frontend calls the image's platform; Multi says that the image is
	// one of an index.
	ID    string
	Multi bool

	make func(exporter.Blobs) (any, string, error)
}

// Document gives the provenance as JSON, and the type of predicate that it is.
func (p Provenance) Document() (data []byte, kind string, err error) {
	predicate, kind, err := p.make(nil)
	if err != nil {
		return nil, "", err
	}
	data, err = json.MarshalIndent(predicate, "", "  ")
	return data, kind, err
}

// provenances gives that of each image, in full, for who keeps records of builds.
func (b *build) provenances(ctx context.Context, m *made) []Provenance {
	o := provenance.Options{Usage: true}
	if asked := b.attests.provenance; asked != nil {
		o.BuilderID = asked.BuilderID
	}
	var out []Provenance
	for i, image := range m.images {
		if !image.Root.IsScratch() {
			out = append(out, Provenance{ID: image.Name(), Multi: m.Index || len(m.images) > 1, make: b.provenance(ctx, m, i, o)})
		}
	}
	return out
}

// attestation gives the provenance of image i, which is made when an exporter asks.
func (b *build) attestation(ctx context.Context, m *made, i int, o provenance.Options) exporter.Attestation {
	make := b.provenance(ctx, m, i, o)
	kind := provenance.TypeV1
	if o.V02 {
		kind = provenance.TypeV02
	}
	return exporter.Attestation{
		Path: o.Filename, PredicateType: kind, InlineOnly: o.InlineOnly,
		Content: func(_ context.Context, blobs exporter.Blobs) ([]byte, error) {
			predicate, _, err := make(blobs)
			if err != nil {
				return nil, err
			}
			return json.Marshal(predicate)
		},
	}
}

// provenance gives a function that makes the predicate of image i. What the
// session knows is taken now; the function may be called when the build has ended.
func (b *build) provenance(ctx context.Context, m *made, i int, o provenance.Options) func(exporter.Blobs) (any, string, error) {
	pins := b.pins()
	run := provenance.Run{
		ID: string(b.session), Started: b.result.Started, BuilderPlatform: platforms.DefaultSpec(),
		DockerfileVersion: dockerfileversion.Version(),
	}
	layers := func(exporter.Blobs) func(llb.Edge) []ocispecs.Descriptor { return nil }
	if !o.Min {
		layers = b.layersOf(ctx, m)
	}
	image, root := m.images[i], m.edges[i] // the graph as policies had it
	var chains map[llb.Digest][]cache.ChainID
	if b.proxied {
		chains = b.engine.solver.Known(b.session, root)
		if root.Output == 0 && len(chains[root.Vertex.Digest()]) == 0 {
			chains[root.Vertex.Digest()] = []cache.ChainID{m.chains[i]}
		}
	}
	return func(blobs exporter.Blobs) (any, string, error) {
		run := run
		var err error
		if run.Environment, err = b.engine.provenanceEnv(); err != nil {
			return nil, "", err
		}
		c := &provenance.Capture{}
		c.Add(pins, root)
		b.fetched(c, root, chains)
		if err := b.request(c, m, image, pins); err != nil {
			return nil, "", err
		}
		run.Ended, run.Layers = b.ended(), layers(blobs)
		if o.Usage {
			run.Used, run.System = b.used.of, b.used.system.Now()
		}
		return c.Predicate(root, o, run)
	}
}

// ended gives when the build came to its end, the same whenever it is asked.
func (b *build) ended() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.result.Completed.IsZero() {
		b.result.Completed = b.engine.clock()
	}
	return b.result.Completed
}

// pins gives what the build's sources are pinned to.
func (b *build) pins() provenance.Pins {
	known := b.engine.solver.Pins(b.session)
	b.mu.Lock()
	edges := slices.Clone(b.edges)
	b.mu.Unlock()
	digests := map[llb.Digest]string{}
	for _, v := range llb.Walk(edges...) {
		if s := v.Op().GetSource(); s != nil {
			digests[v.Digest()] = source.PinDigest(s.Identifier, known[v.Digest()])
		}
	}
	return func(d llb.Digest) string { return digests[d] }
}

// request notes the request that an image came from, and what its frontend asked for.
func (b *build) request(c *provenance.Capture, m *made, image frontend.ResultImage, pins provenance.Pins) error {
	call := image.Call
	if call == nil {
		return errors.New("the image came from no request")
	}
	asked, reads := call.All()
	c.Add(pins, reads...)
	var images []provenance.Image
	for _, a := range asked {
		images = append(images, provenance.Image{Ref: a.Ref, Platform: a.Platform, Digest: a.Digest, Layout: a.Layout})
	}
	var all []ocispecs.Platform
	for _, i := range m.images {
		all = append(all, i.Platform)
	}
	c.AddOf(image.Platform, all, images)
	if call.Caller == nil && call.Frontend == "" {
		return nil // a graph, or a client's function: nobody compiled it
	}
	c.Frontend, c.Args = call.Frontend, provenance.Args(call.Opts)
	left := maxMakers
	c.Inputs = inputsOf(call, c, &left)
	if root := call.Root(); root != nil {
		args := provenance.Args(root.Opts)
		top := provenance.NewRequest(root.Frontend, args, c)
		top.Request.Inputs = inputsOf(root, c, &left)
		own := provenance.NewRequest(c.Frontend, c.Args, c)
		own.Request.Inputs = c.Inputs
		if (root.Frontend != "" || len(args) > 0) && !top.Equal(own) {
			c.Root = top
		}
	}
	return nil
}

// named is what a frontend is besides that has a name in BuildKit's API.
type named interface{ Name() string }

// call gives the build's own request, as provenances tell of it.
func (b *build) call(req frontend.Request) *frontend.Call {
	c := &frontend.Call{Opts: req.Opts, Inputs: req.Inputs}
	if n, ok := b.frontend.(named); ok {
		c.Frontend = n.Name()
	}
	return c
}
