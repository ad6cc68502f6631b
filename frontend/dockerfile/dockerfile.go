// Package dockerfile compiles Dockerfiles to LLB.
//
// The syntax is BuildKit's: its parser, its instruction types and its shell-like
// substitution. What the instructions mean is here, a file for each instruction
// or family of them.
//
// The nouns: a Dockerfile is a list of stages; a stage starts from a base (an
// image, an earlier stage, a named context, scratch) and holds steps, the
// instructions after FROM, with those in front that its base's ONBUILD left. A
// stage's state is what its steps have made so far: a file system of the graph, an
// environment, an image config. A fsys is a file system that the graph will have:
// vertices are made last, when it is known which files of the context and of the
// other stages are read at all.
//
// A build compiles the Dockerfile once for each platform, and of each only the
// stages that the target needs.
package dockerfile

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/containerd/platforms"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sbom"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Keys of a result's metadata, with BuildKit's names.
const (
	platformsKey = "refs.platforms"
	epochKey     = "source.date.epoch"
)

// Frontend is the Dockerfile frontend. It holds no state: any number of builds
// may use it at once.
type Frontend struct{}

var _ frontend.Frontend = Frontend{}

// New gives the Dockerfile frontend.
func New() frontend.Frontend { return Frontend{} }

// Name is what the frontend is called in BuildKit's API.
func (Frontend) Name() string { return "dockerfile.v0" }

// Build compiles the Dockerfile that the request's options name. Errors about the
// text of the Dockerfile are of type *Error.
func (Frontend) Build(ctx context.Context, req frontend.Request, b frontend.Bridge) (*frontend.Result, error) {
	elsewhere, lacking := checkCapabilities(req.Opts["frontend.caps"])
	if lacking != nil && !elsewhere {
		return nil, lacking
	}
	opts, err := parseOptions(req)
	if err != nil {
		return nil, err
	}
	if err := readCaches(ctx, b, opts.raw); err != nil {
		return nil, err
	}
	in, err := openInputs(ctx, b, req, opts)
	if err != nil {
		return nil, err
	}
	file, err := in.readDockerfile(ctx)
	if err != nil {
		return nil, err
	}
	if res, ok, err := forward(ctx, b, req, file); ok {
		return res, err
	}
	if lacking != nil {
		return nil, lacking
	}
	images := newResolver(b, opts)
	compilerFor := func(target *ocispecs.Platform, warn warnFunc) *compiler {
		return newCompiler(opts, in, file, images, newPlatformSet(target, opts.machine), warn)
	}
	if opts.request != "" {
		return answer(ctx, opts.request, file, compilerFor)
	}
	return buildPlatforms(ctx, b, opts, compilerFor, warnThrough(b, file))
}

// compilerFunc prepares the compilation for one platform; nil is the machine's
// own, chosen because nobody asked for another.
type compilerFunc func(target *ocispecs.Platform, warn warnFunc) *compiler

// buildPlatforms compiles for every platform that was asked for, at the same time.
func buildPlatforms(ctx context.Context, b frontend.Bridge, opts *options, compilerFor compilerFunc, warn warnFunc) (*frontend.Result, error) {
	targets := []*ocispecs.Platform{nil}
	if len(opts.platforms) > 0 {
		targets = targets[:0]
		for i := range opts.platforms {
			targets = append(targets, &opts.platforms[i])
		}
	}
	images := make([]*compiled, len(targets))
	group, gctx := errgroup.WithContext(ctx)
	var generator *sbom.Generator
	if opts.sbom != nil {
		group.Go(func() (err error) {
			generator, err = opts.sbom.Find(gctx, b, opts.machine)
			return err
		})
	}
	for i, target := range targets {
		// Warnings are the same for every platform: the first one tells them.
		tell := warn
		if i > 0 {
			tell = nil
		}
		group.Go(func() error {
			out, err := compilerFor(target, tell).compile(gctx)
			images[i] = out
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return result(opts, targets, images, generator)
}

// compiled is what the Dockerfile came to for one platform.
type compiled struct {
	image frontend.ResultImage
	// own is the platform that the image's config names.
	own   ocispecs.Platform
	epoch *epoch
	// scanned is for a bill of materials, where one is asked for.
	scanned sbom.Target
}

// platformList is the form in which BuildKit's clients read what was built.
type platformList struct {
	Platforms []listedPlatform
}

type listedPlatform struct {
	ID       string
	Platform ocispecs.Platform
}

// result puts the platforms' images together, with what exporters read, and what a
// generator says of them.
func result(opts *options, targets []*ocispecs.Platform, images []*compiled, generator *sbom.Generator) (*frontend.Result, error) {
	res := &frontend.Result{Metadata: map[string][]byte{}, Index: opts.multiPlatform}
	var list platformList
	for i, c := range images {
		p := opts.machine
		if targets[i] != nil {
			p = *targets[i]
		}
		id := platforms.FormatAll(platforms.Normalize(p))
		c.image.ID, c.image.Platform = id, exportPlatform(p, c.own)
		list.Platforms = append(list.Platforms, listedPlatform{ID: id, Platform: c.image.Platform})
		if c.epoch != nil {
			key := epochKey
			if opts.multiPlatform {
				key += "/" + id
			}
			res.Metadata[key] = strconv.AppendInt(nil, c.epoch.Unix(), 10)
		}
		if generator != nil {
			c.scanned.ID = id
			bill, err := generator.Scan(c.scanned)
			if err != nil {
				return nil, err
			}
			c.image.Attestations = append(c.image.Attestations, bill)
		}
		res.Images = append(res.Images, c.image)
	}
	dt, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("writing down the platforms: %w", err)
	}
	res.Metadata[platformsKey] = dt
	return res, nil
}
