package gateway

import (
	"context"
	"fmt"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/frontend"
)

// ResolveImageConfig finds an image's digest and config.
func (f *Function) ResolveImageConfig(ctx context.Context, req *gwpb.ResolveImageConfigRequest) (*gwpb.ResolveImageConfigResponse, error) {
	o := frontend.SourceOptions{ResolveOptions: resolveOptions(req.Platform, req.ResolveMode, req.LogName), Policies: req.SourcePolicies}
	source := &pb.SourceOp{Identifier: "docker-image://" + req.Ref}
	if req.ResolverType == resolverLayout {
		source = &pb.SourceOp{Identifier: "oci-layout://" + req.Ref, Attrs: map[string]string{pb.AttrOCILayoutStoreID: req.StoreID}}
	}
	m, err := f.resolve(ctx, source, o)
	if err != nil {
		return nil, err
	}
	if m.Image == nil {
		return nil, fault.New(codes.InvalidArgument, fmt.Sprintf("the policies put %s in the place of %s, which is no image", m.Op.Identifier, req.Ref))
	}
	return &gwpb.ResolveImageConfigResponse{Digest: m.Image.Digest, Config: m.Image.Config, Ref: m.Image.Ref}, nil
}

// resolverLayout is the resolver type of image layouts; 0 is that of registries.
const resolverLayout = 1

func resolveOptions(p *pb.Platform, mode, logName string) frontend.ResolveOptions {
	o := frontend.ResolveOptions{Pull: mode == pb.AttrImageResolveModeForcePull, LogName: logName}
	if p != nil {
		o.Platform = ocispecs.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
	}
	return o
}

// resolve describes a source.
func (f *Function) resolve(ctx context.Context, source *pb.SourceOp, o frontend.SourceOptions) (frontend.SourceMeta, error) {
	r, ok := f.engine().(frontend.SourceResolver)
	if !ok {
		return frontend.SourceMeta{}, fault.New(codes.Unimplemented, "the engine describes no sources")
	}
	return r.ResolveSource(ctx, source, o)
}

// ResolveSourceMeta finds what is known of a source without fetching it.
func (f *Function) ResolveSourceMeta(ctx context.Context, req *gwpb.ResolveSourceMetaRequest) (*gwpb.ResolveSourceMetaResponse, error) {
	o, err := SourceOptions(req)
	if err != nil {
		return nil, err
	}
	m, err := f.resolve(ctx, req.Source, o)
	if err != nil {
		return nil, err
	}
	return SourceResponse(req, m), nil
}

// algorithms are the checksums that clients may ask for.
var algorithms = map[gwpb.ChecksumRequest_ChecksumAlgo]string{
	gwpb.ChecksumRequest_CHECKSUM_ALGO_SHA256: "sha256",
	gwpb.ChecksumRequest_CHECKSUM_ALGO_SHA384: "sha384",
	gwpb.ChecksumRequest_CHECKSUM_ALGO_SHA512: "sha512",
}

// SourceOptions gives what a request asks of a source.
func SourceOptions(req *gwpb.ResolveSourceMetaRequest) (frontend.SourceOptions, error) {
	o := frontend.SourceOptions{Policies: req.SourcePolicies, GitObjects: req.Git.GetReturnObject()}
	if req.Source == nil {
		return o, fault.New(codes.InvalidArgument, "source is required")
	}
	o.Predicates = req.Image.GetResolveAttestations()
	o.Attested = req.Image.GetAttestationChain() || len(o.Predicates) > 0
	o.ResolveOptions = resolveOptions(req.Platform, req.ResolveMode, req.LogName)
	if c := req.HTTP.GetChecksumRequest(); c != nil {
		if o.Checksum = algorithms[c.Algo]; o.Checksum == "" {
			return o, fault.New(codes.InvalidArgument, fmt.Sprintf("unsupported checksum algorithm %s", c.Algo))
		}
		o.ChecksumSuffix = c.Suffix
	}
	return o, nil
}

// SourceResponse gives the answer to a request.
func SourceResponse(req *gwpb.ResolveSourceMetaRequest, m frontend.SourceMeta) *gwpb.ResolveSourceMetaResponse {
	resp := &gwpb.ResolveSourceMetaResponse{Source: m.Op}
	if i := m.Image; i != nil {
		resp.Image = &gwpb.ResolveSourceImageResponse{Digest: i.Digest}
		if !req.Image.GetNoConfig() {
			resp.Image.Config = i.Config
		}
		resp.Image.AttestationChain = chainOf(m.Attested)
	}
	if g := m.Git; g != nil {
		resp.Git = &gwpb.ResolveSourceGitResponse{
			Checksum: g.Checksum, Ref: g.Ref, CommitChecksum: g.Commit, CommitObject: g.CommitObject, TagObject: g.TagObject,
		}
	}
	if h := m.HTTP; h != nil {
		resp.HTTP = &gwpb.ResolveSourceHTTPResponse{Checksum: h.Digest, Filename: h.Filename}
		if !h.Modified.IsZero() {
			resp.HTTP.LastModified = timestamppb.New(h.Modified)
		}
		if h.Checksum != "" {
			resp.HTTP.ChecksumResponse = &gwpb.ChecksumResponse{Digest: h.Checksum, Suffix: req.HTTP.GetChecksumRequest().GetSuffix()}
		}
	}
	return resp
}
