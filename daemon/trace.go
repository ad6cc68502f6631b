package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
)

// traceType is the media type of a trace: spans as JSON, one after the other.
const traceType = "application/vnd.buildkit.otlp.json.v0"

// traceParent is the span of a client that a build belongs to; the zero value is none.
type traceParent struct{ trace, span string }

// parentOf reads the header by which clients say which of their spans a call belongs to.
func parentOf(ctx context.Context) traceParent {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("traceparent")
	if len(values) == 0 {
		return traceParent{}
	}
	parts := strings.Split(values[0], "-")
	if len(parts) < 4 || !isHex(parts[1], 16) || !isHex(parts[2], 8) {
		return traceParent{}
	}
	return traceParent{parts[1], parts[2]}
}

func isHex(s string, size int) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == size && strings.Trim(s, "0") != ""
}

// spanJSON is a span as clients read it, in the form that OpenTelemetry's Go
// packages give it.
type spanJSON struct {
	Name                   string
	SpanContext, Parent    spanContext
	SpanKind               int
	StartTime, EndTime     time.Time
	Attributes             []attribute
	Events, Links          []struct{}
	Status                 spanStatus
	DroppedAttributes      int
	DroppedEvents          int
	DroppedLinks           int
	ChildSpanCount         int
	Resource               []attribute
	InstrumentationLibrary struct{ Name, Version, SchemaURL string }
}

type spanContext struct {
	TraceID, SpanID, TraceFlags, TraceState string
	Remote                                  bool
}

type spanStatus struct{ Code, Description string }

type attribute struct {
	Key   string
	Value struct{ Type, Value any }
}

const (
	kindInternal = 1
	kindServer   = 2
	// noTrace and noSpan are the ids of what is not there.
	noTrace = "00000000000000000000000000000000"
	noSpan  = "0000000000000000"
)

func text(key, value string) attribute {
	return attribute{key, struct{ Type, Value any }{"STRING", value}}
}

func flag(key string, value bool) attribute {
	return attribute{key, struct{ Type, Value any }{"BOOL", value}}
}

// trace attaches what the build did when: a span for it, and one for each of its steps.
func (w recording) trace(n *build) (err error) {
	n.mu.Lock()
	spans, parent := sortedByStart(n.steps.spans), n.trace
	n.mu.Unlock()
	if parent.trace == "" {
		parent.trace, parent.span = randomHex(16), noSpan
	}
	of := func(id string) spanContext { return spanContext{TraceID: parent.trace, SpanID: id, TraceFlags: "01"} }
	service := []attribute{text("service.name", "kiln")}
	root := spanJSON{
		Name: "moby.buildkit.v1.Control/Solve", SpanContext: of(randomHex(8)), Parent: of(parent.span), SpanKind: kindServer,
		StartTime: w.CreatedAt.AsTime(), EndTime: w.CompletedAt.AsTime(), ChildSpanCount: len(spans), Resource: service,
		Attributes: []attribute{text("ref", w.Ref), text("frontend", w.Frontend)},
		Status:     statusOf(w.Error.GetMessage()),
	}
	if parent.span == noSpan {
		root.Parent = spanContext{TraceID: noTrace, SpanID: noSpan, TraceFlags: "00"}
	}
	root.Parent.Remote = parent.span != noSpan
	w.Trace, err = w.draft.Attach(traceType, func(out io.Writer) error {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(root); err != nil {
			return err
		}
		for _, s := range spans {
			err := enc.Encode(spanJSON{
				Name: s.step.Name, SpanContext: of(randomHex(8)), Parent: root.SpanContext, SpanKind: kindInternal,
				StartTime: s.started, EndTime: s.ended, Resource: service, Status: statusOf(s.step.Error),
				Attributes: []attribute{text("vertex", s.step.Digest.String()), flag("cached", s.step.Cached)},
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

func statusOf(failure string) spanStatus {
	if failure == "" {
		return spanStatus{Code: "Unset"}
	}
	return spanStatus{Code: "Error", Description: failure}
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// traceService takes the spans that clients send of their own, which is all that
// they ask of it, and keeps none: a record's trace is of what the daemon did. Its
// messages are read as empty ones, which spares the program OpenTelemetry's types.
var traceService = grpc.ServiceDesc{
	ServiceName: "opentelemetry.proto.collector.trace.v1.TraceService",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: func(_ any, _ context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		if err := read(&emptypb.Empty{}); err != nil {
			return nil, err
		}
		return &emptypb.Empty{}, nil
	}}},
}
