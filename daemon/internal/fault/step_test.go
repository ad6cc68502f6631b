package fault

import (
	"errors"
	"fmt"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/worker"
)

// The detail says what failed, in the JSON of BuildKit's message.
func TestStatusOfAStepToEnter(t *testing.T) {
	exec := llb.Exec{Meta: &pb.Meta{Args: []string{"make"}}, Mounts: []llb.Mount{llb.Root(llb.Edge{})}}
	v, err := exec.Vertex()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		subject worker.Subject
		key     string // of the subject; empty is none
	}{
		{"a process", worker.SubjectStep, ""},
		{"a file action", worker.SubjectAction, "file"},
		{"an input", worker.SubjectInput, "cache"},
	} {
		t.Run(test.name, func(t *testing.T) {
			failed := &worker.StepError{Vertex: v, Subject: test.subject, Index: 2, Err: errors.New("it broke")}
			st := Status(fmt.Errorf("building: %w", NewStep(failed, failed, []string{"ref1", ""}, []string{"ref2"})))
			if st.Message() != "building: it broke" {
				t.Errorf("the message is %q", st.Message())
			}
			var detail structpb.Struct
			for _, d := range st.Proto().Details {
				if d.TypeUrl != "github.com/moby/buildkit/errdefs.Solve+json" {
					continue
				}
				if err := protojson.Unmarshal(d.Value, &detail); err != nil {
					t.Fatal(err)
				}
			}
			got := detail.AsMap()
			if want := "[[ref1 ] [ref2]]"; fmt.Sprint([]any{got["inputIDs"], got["mountIDs"]}) != want {
				t.Errorf("the names are %v and %v, want %s", got["inputIDs"], got["mountIDs"], want)
			}
			op, _ := got["op"].(map[string]any)
			if op["exec"] == nil {
				t.Errorf("the op is %v, want an exec op", got["op"])
			}
			for _, key := range []string{"file", "cache"} {
				want := "<nil>"
				if key == test.key {
					want = "map[index:2]"
				}
				if fmt.Sprint(got[key]) != want {
					t.Errorf("%s is %v, want %s", key, got[key], want)
				}
			}
		})
	}
}
