package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/worker"
)

// broken is a bridge whose every method panics.
type broken struct{ frontend.Bridge }

// What panics in a frontend's call, or in a process that it runs, is that one's error:
// the next call is answered.
func TestPanicIsAnError(t *testing.T) {
	f := NewFunction(nil, nil)
	f.containers.byID = map[string]*worker.Container{"nothing in it": nil}
	enough := errors.New("the frontend has seen enough")
	_, err := f.runIn(t.Context(), frontend.Request{}, broken{}, func(ctx context.Context, conn net.Conn, _ io.Writer) error {
		cc, err := dial(conn)
		if err != nil {
			return err
		}
		defer cc.Close()
		client := gwpb.NewLLBBridgeClient(cc)
		if _, err := client.Warn(ctx, &gwpb.WarnRequest{}); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "panicked") {
			t.Errorf("a call that panics gives %v", err)
		}
		exit, err := runProcess(ctx, client, "nothing in it")
		if err != nil || exit.GetError().GetCode() != int32(codes.Internal) {
			t.Errorf("a process that panics ends with %v, %v", exit, err)
		}
		if _, err := client.Ping(ctx, &gwpb.PingRequest{}); err != nil {
			t.Errorf("the call behind it gives %v", err)
		}
		f.containers.remove("nothing in it")
		return enough
	})
	if !errors.Is(err, enough) {
		t.Errorf("the build ended with %v", err)
	}
	f = NewFunction(nil, nil)
	_, err = f.runIn(t.Context(), frontend.Request{}, broken{}, func(context.Context, net.Conn, io.Writer) error { panic("no program") })
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "no program") {
		t.Errorf("a frontend that panics when it is run gives %v", err)
	}
}

// dial speaks to the server at the other end of a connection.
func dial(conn net.Conn) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///frontend",
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// runProcess runs a process in a container and gives how it ended.
func runProcess(ctx context.Context, client gwpb.LLBBridgeClient, container string) (*gwpb.ExitMessage, error) {
	stream, err := client.ExecProcess(ctx)
	if err != nil {
		return nil, err
	}
	init := &gwpb.InitMessage{ContainerID: container, Meta: &pb.Meta{Args: []string{"true"}}}
	if err := stream.Send(&gwpb.ExecMessage{ProcessID: "p", Input: &gwpb.ExecMessage_Init{Init: init}}); err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if exit := m.GetExit(); exit != nil {
			return exit, nil
		}
	}
}
