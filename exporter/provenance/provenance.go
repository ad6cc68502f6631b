package provenance

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/kiln-build/kiln/exporter/attest"
	"github.com/kiln-build/kiln/llb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	packageurl "github.com/package-url/packageurl-go"
)

// Options say what a predicate is to hold. The zero value is version 1 in mode "max".
type Options struct {
	V02          bool
	Min          bool
	Reproducible bool   // the user says so
	BuilderID    string // names whoever runs the builder
	Complete     bool   // sources that cannot be named are an error
	Usage        bool   // say what the steps and the machine used
	// InlineOnly and Filename are for whoever writes the predicate.
	InlineOnly bool
	Filename   string
}

// Compatibility is the version of BuildKit's behaviour that results follow. Older
// ones are asked for by who wants the digests that an older BuildKit gives, which
// kiln does not make.
const Compatibility = 30

// defaultFilename is what a provenance is called in a folder.
const defaultFilename = "provenance.json"

// ParseOptions reads the fields of the attribute "attest:provenance".
func ParseOptions(fields map[string]string) (Options, error) {
	o := Options{Filename: defaultFilename}
	for k, v := range fields {
		if err := o.set(k, v); err != nil {
			return o, fmt.Errorf("attest:provenance: %w", err)
		}
	}
	return o, nil
}

func (o *Options) set(k, v string) (err error) {
	switch k {
	case "version":
		switch v {
		case "v1":
		case "v0.2":
			o.V02 = true
		default:
			return fmt.Errorf("invalid provenance SLSA version: %s", v)
		}
	case "mode":
		switch v {
		case "max", "full":
		case "min":
			o.Min = true
		default:
			return fmt.Errorf("invalid mode %q", v)
		}
	case "reproducible":
		o.Reproducible, err = strconv.ParseBool(v)
	case "complete-materials":
		o.Complete, err = strconv.ParseBool(v)
	case "capture-usage":
		o.Usage, _ = strconv.ParseBool(v) // anything else is no, as with BuildKit
	case "inline-only":
		o.InlineOnly, _ = strconv.ParseBool(v)
	case "builder-id":
		o.BuilderID = v
	case "filename":
		o.Filename = v
	}
	if err != nil {
		return fmt.Errorf("%s=%s: want true or false", k, v)
	}
	return nil
}

// Run is what is known of the build beside what it used.
type Run struct {
	ID              string
	Started, Ended  time.Time
	BuilderPlatform ocispecs.Platform
	// Environment stands beside the builder's platform.
	Environment map[string]any
	// DockerfileVersion is that of the frontend, where it is the builder's own.
	DockerfileVersion string
	// Used gives what a step has used, and System what the machine has, in BuildKit's
	// form; nil is not known.
	Used   func(llb.Digest) any
	System any
	// Layers give the blobs of an output of a vertex, where they are known.
	Layers func(llb.Edge) []ocispecs.Descriptor
}

// Predicate makes the predicate of an image of which e is the graph, and its type.
func (c *Capture) Predicate(e llb.Edge, o Options, run Run) (predicate any, kind string, err error) {
	c.tidy()
	materials, err := c.materials()
	if err != nil {
		return nil, "", err
	}
	incomplete := c.Unknown || len(c.Locals) > 0 || len(c.Missed) > 0
	if o.Complete && incomplete {
		return nil, "", c.incomplete()
	}
	p := &Predicate{}
	p.BuildDefinition.BuildType = buildTypeV1
	p.BuildDefinition.ResolvedDependencies = materials
	vcs := c.external(&p.BuildDefinition.ExternalParameters)
	in := &p.BuildDefinition.InternalParameters
	in.BuilderPlatform, in.Environment = platforms.Format(platforms.Normalize(run.BuilderPlatform)), run.Environment
	if c.Frontend == "dockerfile.v0" {
		in.DockerfileVersion = run.DockerfileVersion
	}
	p.RunDetails.Builder.ID = o.BuilderID
	m := &Metadata{
		InvocationID: run.ID, StartedOn: &run.Started, FinishedOn: &run.Ended, Reproducible: o.Reproducible,
		Hermetic:     !incomplete && !c.Network,
		Completeness: CompletenessOf1{Request: c.Frontend != "", ResolvedDependencies: !incomplete},
	}
	m.BuildKit.VCS = vcs
	if c.Proxied {
		m.BuildKit.Network = &Network{Mode: "proxy"}
		if len(c.Missed) > 0 {
			m.BuildKit.Network.Proxy = &ProxyNetwork{Incomplete: c.Missed}
		}
	}
	p.RunDetails.Metadata = m
	if o.Min {
		if p.BuildDefinition.ExternalParameters.Request.private() {
			m.Completeness.Request = false
		}
	} else {
		if in.BuildConfig, m.BuildKit.Source, err = graph(e); err != nil {
			return nil, "", err
		}
		m.BuildKit.Layers = layers(e, in.BuildConfig, run.Layers)
		if o.Usage && run.Used != nil {
			in.BuildConfig.addUsage(e, run.Used)
		}
	}
	if o.Usage {
		m.BuildKit.SystemUsage = run.System
	}
	if o.V02 {
		return p.V02(), TypeV02, nil
	}
	return p, TypeV1, nil
}

