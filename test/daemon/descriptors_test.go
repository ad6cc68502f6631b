package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/buildid"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// TestDescriptors has a client that speaks the protocol itself name descriptors that
// its process cannot have: what it hears is the same from kiln and from BuildKit.
func TestDescriptors(t *testing.T) {
	_, d := newClient(t)
	for name, addr := range map[string]string{"kiln": d.addr(), "buildkitd": startBuildKit(t)} {
		t.Run(name, func(t *testing.T) {
			c, err := client.New(t.Context(), addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ref := identity.NewID()
			function(t, c, client.SolveOpt{Ref: ref}, func(ctx context.Context, g gateway.Client) {
				ctx = buildid.AppendToOutgoingContext(ctx, ref)
				checkDescriptors(t, func(messages ...*gwpb.ExecMessage) ([]string, error) {
					return converse(ctx, t, gwpb.NewLLBBridgeClient(conn), solveDirectly(ctx, t, conn), messages)
				})
			})
		})
	}
}

// solveDirectly solves busybox's image, and gives its name.
func solveDirectly(ctx context.Context, t *testing.T, conn *grpc.ClientConn) string {
	t.Helper()
	resp, err := gwpb.NewLLBBridgeClient(conn).Solve(ctx, &gwpb.SolveRequest{Definition: marshal(t, busybox()).ToPB(), AllowResultReturn: true, AllowResultArrayRef: true})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetResult().GetRef().GetId()
}

func checkDescriptors(t *testing.T, converse func(...*gwpb.ExecMessage) ([]string, error)) {
	init := func(script string, fds ...uint32) *gwpb.ExecMessage {
		return &gwpb.ExecMessage{Input: &gwpb.ExecMessage_Init{Init: &gwpb.InitMessage{Meta: &pb.Meta{Args: []string{"sh", "-c", script}, Cwd: "/"}, Fds: fds}}}
	}
	script := "echo out; for i in 3 7; do test -e /proc/self/fd/$i && echo has $i; done; echo err >&2; exit 4"
	heard, err := converse(init(script, 1, 2, 3, 7, 3))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(heard) // of several files none comes first
	want := []string{`1 "out\n"`, "1 ends", `2 "err\n"`, "2 ends", "3 ends", "7 ends", "done", "exit 4", "started"}
	if !slices.Equal(heard, want) {
		t.Errorf("of a process with more descriptors than it can have the client heard\n%q, want\n%q", heard, want)
	}
	feed := &gwpb.ExecMessage{Input: &gwpb.ExecMessage_File{File: &gwpb.FdMessage{Fd: 3, Data: []byte("x")}}}
	if heard, err := converse(init("cat", 0, 1, 3), feed); status.Code(err) != codes.OutOfRange {
		t.Errorf("writing to one of them: %v after %q, want OutOfRange", err, heard)
	}
}

// converse sends the messages to a process of a new container, and tells what comes
// back until it is done.
func converse(ctx context.Context, t *testing.T, bridge gwpb.LLBBridgeClient, root string, messages []*gwpb.ExecMessage) (heard []string, err error) {
	t.Helper()
	id := identity.NewID()
	if _, err := bridge.NewContainer(ctx, &gwpb.NewContainerRequest{ContainerID: id, Mounts: []*pb.Mount{{Dest: "/", ResultID: root}}}); err != nil {
		t.Fatal(err)
	}
	defer bridge.ReleaseContainer(ctx, &gwpb.ReleaseContainerRequest{ContainerID: id})
	stream, err := bridge.ExecProcess(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		m.ProcessID = "p"
		if init := m.GetInit(); init != nil {
			init.ContainerID = id
		}
		if err := stream.Send(m); err != nil {
			return nil, err
		}
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return heard, err
		}
		switch in := m.Input.(type) {
		case *gwpb.ExecMessage_Started:
			heard = append(heard, "started")
		case *gwpb.ExecMessage_File:
			if len(in.File.Data) > 0 {
				heard = append(heard, fmt.Sprintf("%d %q", in.File.Fd, in.File.Data))
			}
			if in.File.EOF {
				heard = append(heard, fmt.Sprintf("%d ends", in.File.Fd))
			}
		case *gwpb.ExecMessage_Exit:
			heard = append(heard, fmt.Sprintf("exit %d", in.Exit.Code))
		case *gwpb.ExecMessage_Done:
			if err := stream.CloseSend(); err != nil {
				return heard, err
			}
			for err == nil {
				_, err = stream.Recv()
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return append(heard, "done"), err
		}
	}
}
