package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content/proxy"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"
)

// exportSpans sends the trace service a message as it is.
func exportSpans(ctx context.Context, conn *grpc.ClientConn, message []byte) error {
	m := &emptypb.Empty{}
	m.ProtoReflect().SetUnknown(message)
	return conn.Invoke(ctx, "/opentelemetry.proto.collector.trace.v1.TraceService/Export", m, &emptypb.Empty{})
}

// nested puts fields of bytes into each other, the innermost last.
func nested(data []byte, ids ...protowire.Number) []byte {
	for i := len(ids) - 1; i >= 0; i-- {
		data = protowire.AppendBytes(protowire.AppendTag(nil, ids[i], protowire.BytesType), data)
	}
	return data
}

// TestSpansAreBounded has a client send far more spans than are kept, while its build
// goes on and behind its end, and spans of a trace that is another's, and no spans at all.
func TestSpansAreBounded(t *testing.T) {
	c, d := newClient(t)
	conn, err := grpc.NewClient(d.addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	span := func(id, name string) []byte {
		return nested(append(nested([]byte(id), 1), nested([]byte(name), 5)...), 1, 2, 2)
	}
	send := func(message []byte) {
		t.Helper()
		if err := exportSpans(t.Context(), conn, message); err != nil {
			t.Error(err)
		}
	}
	const own, other = "0123456789abcdef", "fedcba9876543210"
	ref, large := identity.NewID(), strings.Repeat("x", 1<<20)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-30313233343536373839616263646566-3031323334353637-01")
	_, err = c.Build(ctx, client.SolveOpt{Ref: ref}, "test", func(context.Context, gateway.Client) (*gateway.Result, error) {
		send(span(own, "during"))
		for range 20 {
			send(span(own, large))
			send(span(other, large))
		}
		if err := exportSpans(t.Context(), conn, nested([]byte("no spans"), 1)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("what is no message of the protocol: %v", err)
		}
		return gateway.NewResult(), nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	send(span(own, "behind"))
	names, dropped := traceOf(t, c, ref)
	if names["during"] != 1 || names["behind"] != 1 || names[large] == 0 || names[large] > 8 || names[large]+dropped != 20 {
		t.Errorf("the trace has %d spans that came during the build, %d from behind it, %d large ones; %d were dropped",
			names["during"], names["behind"], names[large], dropped)
	}
}

// traceOf has a record finalized, and counts the spans of its trace by their names.
func traceOf(t *testing.T, c *client.Client, ref string) (names map[string]int, dropped int) {
	t.Helper()
	if _, err := c.ControlClient().UpdateBuildHistory(t.Context(), &controlapi.UpdateBuildHistoryRequest{Ref: ref, Finalize: true}); err != nil {
		t.Fatal(err)
	}
	stream, err := c.ControlClient().ListenBuildHistory(t.Context(), &controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true})
	if err != nil {
		t.Fatal(err)
	}
	event, err := stream.Recv()
	if err != nil || event.Record.GetTrace() == nil {
		t.Fatalf("the record is %v, %v", event, err)
	}
	desc := ocispecs.Descriptor{Digest: digest.Digest(event.Record.Trace.Digest), Size: event.Record.Trace.Size}
	blob, err := proxy.NewContentStore(c.ContentClient()).ReaderAt(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	names = map[string]int{}
	for dec := json.NewDecoder(io.NewSectionReader(blob, 0, blob.Size())); ; {
		var span struct {
			Name       string
			Attributes []struct {
				Key   string
				Value struct{ Value any }
			}
		}
		if err := dec.Decode(&span); errors.Is(err, io.EOF) {
			return names, dropped
		} else if err != nil {
			t.Fatal(err)
		}
		names[span.Name]++
		for _, a := range span.Attributes {
			if n, ok := a.Value.Value.(float64); ok && a.Key == "client.spans.dropped" {
				dropped = int(n)
			}
		}
	}
}
