package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/dockerfile"
	"github.com/kiln-build/kiln/llb"
)

// optDevel asks for a frontend that is built first: "source" names the frontend that
// builds it then, and gets the options that begin with "gateway-", without that.
// BuildKit had it until v0.12.
const optDevel = "gateway-devel"

// image gives the file system and the config of the frontend's image: that of a
// registry, what a named context puts in its place, or what is built for it.
func (i FromImage) image(ctx context.Context, req frontend.Request, b frontend.Bridge) (root llb.Edge, config ocispecs.Image, err error) {
	source := req.Opts["source"]
	if source == "" {
		return root, config, fault.New(codes.InvalidArgument, "no source specified for gateway")
	}
	var found []byte
	if _, ok := req.Opts[optDevel]; ok {
		root, found, err = i.built(ctx, req, b, source)
	} else if err = i.Limits.Check(ImageFrontend, source); err == nil {
		root, found, err = i.named(ctx, req, b, source)
	}
	if err == nil && len(found) > 0 {
		if err = json.Unmarshal(found, &config); err != nil {
			err = fmt.Errorf("reading the config of %s: %w", source, err)
		}
	}
	return root, config, err
}

// named gives the image that source names.
func (i FromImage) named(ctx context.Context, req frontend.Request, b frontend.Bridge, source string) (llb.Edge, []byte, error) {
	root, config, ok, err := dockerfile.Replacement(ctx, b, req, source)
	switch {
	case err != nil:
		return llb.Edge{}, nil, fmt.Errorf("the frontend %s: %w", source, err)
	case ok && len(i.Limits.Repositories) > 0:
		return llb.Edge{}, nil, fault.New(codes.PermissionDenied, fmt.Sprintf(
			"the frontend %s has a named context in its place, and the daemon's configuration says which repositories frontends come from", source))
	case ok:
		return root, config, nil
	}
	image, err := b.ResolveImage(ctx, source, frontend.ResolveOptions{LogName: "resolve image config for docker-image://" + source})
	if err != nil {
		return llb.Edge{}, nil, err
	}
	pinned, _, _ := strings.Cut(image.Ref, "@")
	v, err := llb.Source("docker-image://"+pinned+"@"+image.Digest, nil)
	if err != nil {
		return llb.Edge{}, nil, err
	}
	return v.Output(0), image.Config, nil
}

// built builds the image by the frontend called by.
func (i FromImage) built(ctx context.Context, req frontend.Request, b frontend.Bridge, by string) (llb.Edge, []byte, error) {
	var builder frontend.Frontend
	switch by {
	case DockerfileFrontend:
		builder = dockerfile.New()
	case ImageFrontend:
		builder = i
	default:
		return llb.Edge{}, nil, fault.New(codes.InvalidArgument, fmt.Sprintf(
			"%s: a frontend is built by %s or %s, and not by %q", optDevel, DockerfileFrontend, ImageFrontend, by))
	}
	if len(i.Limits.Repositories) > 0 {
		return llb.Edge{}, nil, fault.New(codes.PermissionDenied, optDevel+": the daemon's configuration says which repositories frontends come from")
	}
	if err := i.Limits.Check(by, ""); err != nil {
		return llb.Edge{}, nil, err
	}
	inner := frontend.Request{Opts: map[string]string{}, Inputs: req.Inputs}
	for k, v := range req.Opts {
		if rest, ok := strings.CutPrefix(k, "gateway-"); ok && k != optDevel {
			inner.Opts[rest] = v
		}
	}
	ctx, call := frontend.Sub(ctx, by, inner)
	call.Attribute(b)
	res, err := builder.Build(ctx, inner, b)
	if err != nil {
		return llb.Edge{}, nil, fmt.Errorf("building the frontend: %w", err)
	}
	if res = call.Made(res); len(res.Images) != 1 {
		return llb.Edge{}, nil, fmt.Errorf("building the frontend: it came out as %d images, and has to be one", len(res.Images))
	}
	return res.Images[0].Root, res.Images[0].Config, nil
}
