package kiln

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// writeGraph marshals a graph into a file of a folder.
func writeGraph(t *testing.T, file string, e llb.Edge) {
	t.Helper()
	def, err := llb.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(def)
	if err == nil {
		err = os.WriteFile(file, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T) func(v *llb.Vertex, err error) llb.Edge {
	return func(v *llb.Vertex, err error) llb.Edge {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v.Output(0)
	}
}

// mkfile is a graph of one file on another.
func mkfile(t *testing.T, on llb.Edge, name, text string) llb.Edge {
	t.Helper()
	var f llb.Files
	return must(t)(f.Vertex([]llb.FileState{f.From(on).Mkfile(&pb.FileActionMkFile{Path: "/" + name, Mode: 0o644, Data: []byte(text), Timestamp: -1})}))
}

// copyData is a graph of the file "data" of a folder, as "out".
func copyData(t *testing.T, from llb.Edge) llb.Edge {
	t.Helper()
	var f llb.Files
	s := f.From(llb.Edge{}).Copy(f.From(from), &pb.FileActionCopy{Src: "/data", Dest: "/out", Mode: -1, Timestamp: -1})
	return must(t)(f.Vertex([]llb.FileState{s}))
}

// nestedRun solves a graph in a build whose folder "context" is dir, and reads a file
// of the result.
func nestedRun(t *testing.T, e *Engine, dir string, graph llb.Edge, name string, policy *spb.Policy) (got string, err error) {
	t.Helper()
	f := frontendFunc(func(ctx context.Context, b frontend.Bridge) error {
		ref, serr := b.Solve(ctx, graph)
		if serr != nil {
			err = serr
			return nil
		}
		data, rerr := ref.ReadFile(ctx, name)
		got, err = string(data), rerr
		return nil
	})
	if _, berr := e.Build(t.Context(), Request{Context: dir, Frontend: f, Call: "outline", SourcePolicy: policy}); berr != nil {
		t.Fatal(berr)
	}
	return got, err
}

func TestBuildOp(t *testing.T) {
	e, err := Open(t.Context(), Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	folder := must(t)(llb.Source("local://context", nil))
	build := func(name string) llb.Edge {
		return must(t)(llb.Build(folder, map[string]string{pb.AttrLLBDefinitionFilename: name}))
	}
	write("data", "one")
	inner := copyData(t, folder)
	writeGraph(t, filepath.Join(dir, "inner.llb"), inner)
	writeGraph(t, filepath.Join(dir, "outer.llb"), mkfile(t, build("inner.llb"), "more", "x"))
	writeGraph(t, filepath.Join(dir, pb.LLBDefaultDefinitionFile), inner)

	// One in another, and what stands on it.
	top := mkfile(t, build("outer.llb"), "top", "y")
	if got, err := nestedRun(t, e, dir, top, "out", nil); err != nil || got != "one" {
		t.Errorf("got %q, %v", got, err)
	}
	// A record would lead to what the graph's own sources were.
	write("data", "two")
	if got, err := nestedRun(t, e, dir, top, "out", nil); err != nil || got != "two" {
		t.Errorf("after a change that only the graph sees: got %q, %v", got, err)
	}
	if got, err := nestedRun(t, e, dir, must(t)(llb.Build(folder, nil)), "out", nil); err != nil || got != "two" {
		t.Errorf("by the default name: got %q, %v", got, err)
	}
	// What is no graph, or leads to itself.
	write("garbage", "\xff\xff")
	write("nothing", "")
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(dir, "link")), os.Truncate(mustCreate(t, dir, "large"), maxTestDefinition+1)); err != nil {
		t.Fatal(err)
	}
	writeGraph(t, filepath.Join(dir, "itself.llb"), build("itself.llb"))
	writeGraph(t, filepath.Join(dir, "ping.llb"), build("pong.llb"))
	writeGraph(t, filepath.Join(dir, "pong.llb"), mkfile(t, build("ping.llb"), "a", ""))
	writeGraph(t, filepath.Join(dir, "bad.llb"), must(t)(llb.Source("nonsense://x", nil)))
	for name, want := range map[string]string{
		"garbage":    "no definition",
		"missing":    "does not exist",
		"link":       "does not exist", // inside of the folder it leads nowhere
		".":          "not a regular file",
		"large":      "exceeds maximum",
		"itself.llb": "circle",
		"ping.llb":   "circle",
		"bad.llb":    "nonsense",
	} {
		if _, err := nestedRun(t, e, dir, build(name), "out", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, want)
		}
	}
	// An empty file is the graph of nothing.
	if got, err := nestedRun(t, e, dir, mkfile(t, build("nothing"), "f", "z"), "f", nil); err != nil || got != "z" {
		t.Errorf("a graph without ops: got %q, %v", got, err)
	}
}

// maxTestDefinition is what the file of a graph may have, as BuildKit has it.
const maxTestDefinition = 16 << 20

func mustCreate(t *testing.T, dir, name string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// A graph that a build operation makes reads nothing that the build may not read, and
// what was made for a build without policies is not for one that has some.
func TestBuildOpUnderPolicies(t *testing.T) {
	e, err := Open(t.Context(), Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data"), []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	folder := must(t)(llb.Source("local://context", nil))
	other := must(t)(llb.Source("local://context", map[string]string{pb.AttrIncludePatterns: `["data"]`}))
	writeGraph(t, filepath.Join(dir, "g"), copyData(t, other))
	graph := must(t)(llb.Build(folder, map[string]string{pb.AttrLLBDefinitionFilename: "g"}))
	deny := &spb.Policy{Rules: []*spb.Rule{{Action: spb.PolicyAction_DENY, Selector: &spb.Selector{
		Identifier:  "local://context",
		Constraints: []*spb.AttrConstraint{{Key: pb.AttrIncludePatterns, Value: `["data"]`, Condition: spb.AttrMatch_EQUAL}},
	}}}}
	for range 2 {
		if got, err := nestedRun(t, e, dir, graph, "out", nil); err != nil || got != "one" {
			t.Errorf("without a policy: got %q, %v", got, err)
		}
		if _, err := nestedRun(t, e, dir, graph, "out", deny); err == nil || !strings.Contains(err.Error(), "denied") {
			t.Errorf("with a policy that denies what the graph reads: %v", err)
		}
	}
	// The mark of another build's policies is worth nothing.
	forged := must(t)(llb.Build(folder, map[string]string{pb.AttrLLBDefinitionFilename: "g", attrPolicy: strings.Repeat("0", 32)}))
	if _, err := nestedRun(t, e, dir, forged, "out", deny); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("with a mark of the client's own: %v", err)
	}
}
