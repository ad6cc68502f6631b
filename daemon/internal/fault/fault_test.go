package fault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"

	"github.com/kiln-build/kiln/frontend/dockerfile"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/executor"
)

func TestStatusOfAFailedStep(t *testing.T) {
	process := &worker.ProcessError{Args: []string{"make"}, Err: &executor.ExitError{Code: 3}}
	vertex := &solver.VertexError{Vertex: llb.Digest{1}, Name: "[2/2] RUN make", Err: process}
	err := &dockerfile.Error{
		File: &llb.File{Name: "Dockerfile", Data: []byte("FROM x\nRUN make\n")}, Lines: []dockerfile.Lines{{Start: 2, End: 2}}, Err: vertex,
	}
	st := Status(fmt.Errorf("building: %w", err))
	if want := `process "make" did not complete successfully: exit code: 3`; st.Message() != want {
		t.Errorf("the message is %q, want %q", st.Message(), want)
	}
	var types []string
	for _, d := range st.Proto().Details {
		types = append(types, d.TypeUrl)
	}
	want := "[github.com/moby/buildkit/errdefs.Vertex+json github.com/moby/buildkit/gatewayapi.ExitMessage+json github.com/moby/buildkit/errdefs.Source+json]"
	if got := fmt.Sprint(types); got != want {
		t.Errorf("the details are %v, want %v", got, want)
	}
	// BuildKit's own code reads the exit code.
	var exit *gwpb.ExitError
	if err := grpcerrors.FromGRPC(st.Err()); !errors.As(err, &exit) || exit.ExitCode != 3 {
		t.Errorf("a client sees %v, want exit code 3", err)
	}
}

func TestStatusCodes(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"an error of no kind", errors.New("x"), codes.Unknown, "x"},
		{"a cancelled build", fmt.Errorf("building: %w", context.Canceled), codes.Canceled, "building: context canceled"},
		{"one with a code", New(codes.NotFound, "no such job"), codes.NotFound, "no such job"},
		{"a mistake in the text, with advice", &dockerfile.Error{Err: errors.New("unknown"), Hint: "did you mean RUN?"}, codes.Unknown, "unknown (did you mean RUN?)"},
		{"one that came back", fmt.Errorf("here: %w", Foreign(status.New(codes.Aborted, "theirs").Proto())), codes.Aborted, "theirs"},
		{"one that came back as no error", Foreign(status.New(codes.OK, "odd").Proto()), codes.Unknown, "odd"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if st := Status(test.err); st.Code() != test.code || st.Message() != test.text {
				t.Errorf("got %v %q, want %v %q", st.Code(), st.Message(), test.code, test.text)
			}
		})
	}
	if Status(nil) != nil {
		t.Error("no error has a status")
	}
}

func TestSourceHasRanges(t *testing.T) {
	s := sourceOf(&dockerfile.Error{File: &llb.File{Name: "f"}, Lines: []dockerfile.Lines{{Start: 2, End: 3}, {Start: 9, End: 9}}})
	var lines []int32
	for _, r := range s.Ranges {
		if r.Start.Line != r.End.Line {
			t.Errorf("got a range from %v to %v, want one for each line", r.Start, r.End)
		}
		lines = append(lines, r.Start.Line)
	}
	if !slices.Equal(lines, []int32{2, 3, 9}) || s.Info.Filename != "f" {
		t.Errorf("got lines %v of %s, want 2, 3 and 9 of f", lines, s.Info.Filename)
	}
}
