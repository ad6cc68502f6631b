// Package fault puts errors into the form in which BuildKit's clients take them: a
// gRPC status whose details say which vertex failed, which lines of which file it
// was compiled from, and how its process ended.
//
// A detail is an Any whose type URL names BuildKit's type and whose value is its
// JSON. The types are written out here, since the package that holds them belongs
// to BuildKit's solver.
package fault

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kiln-build/kiln/frontend/dockerfile"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/executor"
)

const typePrefix = "github.com/moby/buildkit/"

// vertex, source, exit and step are the details, as JSON has them.
type (
	vertex struct {
		Digest string `json:"digest,omitempty"`
	}
	source struct {
		Info   *pb.SourceInfo `json:"info,omitempty"`
		Ranges []*pb.Range    `json:"ranges,omitempty"`
	}
	exit struct {
		Code uint32 `json:"Code,omitempty"`
	}
	step struct {
		InputIDs    []string          `json:"inputIDs,omitempty"`
		MountIDs    []string          `json:"mountIDs,omitempty"`
		Op          json.RawMessage   `json:"op,omitempty"`
		File        *subject          `json:"file,omitempty"`
		Cache       *subject          `json:"cache,omitempty"`
		Description map[string]string `json:"description,omitempty"`
	}
	subject struct {
		Index int64 `json:"index,omitempty"`
	}
)

// Step is the failure of a step of which the client can look at what went in and
// what it left, under names for results.
type Step struct {
	Inputs, Left []string
	Err          error
	of           *worker.StepError
}

// NewStep makes one of an error that wraps s.
func NewStep(err error, s *worker.StepError, inputs, left []string) *Step {
	return &Step{Inputs: inputs, Left: left, Err: err, of: s}
}

func (s *Step) Error() string { return s.Err.Error() }

// Unwrap gives what went wrong.
func (s *Step) Unwrap() error { return s.Err }

func (s *Step) detail() (step, error) {
	d := step{InputIDs: s.Inputs, MountIDs: s.Left, Description: s.of.Vertex.Meta().Description}
	at := &subject{int64(s.of.Index)}
	switch s.of.Subject {
	case worker.SubjectAction:
		d.File = at
	case worker.SubjectInput:
		d.Cache = at
	}
	var err error
	d.Op, err = protojson.Marshal(s.of.Vertex.Op())
	return d, err
}

// New gives an error of that code.
func New(code codes.Code, message string) error { return status.Error(code, message) }

// foreign is an error that a client or a frontend handed back, details and all.
type foreign struct{ proto *spb.Status }

func (f *foreign) Error() string              { return f.proto.Message }
func (f *foreign) GRPCStatus() *status.Status { return status.FromProto(f.proto) }

// Foreign gives the error that a client or a frontend handed back.
func Foreign(s *spb.Status) error {
	if s.Code == int32(codes.OK) {
		s.Code = int32(codes.Unknown)
	}
	return &foreign{s}
}

// Status gives err as a client sees it.
func Status(err error) *status.Status {
	if err == nil {
		return nil
	}
	var given *foreign
	if errors.As(err, &given) {
		return given.GRPCStatus()
	}
	out := &spb.Status{Code: int32(code(err)), Message: message(err)}
	var failed *solver.VertexError
	if errors.As(err, &failed) {
		out.Details = appendDetail(out.Details, "errdefs.Vertex+json", vertex{failed.Vertex.String()})
	}
	var ended *executor.ExitError
	if errors.As(err, &ended) {
		out.Details = appendDetail(out.Details, "gatewayapi.ExitMessage+json", exit{uint32(ended.Code)})
	}
	var left *Step
	if errors.As(err, &left) {
		if d, err := left.detail(); err == nil {
			out.Details = appendDetail(out.Details, "errdefs.Solve+json", d)
		}
	}
	var more interface {
		Detail() (kind string, value any)
	}
	if errors.As(err, &more) {
		kind, value := more.Detail()
		out.Details = appendDetail(out.Details, kind, value)
	}
	var placed *dockerfile.Error
	if failed != nil && len(failed.Locations) > 0 {
		// Clients unwrap the last one first.
		for _, src := range slices.Backward(sources(failed.Locations)) {
			out.Details = appendDetail(out.Details, "errdefs.Source+json", src)
		}
	} else if errors.As(err, &placed) && placed.File != nil && len(placed.Lines) > 0 {
		out.Details = appendDetail(out.Details, "errdefs.Source+json", sourceOf(placed))
	}
	return status.FromProto(out)
}

// sources gives the locations of a vertex: lines of one file that stand together are
// one of them.
func sources(locations []llb.Location) []source {
	var out []source
	var file *llb.File
	for _, l := range locations {
		if l.File == nil {
			continue
		}
		if l.File != file {
			file = l.File
			out = append(out, source{Info: file.Info()})
		}
		last := &out[len(out)-1]
		last.Ranges = append(last.Ranges, l.Range())
	}
	return out
}

func sourceOf(e *dockerfile.Error) source {
	s := source{Info: e.File.Info()}
	for _, l := range e.Lines {
		for n := l.Start; n <= l.End; n++ { // a range for each line, as BuildKit has it
			at := &pb.Position{Line: int32(n)}
			s.Ranges = append(s.Ranges, &pb.Range{Start: at, End: at})
		}
	}
	return s
}

func appendDetail(details []*anypb.Any, kind string, value any) []*anypb.Any {
	data, err := json.Marshal(value)
	if err != nil {
		return details // the message says what matters
	}
	return append(details, &anypb.Any{TypeUrl: typePrefix + kind, Value: data})
}

func code(err error) codes.Code {
	var s interface{ GRPCStatus() *status.Status }
	var lacking *dockerfile.UnsupportedError
	switch {
	case errors.As(err, &s) && s.GRPCStatus().Code() != codes.OK:
		return s.GRPCStatus().Code()
	case errors.As(err, &lacking) && lacking.Capability != "":
		return codes.Unimplemented
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return codes.Unknown
}

// message leaves out the lines of the Dockerfile, which clients show from the
// details, and the name of the vertex, as BuildKit does.
func message(err error) string {
	var failed *solver.VertexError
	if errors.As(err, &failed) {
		err = failed.Err
	}
	var placed *dockerfile.Error
	if !errors.As(err, &placed) {
		var s interface{ GRPCStatus() *status.Status }
		if errors.As(err, &s) && strings.HasPrefix(err.Error(), "rpc error:") {
			return s.GRPCStatus().Message()
		}
		return err.Error()
	}
	return placed.Message()
}