// external fills what the user said, and gives what of it is about version control.
func (c *Capture) external(out *ExternalParameters) (vcs map[string]string) {
	own := NewRequest(c.Frontend, c.Args, c)
	out.ConfigSource, out.Request = own.ConfigSource, *own.Request
	out.Request.Compatibility = Compatibility
	for k, v := range out.Request.Args {
		if name, ok := strings.CutPrefix(k, "vcs:"); ok {
			delete(out.Request.Args, k)
			if v != "" {
				if vcs == nil {
					vcs = map[string]string{}
				}
				vcs[name] = v
			}
		}
	}
	out.Request.Secrets, out.Request.SSH = ids(c.Secrets), ids(c.SSH)
	for _, l := range c.Locals {
		out.Request.Locals = append(out.Request.Locals, Local{l})
	}
	out.Request.Inputs, out.Request.Root = cloneAll(c.Inputs), c.Root.clone()
	return vcs
}

// materials names the sources.
func (c *Capture) materials() ([]Material, error) {
	var out []Material
	for _, i := range c.Images {
		uri, err := attest.PURL(purlKind(i.Layout), i.Ref, i.Platform)
		if err != nil {
			return nil, err
		}
		out = append(out, Material{uri, digestSet(i.Digest)})
	}
	for _, b := range c.Blobs {
		m, err := b.material(packageurl.Qualifier{Key: "ref_type", Value: "blob"})
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	for _, g := range c.Git {
		out = append(out, Material{g.URL, commitDigest(g.Commit)})
		if g.Bundle == nil {
			continue
		}
		m, err := g.Bundle.material(packageurl.Qualifier{Key: "ref_type", Value: "bundle"}, packageurl.Qualifier{Key: "vcs_url", Value: g.URL})
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	for _, h := range c.HTTP {
		out = append(out, Material{h.URL, digestSet(h.Digest)})
	}
	return out, nil
}

// purlKind is the type of the package URL of an image, or of a part of one.
func purlKind(layout bool) string {
	if layout {
		return attest.PURLOCI
	}
	return attest.PURLDocker
}

// material names a blob.
func (b *Blob) material(as ...packageurl.Qualifier) (Material, error) {
	uri, err := attest.PURL(purlKind(b.Layout), b.Ref, nil, as...)
	return Material{uri, digestSet(b.Digest)}, err
}

// maxLayers bounds the blobs that layers gives. Each step has those of all below it,
// so that they grow with the square of the steps: looking up those of 1,500 took a
// daemon 20 s, and a statement of so many is read by nobody.
const maxLayers = 20_000

// layers gives the blobs of each step's outputs, as far as they are known, and up to
// maxLayers, from the sources up.
func layers(e llb.Edge, c *BuildConfig, known func(llb.Edge) []ocispecs.Descriptor) map[string][][]ocispecs.Descriptor {
	if known == nil {
		return nil
	}
	var out map[string][][]ocispecs.Descriptor
	seen := map[string]bool{}
	total := 0
	note := func(at llb.Edge) {
		if total > maxLayers {
			return
		}
		key := fmt.Sprintf("%s:%d", c.DigestMapping[at.Vertex.Digest().String()], at.Output)
		if seen[key] {
			return
		}
		seen[key] = true
		if blobs := known(at); len(blobs) > 0 {
			total += len(blobs)
			if out == nil {
				out = map[string][][]ocispecs.Descriptor{}
			}
			out[key] = append(out[key], blobs)
		}
	}
	for _, v := range llb.Walk(e) {
		for _, in := range v.Inputs() {
			note(in)
		}
	}
	if !e.IsScratch() {
		note(e)
	}
	return out
}
