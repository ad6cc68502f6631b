package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon/caller"
	"github.com/kiln-build/kiln/daemon/gateway"
	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/exporter/provenance"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// Solve runs a build to its end.
func (s *Server) Solve(ctx context.Context, req *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
	end, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	modernize(req)
	if err := s.refuse(req); err != nil {
		s.builds.refuse(req.Ref)
		return nil, err
	}
	b, err := s.builds.add(req)
	if err != nil {
		return nil, err
	}
	s.builds.claim(b, parentOf(ctx))
	client := caller.New(s.sessions, req.Session, s.mirrors, s.tokens, s.engine.Path("tmp"))
	defer client.Close()
	client.ReadInPlace(folders(ctx))
	client.ActsFor(user(ctx))
	result, err := s.build(ctx, req, client, b)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Canceled, err)
	}
	client.Arrived(ctx)
	s.builds.end(b, result, err)
	if err != nil {
		return nil, err
	}
	return &controlapi.SolveResponse{ExporterResponse: result.Metadata}, nil
}

// build hands the request to the engine.
func (s *Server) build(ctx context.Context, req *controlapi.SolveRequest, client *caller.Caller, b *build) (*kiln.Result, error) {
	compile, remove, err := s.frontend(req)
	if err != nil {
		return nil, err
	}
	defer remove()
	inputs, err := gateway.LoadInputs(req.FrontendInputs)
	if err != nil {
		return nil, err
	}
	from, to, err := caches(req)
	if err != nil {
		return nil, err
	}
	more, exported := sessionExporter(req, client, compile)
	lent := client.Session()
	lent.Debug = compile != nil // a function may look at what a failed step has left
	check, done := s.checkSource(req, client)
	defer done()
	return s.engine.Build(ctx, kiln.Request{
		Attrs: req.FrontendAttrs, Frontend: compile, Inputs: inputs, Session: &lent,
		Forward:   gateway.FromImage{Workers: s.gateway.Workers, Limits: s.o.Frontends}.Forward,
		CacheFrom: from, CacheTo: to, KeyFiles: near(ctx), Allow: req.Entitlements, Outputs: outputs(req, client), Events: b.event,
		Ref: req.Ref, ProxyNetwork: req.ProxyNetwork,
		SourcePolicy: req.SourcePolicy, CheckSource: check, MoreOutputs: more, Exported: exported, Record: s.builds.kept != nil && !req.Internal,
	})
}

// frontend gives what compiles the request: the Dockerfile frontend, the request's
// own graph, or a function of the client's. remove ends what it began.
func (s *Server) frontend(req *controlapi.SolveRequest) (compile frontend.Frontend, remove func(), err error) {
	hasGraph := req.Definition != nil && len(req.Definition.Def) > 0
	remove = func() {}
	switch {
	case req.Frontend == gateway.DockerfileFrontend && !hasGraph:
		return nil, remove, s.o.Frontends.Check(req.Frontend, "")
	case req.Frontend != "" && hasGraph:
		return nil, nil, fault.New(codes.InvalidArgument, "cannot solve with Definition and Frontend specified")
	case req.Frontend == gateway.ImageFrontend:
		return gateway.FromImage{Workers: s.gateway.Workers, Limits: s.o.Frontends}, remove, nil
	case strings.HasPrefix(req.Frontend, gateway.ProgramPrefix):
		path, _ := gateway.ProgramOf(req.Frontend)
		if !slices.Contains(s.engine.Config().Frontends.Exec.Programs, path) {
			return nil, nil, fault.New(codes.PermissionDenied, fmt.Sprintf("the daemon's configuration does not allow the frontend %s", req.Frontend))
		}
		return gateway.FromProgram{Path: path, Workers: s.gateway.Workers}, remove, nil
	case req.Frontend != "":
		return nil, nil, fault.New(codes.NotFound, fmt.Sprintf("frontend %s not found", req.Frontend))
	case hasGraph:
		e, err := llb.Load(req.Definition)
		if err != nil {
			return nil, nil, fault.New(codes.InvalidArgument, err.Error())
		}
		return graph{e}, remove, nil
	case req.Definition != nil:
		return graph{}, remove, nil // a graph without ops is scratch
	}
	f := gateway.NewFunction(req.FrontendInputs, s.gateway.Workers)
	f.Limits = s.o.Frontends
	return f, s.gateway.Add(req.Ref, f), nil
}

// graph is the frontend of a build whose graph is given.
type graph struct{ edge llb.Edge }

func (g graph) Build(context.Context, frontend.Request, frontend.Bridge) (*frontend.Result, error) {
	p := platforms.Normalize(platforms.DefaultSpec())
	return &frontend.Result{Images: []frontend.ResultImage{{Platform: p, Root: g.edge}}}, nil
}

// outputs gives the request's exporters, with the client's ends of them.
func outputs(req *controlapi.SolveRequest, client *caller.Caller) []kiln.Output {
	var out []kiln.Output
	for i, x := range req.Exporters {
		attrs := maps.Clone(x.Attrs)
		if attrs == nil {
			attrs = map[string]string{}
		}
		if epoch, ok := epochOf(req.FrontendAttrs); ok {
			// An empty attribute of the exporter's own takes the bound away.
			if _, own := attrs["source-date-epoch"]; !own {
				attrs["source-date-epoch"] = epoch
			}
		}
		out = append(out, kiln.Output{Type: x.Type, Attrs: attrs, Target: client.Target(i, x.Type)})
	}
	return out
}

