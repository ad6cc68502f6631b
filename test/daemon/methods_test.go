package daemon

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/buildid"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// calls notes the methods that were answered without an error.
type calls struct {
	mu       sync.Mutex
	answered map[string]bool
}

func (c *calls) note(method string, err error) {
	if err == nil || errors.Is(err, io.EOF) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.answered[method] = true
	}
}

func (c *calls) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	c.note(method, err)
	return err
}

func (c *calls) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	return heard{s, func(err error) { c.note(method, err) }}, err
}

// heard is a stream that says what came.
type heard struct {
	grpc.ClientStream
	came func(error)
}

func (h heard) RecvMsg(m any) error {
	err := h.ClientStream.RecvMsg(m)
	h.came(err)
	return err
}

// TestEveryMethod calls each method of the services that clients build by, as BuildKit's
// own list of them has it. What the methods do, the other tests look at.
func TestEveryMethod(t *testing.T) {
	_, d := newClient(t)
	made := &calls{answered: map[string]bool{}}
	unary, stream := grpc.WithChainUnaryInterceptor(made.unary), grpc.WithChainStreamInterceptor(made.stream)
	c, err := client.New(t.Context(), d.addr(), client.WithGRPCDialOption(unary), client.WithGRPCDialOption(stream))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn, err := grpc.NewClient(d.addr(), grpc.WithTransportCredentials(insecure.NewCredentials()), unary, stream)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ref := identity.NewID()
	function(t, c, client.SolveOpt{Ref: ref}, func(ctx context.Context, g gateway.Client) {
		callGateway(ctx, t, g)
		// BuildKit's package asks by ResolveSourceMeta now.
		req := &gwpb.ResolveImageConfigRequest{Ref: shared.registry.Addr + "/busybox:latest", ResolveMode: "default"}
		if _, err := gwpb.NewLLBBridgeClient(conn).ResolveImageConfig(buildid.AppendToOutgoingContext(ctx, ref), req); err != nil {
			t.Error(err)
		}
	})
	callControl(t, c, ref)
	for _, service := range []grpc.ServiceDesc{controlapi.Control_ServiceDesc, gwpb.LLBBridge_ServiceDesc} {
		var names []string
		for _, m := range service.Methods {
			names = append(names, m.MethodName)
		}
		for _, s := range service.Streams {
			names = append(names, s.StreamName)
		}
		short := service.ServiceName[strings.LastIndexByte(service.ServiceName, '.')+1:]
		for _, name := range names {
			t.Run(short+"."+name, func(t *testing.T) {
				if !made.answered["/"+service.ServiceName+"/"+name] {
					t.Error("it was not answered")
				}
			})
		}
	}
}

func callControl(t *testing.T, c *client.Client, ref string) {
	t.Helper()
	ctx := t.Context()
	_, workers := c.ListWorkers(ctx)
	_, info := c.Info(ctx)
	_, usage := c.DiskUsage(ctx)
	_, update := c.ControlClient().UpdateBuildHistory(ctx, &controlapi.UpdateBuildHistoryRequest{Ref: ref, Pinned: true})
	history, listen := c.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true})
	if listen == nil {
		_, listen = history.Recv()
	}
	if err := errors.Join(workers, info, usage, update, listen, c.Prune(ctx, nil)); err != nil {
		t.Error(err)
	}
}

func callGateway(ctx context.Context, t *testing.T, g gateway.Client) {
	t.Helper()
	image := shared.registry.Addr + "/busybox:latest"
	st := llb.Image(image).File(llb.Mkfile("/f", 0o644, []byte("text")))
	def := marshal(t, st)
	vertex, head := def.Head()
	ref := solve(ctx, t, g, st)
	_, source := g.ResolveSourceMetadata(ctx, &pb.SourceOp{Identifier: "docker-image://" + image}, resolveOpt())
	evaluate := ref.Evaluate(ctx)
	_, file := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/f"})
	_, dir := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/"})
	_, stat := ref.StatFile(ctx, gateway.StatRequest{Path: "/f"})
	_, inputs := g.Inputs(ctx)
	warn := g.Warn(ctx, vertex, "a warning", gateway.WarnOpts{})
	if err := errors.Join(head, source, evaluate, file, dir, stat, inputs, warn); err != nil {
		t.Error(err)
	}
	ctr := container(ctx, t, g, nil)
	_, process := run(ctx, t, ctr, "echo text > /made", nil)
	_, file = ctr.ReadFile(ctx, gateway.ReadContainerRequest{ReadRequest: gateway.ReadRequest{Filename: "/made"}})
	_, dir = ctr.ReadDir(ctx, gateway.ReadDirContainerRequest{ReadDirRequest: gateway.ReadDirRequest{Path: "/"}})
	_, stat = ctr.StatFile(ctx, gateway.StatContainerRequest{StatRequest: gateway.StatRequest{Path: "/made"}})
	if err := errors.Join(process, file, dir, stat, ctr.Release(ctx)); err != nil {
		t.Error(err)
	}
}
