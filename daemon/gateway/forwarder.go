package gateway

import (
	"context"
	"fmt"
	"sync"
	"time"

	types "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/client/buildid"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/daemon/internal/fault"
)

// arrival is how long a call waits for its build: clients make the first call
// beside the request for the build, and it may be here first.
const arrival = 10 * time.Second

// Forwarder is the gateway service for all builds. The zero value, with its Workers
// set, is ready for use.
type Forwarder struct {
	// Workers are what frontends are told of.
	Workers []*types.WorkerRecord

	gwpb.UnimplementedLLBBridgeServer

	only *Function // the function that all calls are for, if not nil

	mu      sync.Mutex // guards what is below
	builds  map[string]*Function
	arrived chan struct{} // closed and made anew when a build comes; nil until somebody waits
}

// Add makes f the function that calls of a build are for, until remove is called.
func (w *Forwarder) Add(id string, f *Function) (remove func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.builds == nil {
		w.builds = make(map[string]*Function)
	}
	w.builds[id] = f
	if w.arrived != nil {
		close(w.arrived)
		w.arrived = nil
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.builds, id)
	}
}

// Register adds the service to a server.
func (w *Forwarder) Register(s grpc.ServiceRegistrar) { gwpb.RegisterLLBBridgeServer(s, w) }

// find gives the function that a call is for.
func (w *Forwarder) find(ctx context.Context) (*Function, error) {
	if w.only != nil {
		return w.only, nil
	}
	id := buildid.FromIncomingContext(ctx)
	if id == "" {
		return nil, fault.New(codes.InvalidArgument, "no buildid found in context")
	}
	timeout := time.NewTimer(arrival)
	defer timeout.Stop()
	for {
		w.mu.Lock()
		f, ok := w.builds[id]
		if ok {
			w.mu.Unlock()
			return f, nil
		}
		if w.arrived == nil {
			w.arrived = make(chan struct{})
		}
		arrived := w.arrived
		w.mu.Unlock()
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timeout.C:
			return nil, fault.New(codes.NotFound, fmt.Sprintf("no such job %s", id))
		}
	}
}

// forward makes a call of the function that it is for.
func forward[Req, Resp any](ctx context.Context, w *Forwarder, req Req, call func(*Function, context.Context, Req) (Resp, error)) (resp Resp, err error) {
	f, err := w.find(ctx)
	if err != nil {
		return resp, err
	}
	ctx, end, err := f.call(ctx)
	if err != nil {
		return resp, err
	}
	defer end()
	resp, err = call(f, ctx, req)
	return resp, f.nameLeft(err)
}

// Ping says what kiln can do.
func (w *Forwarder) Ping(ctx context.Context, _ *gwpb.PingRequest) (*gwpb.PongResponse, error) {
	if _, err := w.find(ctx); err != nil {
		return nil, err
	}
	p := pong()
	p.Workers = w.Workers
	return p, nil
}

// The methods below are those of Function, for the build that the call names.

func (w *Forwarder) ResolveImageConfig(ctx context.Context, req *gwpb.ResolveImageConfigRequest) (*gwpb.ResolveImageConfigResponse, error) {
	return forward(ctx, w, req, (*Function).ResolveImageConfig)
}

func (w *Forwarder) ResolveSourceMeta(ctx context.Context, req *gwpb.ResolveSourceMetaRequest) (*gwpb.ResolveSourceMetaResponse, error) {
	return forward(ctx, w, req, (*Function).ResolveSourceMeta)
}

func (w *Forwarder) Solve(ctx context.Context, req *gwpb.SolveRequest) (*gwpb.SolveResponse, error) {
	return forward(ctx, w, req, (*Function).Solve)
}

func (w *Forwarder) ReadFile(ctx context.Context, req *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	return forward(ctx, w, req, (*Function).ReadFile)
}

func (w *Forwarder) ReadDir(ctx context.Context, req *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	return forward(ctx, w, req, (*Function).ReadDir)
}

func (w *Forwarder) StatFile(ctx context.Context, req *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	return forward(ctx, w, req, (*Function).StatFile)
}

func (w *Forwarder) Evaluate(ctx context.Context, req *gwpb.EvaluateRequest) (*gwpb.EvaluateResponse, error) {
	return forward(ctx, w, req, (*Function).Evaluate)
}

func (w *Forwarder) Return(ctx context.Context, req *gwpb.ReturnRequest) (*gwpb.ReturnResponse, error) {
	return forward(ctx, w, req, (*Function).Return)
}

func (w *Forwarder) Inputs(ctx context.Context, req *gwpb.InputsRequest) (*gwpb.InputsResponse, error) {
	return forward(ctx, w, req, (*Function).Inputs)
}

func (w *Forwarder) Warn(ctx context.Context, req *gwpb.WarnRequest) (*gwpb.WarnResponse, error) {
	return forward(ctx, w, req, (*Function).Warn)
}

func (w *Forwarder) NewContainer(ctx context.Context, req *gwpb.NewContainerRequest) (*gwpb.NewContainerResponse, error) {
	return forward(ctx, w, req, (*Function).NewContainer)
}

func (w *Forwarder) ReleaseContainer(ctx context.Context, req *gwpb.ReleaseContainerRequest) (*gwpb.ReleaseContainerResponse, error) {
	return forward(ctx, w, req, (*Function).ReleaseContainer)
}

func (w *Forwarder) ReadFileContainer(ctx context.Context, req *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	return forward(ctx, w, req, (*Function).ReadFileContainer)
}

func (w *Forwarder) ReadDirContainer(ctx context.Context, req *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	return forward(ctx, w, req, (*Function).ReadDirContainer)
}

func (w *Forwarder) StatFileContainer(ctx context.Context, req *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	return forward(ctx, w, req, (*Function).StatFileContainer)
}

func (w *Forwarder) ExecProcess(stream gwpb.LLBBridge_ExecProcessServer) error {
	f, err := w.find(stream.Context())
	if err != nil {
		return err
	}
	ctx, end, err := f.call(stream.Context())
	if err != nil {
		return err
	}
	defer end()
	return f.execProcess(ctx, stream)
}
