package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/kiln-build/kiln/daemon/history"
	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/daemon/spans"
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

// traceWait is for how long a trace is kept open behind its build, unless somebody
// wants it at once: clients send their spans when they end. It is BuildKit's.
const traceWait = 3 * time.Second

// tracing is the trace of a build that has ended, until it is written.
type tracing struct {
	record *controlapi.BuildHistoryRecord
	parent traceParent
	steps  []span
	claim  *spans.Claim      // nil where the client named no trace
	more   []json.RawMessage // what the client has sent
	lost   int               // how many of its spans were too many
	hurry  chan struct{}     // closed when somebody wants it
	done   chan struct{}     // closed when it is written
	once   sync.Once
}

// finalize has the trace written, and waits for it.
func (t *tracing) finalize(ctx context.Context) error {
	t.once.Do(func() { close(t.hurry) })
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tracing gives what the trace of a build is made of.
func (n *build) tracing() *tracing {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &tracing{
		parent: n.trace, steps: sortedByStart(n.steps.spans), claim: n.claim,
		hurry: make(chan struct{}), done: make(chan struct{}),
	}
}

// write writes what the build did when, a span for it and one for each of its steps,
// and what its client has sent.
func (t *tracing) write(out io.Writer) error {
	parent := t.parent
	if parent.trace == "" {
		parent.trace, parent.span = randomHex(16), spans.NoSpan
	}
	of := func(id string) spans.Context {
		return spans.Context{TraceID: parent.trace, SpanID: id, TraceFlags: "01"}
	}
	service := []spans.Attribute{spans.Text("service.name", "kiln")}
	r := t.record
	root := spans.Span{
		Name: "moby.buildkit.v1.Control/Solve", SpanContext: of(randomHex(8)), Parent: of(parent.span), SpanKind: spans.KindServer,
		StartTime: r.CreatedAt.AsTime(), EndTime: r.CompletedAt.AsTime(), ChildSpanCount: len(t.steps), Resource: service,
		Attributes: []spans.Attribute{spans.Text("ref", r.Ref), spans.Text("frontend", r.Frontend)},
		Status:     spans.StatusOf(r.Error.GetMessage()),
	}
	if t.lost > 0 {
		root.Attributes = append(root.Attributes, spans.Number("client.spans.dropped", int64(t.lost)))
	}
	if parent.span == spans.NoSpan {
		root.Parent = spans.Context{TraceID: spans.NoTrace, SpanID: spans.NoSpan, TraceFlags: "00"}
	}
	root.Parent.Remote = parent.span != spans.NoSpan
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		return err
	}
	for _, s := range t.steps {
		err := enc.Encode(spans.Span{
			Name: s.step.Name, SpanContext: of(randomHex(8)), Parent: root.SpanContext, SpanKind: spans.KindInternal,
			StartTime: s.started, EndTime: s.ended, Resource: service, Status: spans.StatusOf(s.step.Error),
			Attributes: []spans.Attribute{spans.Text("vertex", s.step.Digest.String()), spans.Flag("cached", s.step.Cached)},
		})
		if err != nil {
			return err
		}
	}
	for _, s := range t.more {
		if err := enc.Encode(s); err != nil {
			return err
		}
	}
	return nil
}

// follow writes the trace of a build whose client may have spans to send still.
func (j *builds) follow(t *tracing) {
	defer close(t.done)
	wait := time.NewTimer(traceWait)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-t.hurry:
	case <-j.draining:
	}
	t.more, t.lost = t.claim.Release()
	ref := t.record.Ref
	j.mu.Lock()
	current := j.traces[ref] == t
	j.mu.Unlock()
	if !current { // another build has the ref by now
		return
	}
	r, err := j.kept.AttachTo(ref, traceType, t.write, func(r *controlapi.BuildHistoryRecord, d *controlapi.Descriptor) { r.Trace = d })
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.traces[ref] == t {
		delete(j.traces, ref)
	}
	if err == nil {
		j.tell(controlapi.BuildHistoryEventType_COMPLETE, r)
	} else if !errors.Is(err, history.ErrNotFound) { // it may be deleted by now
		j.warn(err)
	}
}

// hurry has all traces written that wait for their clients.
func (j *builds) hurry() {
	j.mu.Lock()
	defer j.mu.Unlock()
	select {
	case <-j.draining:
	default:
		close(j.draining)
	}
}

// claim keeps what the client of a build sends of the trace that it named, where that
// will be in a record.
func (j *builds) claim(n *build, parent traceParent) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.trace = parent
	if id, ok := spans.ParseTraceID(parent.trace); ok && j.kept != nil && !n.request.Internal {
		n.claim = j.spans.Claim(id)
	}
}

// finalize has the trace of a build written that has ended.
func (j *builds) finalize(ctx context.Context, ref string) error {
	j.mu.Lock()
	t := j.traces[ref]
	j.mu.Unlock()
	if t == nil {
		return nil
	}
	return t.finalize(ctx)
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// traceService takes the spans that clients send of their own. The message is read as
// an empty one, of which the bytes stay: package spans says why.
func (s *Server) traceService() *grpc.ServiceDesc {
	export := func(_ any, ctx context.Context, read func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		request := &emptypb.Empty{}
		if err := read(request); err != nil {
			return nil, err
		}
		take := func(context.Context, any) (any, error) {
			if err := s.builds.spans.Take(request.ProtoReflect().GetUnknown()); err != nil {
				return nil, fault.New(codes.InvalidArgument, err.Error())
			}
			return &emptypb.Empty{}, nil
		}
		return intercept(ctx, request, &grpc.UnaryServerInfo{FullMethod: "/" + traceServiceName + "/Export"}, take)
	}
	return &grpc.ServiceDesc{
		ServiceName: traceServiceName, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: export}},
	}
}

const traceServiceName = "opentelemetry.proto.collector.trace.v1.TraceService"
