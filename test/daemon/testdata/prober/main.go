// Command prober is a frontend that tries to reach more than its own build, and
// returns what came of it as an error.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/buildid"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// stdio is the connection to the engine.
type stdio struct {
	io.Reader
	io.Writer
	net.Conn // nil: nobody asks for its addresses
}

func (s stdio) Read(b []byte) (int, error)     { return s.Reader.Read(b) }
func (s stdio) Write(b []byte) (int, error)    { return s.Writer.Write(b) }
func (stdio) Close() error                     { return nil }
func (stdio) SetDeadline(time.Time) error      { return nil }
func (stdio) SetReadDeadline(time.Time) error  { return nil }
func (stdio) SetWriteDeadline(time.Time) error { return nil }
func (stdio) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "stdio"} }
func (stdio) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "stdio"} }

func main() {
	conn, err := grpc.NewClient("passthrough:///engine", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return stdio{Reader: os.Stdin, Writer: os.Stdout}, nil
		}))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx := context.Background()
	bridge := gwpb.NewLLBBridgeClient(conn)
	report := strings.Join(probe(ctx, conn, bridge), "\n")
	if _, err := bridge.Return(ctx, &gwpb.ReturnRequest{Error: &spb.Status{Code: int32(codes.Aborted), Message: report}}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func probe(ctx context.Context, conn *grpc.ClientConn, bridge gwpb.LLBBridgeClient) []string {
	var report []string
	say := func(format string, args ...any) { report = append(report, fmt.Sprintf(format, args...)) }

	var itself pb.Definition
	data, err := os.ReadFile("/run/config/buildkit/metadata/frontend.bin")
	if err == nil {
		err = itself.UnmarshalVT(data)
	}
	for _, dt := range itself.Def {
		var op pb.Op
		if op.UnmarshalVT(dt) == nil && op.GetSource() != nil {
			say("itself: %s", op.GetSource().Identifier)
		}
	}
	if err != nil {
		say("itself: %v", err)
	}
	_, err = controlapi.NewControlClient(conn).ListWorkers(ctx, &controlapi.ListWorkersRequest{})
	say("control: %s", status.Code(err))
	other := buildid.AppendToOutgoingContext(ctx, os.Getenv("BUILDKIT_FRONTEND_OPT_0")[len("other="):])
	_, err = bridge.ReadFile(other, &gwpb.ReadFileRequest{Ref: "ref0", FilePath: "/private"})
	say("other build: %s", status.Convert(err).Message())
	say("host network: %s", tryContainer(ctx, bridge))
	entries, err := os.ReadDir("/")
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	say("files: %v %v", names, err)
	say("process: %d", os.Getpid())
	interfaces, err := net.Interfaces()
	say("networks: %d %v", len(interfaces), err)
	return report
}

// tryContainer asks for a container with the host's network, and says how its
// process ends.
func tryContainer(ctx context.Context, bridge gwpb.LLBBridgeClient) string {
	req := &gwpb.NewContainerRequest{ContainerID: "c", Network: pb.NetMode_HOST, Mounts: []*pb.Mount{{Dest: "/"}}}
	if _, err := bridge.NewContainer(ctx, req); err != nil {
		return err.Error()
	}
	stream, err := bridge.ExecProcess(ctx)
	if err != nil {
		return err.Error()
	}
	init := &gwpb.InitMessage{ContainerID: "c", Meta: &pb.Meta{Args: []string{"/any"}}}
	if err := stream.Send(&gwpb.ExecMessage{ProcessID: "p", Input: &gwpb.ExecMessage_Init{Init: init}}); err != nil {
		return err.Error()
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err.Error()
		}
		if exit := m.GetExit(); exit != nil {
			return exit.GetError().GetMessage()
		}
	}
}
