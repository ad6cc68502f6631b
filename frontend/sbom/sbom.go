// Package sbom has a generator list what is in what a build made.
//
// A generator is an image. Its program finds the file system of an image, the core,
// in a folder, and leaves in-toto statements about it in another one. Extras are
// further file systems, each with a name: stages of a Dockerfile that the image is
// made of, and the context. A generator finds them beside each other in a third
// folder, and says of them what it likes. The protocol between builders and
// generators is BuildKit's.
//
// A generator's run is a step of the graph, so that it is cached as any other.
package sbom

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// Kind is what the request calls bills of materials among attestations.
const Kind = "sbom"

// PredicateType is what the statements of a generator are.
const PredicateType = "https://spdx.dev/Document"

// defaultGenerator is run where the user names none.
const defaultGenerator = "docker/buildkit-syft-scanner:stable-1"

// Where a generator finds what it is to read, and what it leaves.
const (
	coreName    = "sbom"
	coreFolder  = "/run/src/core/" + coreName
	extraFolder = "/run/src/extras"
	outFolder   = "/run/out/"
)

// Options say how contents are listed.
type Options struct {
	Image  string            // the generator's, in full
	Params map[string]string // what is handed on to it
	Pull   bool              // the registry is asked for the image in any case
}

// Parse reads what a request says of bills of materials. It gives nil where the
// request asks for none.
func Parse(opts map[string]string) (*Options, error) {
	attests, err := frontend.Attests(opts)
	if err != nil {
		return nil, err
	}
	fields, ok := attests[Kind]
	if !ok {
		return nil, nil
	}
	o := &Options{Image: defaultGenerator, Params: map[string]string{}, Pull: opts["image-resolve-mode"] == pb.AttrImageResolveModeForcePull}
	for k, v := range fields {
		if k == "generator" {
			o.Image = v
		} else {
			o.Params[k] = v
		}
	}
	if o.Image == "" {
		return nil, errors.New("sbom generator cannot be empty")
	}
	named, err := reference.ParseNormalizedNamed(o.Image)
	if err != nil {
		return nil, fmt.Errorf("failed to parse sbom generator %s: %w", o.Image, err)
	}
	o.Image = reference.TagNameOnly(named).String()
	return o, nil
}

// Generator is one that was found. It is safe for concurrent use.
type Generator struct {
	options *Options
	machine *pb.Platform
	root    llb.Edge
	args    []string
	env     []string
	dir     string
}

// Find finds the generator, which runs on the machine's own platform, whatever is
// built for.
func (o *Options) Find(ctx context.Context, b frontend.Bridge, machine ocispecs.Platform) (*Generator, error) {
	// It is no source of the image: the frontend did not ask for it.
	found, err := b.ResolveImage(frontend.WithCall(ctx, nil), o.Image, frontend.ResolveOptions{Platform: machine, Pull: o.Pull})
	if err != nil {
		return nil, fmt.Errorf("finding the generator of bills of materials: %w", err)
	}
	var image ocispecs.Image
	if err := json.Unmarshal(found.Config, &image); err != nil {
		return nil, fmt.Errorf("reading the config of %s: %w", o.Image, err)
	}
	g := &Generator{
		options: o,
		machine: &pb.Platform{OS: machine.OS, Architecture: machine.Architecture, Variant: machine.Variant},
		args:    slices.Concat(image.Config.Entrypoint, image.Config.Cmd),
		dir:     path.Join("/", image.Config.WorkingDir),
	}
	if len(g.args) == 0 {
		return nil, fmt.Errorf("scanner %s does not have cmd", o.Image)
	}
	g.env = append(slices.Clone(image.Config.Env), "BUILDKIT_SCAN_DESTINATION="+outFolder, "BUILDKIT_SCAN_SOURCE="+coreFolder)
	name, _, _ := strings.Cut(found.Ref, "@")
	v, err := llb.Source("docker-image://"+name+"@"+found.Digest, nil, llb.WithPlatform(g.machine))
	if err != nil {
		return nil, err
	}
	g.root = v.Output(0)
	return g, nil
}

// Target is what a generator is to look at.
type Target struct {
	ID     string // of the image's platform
	Core   llb.Edge
	Extras map[string]llb.Edge
	// IgnoreCache has the generator run though its result may be recorded.
	IgnoreCache bool
}

// Scan gives what the generator leaves of a target.
func (g *Generator) Scan(t Target) (frontend.Attestation, error) {
	env := slices.Clip(g.env)
	mounts := []llb.Mount{llb.Root(g.root), llb.Tmpfs("/tmp", 0), llb.Bind(t.Core, "", coreFolder)}
	if len(t.Extras) > 0 {
		env = append(env, "BUILDKIT_SCAN_SOURCE_EXTRAS="+extraFolder)
	}
	for _, name := range slices.Sorted(maps.Keys(t.Extras)) {
		mounts = append(mounts, llb.Bind(t.Extras[name], "", path.Join(extraFolder, coreName+"-"+name)))
	}
	for _, k := range slices.Sorted(maps.Keys(g.options.Params)) {
		env = append(env, "BUILDKIT_SCAN_"+k+"="+g.options.Params[k])
	}
	out := len(mounts)
	x := &llb.Exec{
		Meta:   &pb.Meta{Args: g.args, Env: env, Cwd: g.dir},
		Mounts: append(mounts, llb.BindWritable(llb.Edge{}, "", outFolder, true)),
	}
	v, err := x.Vertex(llb.WithPlatform(g.machine), llb.WithMeta(llb.Meta{
		Name:        fmt.Sprintf("[%s] generating sbom using %s", t.ID, g.options.Image),
		IgnoreCache: t.IgnoreCache,
	}))
	if err != nil {
		return frontend.Attestation{}, err
	}
	return frontend.Attestation{Root: v.Output(x.OutputOf(out)), Bundle: true, PredicateType: PredicateType, SBOMCore: coreName}, nil
}
