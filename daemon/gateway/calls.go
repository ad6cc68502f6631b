package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/dockerfile"
	"github.com/kiln-build/kiln/llb"
)

// Solve compiles or loads a graph and gives its result a name.
func (f *Function) Solve(ctx context.Context, req *gwpb.SolveRequest) (*gwpb.SolveResponse, error) {
	if err := f.readCaches(ctx, req); err != nil {
		return nil, err
	}
	result, err := f.compile(ctx, req)
	if err != nil {
		return nil, err
	}
	encoded, err := f.encode(result)
	if err != nil {
		return nil, err
	}
	if req.Evaluate {
		for _, image := range result.Images {
			if image.Root.IsScratch() {
				continue
			}
			if _, err := f.engine().Solve(ctx, image.Root); err != nil {
				return nil, err
			}
		}
	}
	resp := &gwpb.SolveResponse{Result: encoded}
	if !req.AllowResultReturn {
		// A client from before there were results knows the one reference only.
		one, ok := encoded.Result.(*gwpb.Result_Ref)
		if !ok {
			return nil, fault.New(codes.InvalidArgument, "the result has several references, which the client cannot take")
		}
		return &gwpb.SolveResponse{Ref: one.Ref.Id}, nil
	}
	if !req.AllowResultArrayRef {
		deprecate(encoded)
	}
	return resp, nil
}

func (f *Function) compile(ctx context.Context, req *gwpb.SolveRequest) (*frontend.Result, error) {
	hasGraph := req.Definition != nil && len(req.Definition.Def) > 0
	switch {
	case req.Frontend == "" && !hasGraph:
		return &frontend.Result{}, nil
	case req.Frontend == "":
		e, err := llb.Load(req.Definition)
		if err != nil {
			return nil, fault.New(codes.InvalidArgument, err.Error())
		}
		if a, ok := f.engine().(frontend.Admitter); ok {
			edges, err := a.Admit(ctx, req.SourcePolicies, e)
			if err != nil {
				return nil, err
			}
			e = edges[0]
		}
		return &frontend.Result{Images: []frontend.ResultImage{{Root: e, Call: frontend.CallOf(ctx)}}}, nil
	case hasGraph:
		return nil, fault.New(codes.InvalidArgument, "cannot solve with Definition and Frontend specified")
	case req.Frontend == DockerfileFrontend:
		if err := f.Limits.Check(req.Frontend, ""); err != nil {
			return nil, err
		}
		inputs, err := LoadInputs(req.FrontendInputs)
		if err != nil {
			return nil, err
		}
		inner := frontend.Request{Opts: req.FrontendOpt, Inputs: inputs}
		ctx, call := frontend.Sub(ctx, req.Frontend, inner)
		call.Attribute(f.engine())
		res, err := dockerfile.New().Build(ctx, inner, f.engine())
		return call.Made(res), err
	case req.Frontend == ImageFrontend:
		inputs, err := LoadInputs(req.FrontendInputs)
		if err != nil {
			return nil, err
		}
		inner := frontend.Request{Opts: req.FrontendOpt, Inputs: inputs}
		ctx, call := frontend.Sub(ctx, req.Frontend, inner)
		call.Attribute(f.engine())
		res, err := FromImage{Workers: f.workers, Limits: f.Limits}.Build(ctx, inner, f.engine())
		return call.Made(res), err
	}
	return nil, fault.New(codes.NotFound, fmt.Sprintf("invalid frontend: %s", req.Frontend))
}

// CacheImports is the attribute in which frontends are told of caches, as JSON.
const CacheImports = "cache-imports"

// readCaches has the build read the caches that a request names: from then on, and
// whatever is solved. That is what a client that names some wants.
func (f *Function) readCaches(ctx context.Context, req *gwpb.SolveRequest) error {
	entries := req.CacheImports
	if v := req.FrontendOpt[CacheImports]; v != "" && req.Frontend != "" {
		var more []*gwpb.CacheOptionsEntry
		if err := json.Unmarshal([]byte(v), &more); err != nil {
			return fault.New(codes.InvalidArgument, fmt.Sprintf("reading %s: %v", CacheImports, err))
		}
		entries = append(slices.Clip(entries), more...)
	}
	var caches []frontend.Cache
	for _, e := range entries {
		if e == nil {
			return fault.New(codes.InvalidArgument, "a cache import says nothing")
		}
		caches = append(caches, frontend.Cache{Type: e.Type, Attrs: e.Attrs})
	}
	if len(caches) == 0 {
		return nil
	}
	r, ok := f.engine().(frontend.CacheReader)
	if !ok {
		return fault.New(codes.Unimplemented, "caches of one call are not supported here")
	}
	if err := r.ReadCaches(ctx, caches); err != nil {
		return fault.New(codes.InvalidArgument, err.Error())
	}
	return nil
}

