package kiln

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/exporter/attest"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// defaultGenerator is the image that lists what is in an image, where the user
// names none.
const defaultGenerator = "docker/buildkit-syft-scanner:stable-1"

// What the protocol between builders and generators says: the generator reads the
// file system below one folder and leaves statements in another one.
const (
	scanSource      = "/run/src/core/sbom"
	scanDestination = "/run/out/"
	scanCore        = "sbom"
)

// scanArgs are build arguments that ask for more to be scanned than the image.
var scanArgs = []string{"BUILDKIT_SBOM_SCAN_STAGE", "BUILDKIT_SBOM_SCAN_CONTEXT"}

func isFalse(v string) bool {
	on, err := strconv.ParseBool(v)
	return v == "" || err == nil && !on
}

// sbomOptions say how the contents of images are listed.
type sbomOptions struct {
	generator string // in full
	params    map[string]string
	noCache   bool
	pull      bool
}

// parseSBOM reads the fields of the attribute "attest:sbom".
func parseSBOM(fields, attrs map[string]string) (*sbomOptions, error) {
	o := &sbomOptions{generator: defaultGenerator, params: map[string]string{}}
	for k, v := range fields {
		if k == "generator" {
			o.generator = v
		} else {
			o.params[k] = v
		}
	}
	if o.generator == "" {
		return nil, errors.New("sbom generator cannot be empty")
	}
	for _, arg := range scanArgs {
		// A list of stages is as good as "true".
		if v, ok := attrs["build-arg:"+arg]; ok && !isFalse(v) {
			return nil, fmt.Errorf("the build argument %s=%s is not supported by kiln: what the build made is scanned, and nothing else", arg, v)
		}
	}
	named, err := reference.ParseNormalizedNamed(o.generator)
	if err != nil {
		return nil, fmt.Errorf("failed to parse sbom generator %s: %w", o.generator, err)
	}
	o.generator = reference.TagNameOnly(named).String()
	filter, given := attrs["no-cache"]
	o.noCache = given && filter == ""
	o.pull = attrs["image-resolve-mode"] == "pull"
	return o, nil
}

// scan gives the images with a bill of materials each, which a generator makes,
// unless the frontend brought one.
func (b *build) scan(ctx context.Context, images []frontend.ResultImage) ([]frontend.ResultImage, error) {
	for _, image := range images {
		for _, a := range image.Attestations {
			if a.PredicateType == attest.SPDX {
				return images, nil
			}
		}
	}
	o := b.attests.sbom
	machine := platforms.Normalize(platforms.DefaultSpec())
	// The generator is no source of the image: it is not asked for in its frontend's name.
	found, err := b.bridge().ResolveImage(frontend.WithCall(ctx, nil), o.generator, frontend.ResolveOptions{Platform: machine, Pull: o.pull})
	if err != nil {
		return nil, fmt.Errorf("finding the generator of bills of materials: %w", err)
	}
	s := scanner{o: o, machine: machine}
	if err := json.Unmarshal(found.Config, &s.config); err != nil {
		return nil, fmt.Errorf("reading the config of %s: %w", o.generator, err)
	}
	if s.args = append(slices.Clone(s.config.Config.Entrypoint), s.config.Config.Cmd...); len(s.args) == 0 {
		return nil, fmt.Errorf("scanner %s does not have cmd", o.generator)
	}
	name, _, _ := strings.Cut(found.Ref, "@")
	v, err := llb.Source("docker-image://"+name+"@"+found.Digest, nil, llb.WithPlatform(&pb.Platform{
		OS: machine.OS, Architecture: machine.Architecture, Variant: machine.Variant,
	}))
	if err != nil {
		return nil, err
	}
	s.root = v.Output(0)
	out := slices.Clone(images)
	for i := range out {
		if out[i].Root.IsScratch() {
			continue
		}
		bundle, err := s.step(out[i])
		if err != nil {
			return nil, err
		}
		out[i].Attestations = append(slices.Clone(out[i].Attestations), bundle)
	}
	return out, nil
}

// scanner makes the steps that run a generator.
type scanner struct {
	o       *sbomOptions
	machine ocispecs.Platform
	config  ocispecs.Image
	args    []string
	root    llb.Edge
}

// step gives what the generator leaves of an image.
func (s *scanner) step(image frontend.ResultImage) (frontend.Attestation, error) {
	env := append(slices.Clone(s.config.Config.Env), "BUILDKIT_SCAN_DESTINATION="+scanDestination, "BUILDKIT_SCAN_SOURCE="+scanSource)
	for _, k := range slices.Sorted(maps.Keys(s.o.params)) {
		env = append(env, "BUILDKIT_SCAN_"+k+"="+s.o.params[k])
	}
	x := &llb.Exec{
		Meta: &pb.Meta{Args: s.args, Env: env, Cwd: path.Join("/", s.config.Config.WorkingDir)},
		Mounts: []llb.Mount{
			llb.Root(s.root), llb.Tmpfs("/tmp", 0), llb.Bind(image.Root, "", scanSource),
			llb.BindWritable(llb.Edge{}, "", scanDestination, true),
		},
	}
	v, err := x.Vertex(
		llb.WithPlatform(&pb.Platform{OS: s.machine.OS, Architecture: s.machine.Architecture, Variant: s.machine.Variant}),
		llb.WithMeta(llb.Meta{
			Name:        fmt.Sprintf("[%s] generating sbom using %s", platforms.FormatAll(image.Platform), s.o.generator),
			IgnoreCache: s.o.noCache,
		}))
	if err != nil {
		return frontend.Attestation{}, err
	}
	return frontend.Attestation{
		Root: v.Output(x.OutputOf(len(x.Mounts) - 1)), Bundle: true, PredicateType: attest.SPDX, SBOMCore: scanCore,
	}, nil
}
