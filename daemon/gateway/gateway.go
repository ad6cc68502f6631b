// Package gateway serves a frontend that runs elsewhere, and drives its build by
// calls of BuildKit's gateway API (LLBBridge): in a client, or in a container made
// of an image (FromImage).
//
// A Function is the frontend of such a build, as the engine sees it: while the
// engine waits for what it compiles to, its calls are answered; the last of them
// returns the result or an error. A reference is a result that the frontend has a
// name for: an edge of a graph, which is solved when somebody looks into it. A
// Forwarder finds the Function that a call is meant for, by the id of the build
// that clients send with every call.
package gateway

import (
	"context"
	"fmt"
	"sync"

	types "github.com/moby/buildkit/api/types"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// maxReferences bounds how many results one frontend may have names for.
const maxReferences = 100_000

// Function is a frontend that runs elsewhere. It is safe for concurrent use.
type Function struct {
	// Limits say which frontends it may call; they are set before it begins.
	Limits  Limits
	inputs  map[string]*pb.Definition
	workers []*types.WorkerRecord
	begun   chan struct{} // closed when ctx, request and bridge are set
	done    chan struct{} // closed when result or err is

	containers containers

	mu      sync.Mutex // guards what is below
	ctx     context.Context
	request frontend.Request
	bridge  frontend.Bridge
	refs    map[string]*reference
	result  *frontend.Result
	err     error
}

var _ frontend.Frontend = (*Function)(nil)

// NewFunction makes the frontend of one build; inputs are the graphs that it was
// given with its request, and workers what it is told of who runs its steps.
func NewFunction(inputs map[string]*pb.Definition, workers []*types.WorkerRecord) *Function {
	return &Function{inputs: inputs, workers: workers, begun: make(chan struct{}), done: make(chan struct{}), refs: make(map[string]*reference)}
}

// Build answers the function's calls until it returns. Where the engine has to
// solve the result again, it is the same result.
func (f *Function) Build(ctx context.Context, req frontend.Request, b frontend.Bridge) (*frontend.Result, error) {
	f.mu.Lock()
	if f.bridge == nil {
		close(f.begun)
	}
	f.ctx, f.request, f.bridge = ctx, req, b
	f.mu.Unlock()
	defer f.containers.end()
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.result, f.err
}

// call begins a call: it waits for the build, and gives a context that ends with
// either of them.
func (f *Function) call(ctx context.Context) (context.Context, context.CancelFunc, error) {
	select {
	case <-f.begun:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	f.mu.Lock()
	build := f.ctx
	f.mu.Unlock()
	ctx = frontend.WithCall(ctx, frontend.CallOf(build))
	if build.Err() != nil {
		return nil, nil, fault.New(codes.Canceled, "the build has ended")
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(build, cancel)
	return ctx, func() { stop(); cancel() }, nil
}

// finish sets the result.
func (f *Function) finish(r *frontend.Result, err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.result != nil || f.err != nil {
		return fault.New(codes.FailedPrecondition, "the build function has returned before")
	}
	f.result, f.err = r, err
	close(f.done)
	return nil
}

// reference is a result that the frontend has a name for.
type reference struct {
	edge llb.Edge
	call *frontend.Call // the request that it came from; nil for the function's own
	left bool           // of a failed step, and of no graph

	mu     sync.Mutex
	solved frontend.Ref
}

// solve gives the file system.
func (r *reference) solve(ctx context.Context, b frontend.Bridge) (frontend.Ref, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.solved != nil {
		return r.solved, nil
	}
	solved, err := b.Solve(ctx, r.edge)
	r.solved = solved
	return solved, err
}

// refer names a result of a request. Scratch has no name.
func (f *Function) refer(e llb.Edge, call *frontend.Call) (*gwpb.Ref, error) {
	if e.IsScratch() {
		return &gwpb.Ref{}, nil
	}
	def, err := llb.Marshal(e)
	if err != nil {
		return nil, err
	}
	if a, ok := f.engine().(frontend.Attributor); ok {
		a.Attribute(e, call)
	}
	id, err := f.put(&reference{edge: e, call: call})
	return &gwpb.Ref{Id: id, Def: def}, err
}

// put gives a result a name.
func (f *Function) put(r *reference) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.refs) >= maxReferences {
		return "", fault.New(codes.ResourceExhausted, fmt.Sprintf("the frontend holds more than %d results", maxReferences))
	}
	id := fmt.Sprintf("ref%d", len(f.refs))
	f.refs[id] = r
	return id, nil
}

// Name gives the images of a result names by which calls can look into them.
func (f *Function) Name(r *frontend.Result) ([]string, error) {
	var names []string
	for _, image := range r.Images {
		if image.Root.IsScratch() {
			continue
		}
		id, err := f.put(&reference{edge: image.Root, call: image.Call})
		if err != nil {
			return nil, err
		}
		names = append(names, id)
	}
	return names, nil
}

// lookup finds a result by its name.
func (f *Function) lookup(id string) (*reference, error) {
	if id == "" {
		return &reference{}, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.refs[id]
	if !ok {
		return nil, fault.New(codes.NotFound, fmt.Sprintf("no such ref: %s", id))
	}
	return r, nil
}

// open gives the file system behind a name.
func (f *Function) open(ctx context.Context, id string) (frontend.Ref, error) {
	r, err := f.lookup(id)
	if err != nil {
		return nil, err
	}
	return r.solve(ctx, f.engine())
}

// engine gives the bridge, once call has waited for it.
func (f *Function) engine() frontend.Bridge {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bridge
}