// The frontends' names in BuildKit's API.
const (
	DockerfileFrontend = "dockerfile.v0"
	ImageFrontend      = "gateway.v0"
)

// LoadInputs reads the graphs that a frontend is given by name.
func LoadInputs(defs map[string]*pb.Definition) (map[string]llb.Edge, error) {
	inputs := make(map[string]llb.Edge, len(defs))
	for name, def := range defs {
		if len(def.GetDef()) == 0 && def.GetMetadata() == nil {
			return nil, fault.New(codes.InvalidArgument, fmt.Sprintf("the input %s: invalid nil input definition to definition op", name))
		}
		e, err := llb.Load(def)
		if err != nil {
			return nil, fault.New(codes.InvalidArgument, fmt.Sprintf("the input %s: %v", name, err))
		}
		inputs[name] = e
	}
	return inputs, nil
}

// deprecate puts references into the form that they had before they were messages.
func deprecate(r *gwpb.Result) {
	switch res := r.Result.(type) {
	case *gwpb.Result_Ref:
		r.Result = &gwpb.Result_RefDeprecated{RefDeprecated: res.Ref.Id}
	case *gwpb.Result_Refs:
		ids := map[string]string{}
		for k, ref := range res.Refs.Refs {
			ids[k] = ref.Id
		}
		r.Result = &gwpb.Result_RefsDeprecated{RefsDeprecated: &gwpb.RefMapDeprecated{Refs: ids}}
	}
}

// Evaluate solves a result.
func (f *Function) Evaluate(ctx context.Context, req *gwpb.EvaluateRequest) (*gwpb.EvaluateResponse, error) {
	if req.Ref == "" {
		return &gwpb.EvaluateResponse{}, nil
	}
	_, err := f.open(ctx, req.Ref)
	return &gwpb.EvaluateResponse{}, err
}

// Inputs gives the graphs that the build was asked for with.
func (f *Function) Inputs(context.Context, *gwpb.InputsRequest) (*gwpb.InputsResponse, error) {
	return &gwpb.InputsResponse{Definitions: f.inputs}, nil
}

// Return ends the function.
func (f *Function) Return(_ context.Context, req *gwpb.ReturnRequest) (*gwpb.ReturnResponse, error) {
	if req.Error != nil {
		return &gwpb.ReturnResponse{}, f.finish(nil, fault.Foreign(req.Error))
	}
	if req.Result == nil {
		return nil, fault.New(codes.InvalidArgument, "result is required")
	}
	result, err := f.decode(req.Result)
	if err != nil {
		return nil, err
	}
	return &gwpb.ReturnResponse{}, f.finish(result, nil)
}

// Warn tells the user something.
func (f *Function) Warn(_ context.Context, req *gwpb.WarnRequest) (*gwpb.WarnResponse, error) {
	w := frontend.Warning{Short: string(req.Short), URL: req.Url, Level: int(req.Level)}
	for _, d := range req.Detail {
		w.Detail = append(w.Detail, string(d))
	}
	for _, r := range req.Ranges {
		if r == nil || r.Start == nil || r.End == nil {
			return nil, fault.New(codes.InvalidArgument, "invalid source range")
		}
	}
	if req.Digest != "" {
		var err error
		if w.Vertex, err = llb.ParseDigest(req.Digest); err != nil {
			return nil, fault.New(codes.InvalidArgument, err.Error())
		}
	}
	if i := req.Info; i != nil {
		file := llb.NewFile(i)
		for n, r := range req.Ranges {
			at := file.At(r)
			if n == 0 {
				w.Location = &at
			} else {
				w.More = append(w.More, at)
			}
		}
	}
	f.engine().Warn(w)
	return &gwpb.WarnResponse{}, nil
}