// epochOf gives the bound on times that a request's argument sets, or takes away. One
// that names what has a time, the context for one, is the frontend's to look up.
func epochOf(attrs map[string]string) (string, bool) {
	v, ok := attrs["build-arg:SOURCE_DATE_EPOCH"]
	if _, err := strconv.ParseInt(v, 10, 64); err != nil && v != "" {
		return "", false
	}
	return v, ok
}

// sessionExporter gives what the engine asks for outputs that the client names when
// the result is there; nil where it does not want to. A client that drives the build
// itself can look into the result by the names that it is told.
func sessionExporter(req *controlapi.SolveRequest, client *caller.Caller, compile frontend.Frontend) (more func(context.Context, *frontend.Result) ([]kiln.Output, error), exported func(context.Context, map[string]string) error) {
	if !req.EnableSessionExporter {
		return nil, nil
	}
	more = func(ctx context.Context, r *frontend.Result) ([]kiln.Output, error) {
		var refs []string
		if f, ok := compile.(*gateway.Function); ok {
			var err error
			if refs, err = f.Name(r); err != nil {
				return nil, err
			}
		}
		found, err := client.FindExporters(ctx, r.Metadata, refs)
		var out []kiln.Output
		for i, x := range found {
			out = append(out, kiln.Output{Type: x.Type, Attrs: x.Attrs, Target: client.Target(len(req.Exporters)+i, x.Type)})
		}
		return out, err
	}
	return more, client.FinalizeExport
}

// caches gives the remote caches of a request.
func caches(req *controlapi.SolveRequest) (from, to []kiln.RemoteCache, err error) {
	imports := req.Cache.Imports
	if v := req.FrontendAttrs[gateway.CacheImports]; v != "" {
		var more []*controlapi.CacheOptionsEntry
		if err := json.Unmarshal([]byte(v), &more); err != nil {
			return nil, nil, fault.New(codes.InvalidArgument, fmt.Sprintf("reading %s: %v", gateway.CacheImports, err))
		}
		imports = append(imports, more...)
	}
	for _, c := range imports {
		// Clients name the same caches in both places.
		same := func(o kiln.RemoteCache) bool { return c != nil && o.Type == c.Type && maps.Equal(o.Attrs, c.Attrs) }
		if c != nil && !slices.ContainsFunc(from, same) {
			from = append(from, kiln.RemoteCache{Type: c.Type, Attrs: c.Attrs})
		}
	}
	for _, c := range req.Cache.Exports {
		if c != nil {
			to = append(to, kiln.RemoteCache{Type: c.Type, Attrs: c.Attrs})
		}
	}
	return from, to, nil
}

// modernize puts what old clients say into the fields that took its place.
func modernize(req *controlapi.SolveRequest) {
	if req.Cache == nil {
		req.Cache = &controlapi.CacheOptions{}
	}
	c := req.Cache
	if c.ExportRefDeprecated != "" {
		attrs := maps.Clone(c.ExportAttrsDeprecated)
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs["ref"] = c.ExportRefDeprecated
		c.Exports = append(c.Exports, &controlapi.CacheOptionsEntry{Type: "registry", Attrs: attrs})
	}
	for _, ref := range c.ImportRefsDeprecated {
		c.Imports = append(c.Imports, &controlapi.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": ref}})
	}
	if len(req.Exporters) == 0 && req.ExporterDeprecated != "" {
		req.Exporters = []*controlapi.Exporter{{Type: req.ExporterDeprecated, Attrs: req.ExporterAttrsDeprecated}}
	}
	inHouse(req)
}

// inHouse has the daemon's own frontend compile where a client asks for the one in an
// image and gives its name as the image's, unless the client has something else of
// that name, or has the frontend built by it.
func inHouse(req *controlapi.SolveRequest) {
	if req.Frontend != gateway.ImageFrontend || req.FrontendAttrs["source"] != gateway.DockerfileFrontend {
		return
	}
	if _, ok := req.FrontendAttrs["gateway-devel"]; ok {
		return
	}
	for k := range req.FrontendAttrs {
		if name, ok := strings.CutPrefix(k, "context:"+gateway.DockerfileFrontend); ok && (name == "" || strings.HasPrefix(name, "::")) {
			return
		}
	}
	req.Frontend, req.FrontendAttrs = gateway.DockerfileFrontend, maps.Clone(req.FrontendAttrs)
	delete(req.FrontendAttrs, "source")
}

// refuse says which of the request's wishes kiln cannot fulfil: none is ignored.
func (s *Server) refuse(req *controlapi.SolveRequest) error {
	if req.Ref == "" {
		return fault.New(codes.InvalidArgument, "the request has no ref")
	}
	if v := req.CompatibilityVersion; v != 0 && v != provenance.Compatibility {
		return fault.New(codes.Unimplemented, fmt.Sprintf(
			"unsupported compatibility-version %d: kiln's results are those of version %d", v, provenance.Compatibility))
	}
	for _, e := range req.Entitlements {
		name, _, _ := strings.Cut(e, "=")
		if !slices.Contains(s.o.Entitlements, name) {
			return fault.New(codes.PermissionDenied, fmt.Sprintf("entitlement %s is not allowed by the daemon's configuration", name))
		}
	}
	return nil
}
