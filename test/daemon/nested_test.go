package daemon

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/llbbuild"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/tonistiigi/fsutil"
)

// TestNestedGraph builds graphs that are found in files: one in the file of another,
// which a step has written, and what stands on that.
func TestNestedGraph(t *testing.T) {
	c, _ := newClient(t)
	file := func(st llb.State) []byte {
		t.Helper()
		var b bytes.Buffer
		if err := llb.WriteTo(marshal(t, st), &b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	base := llb.Image(shared.registry.Addr + "/busybox:latest")
	src := folder(t, map[string]string{"word": "first"})
	inner := base.Run(llb.Args([]string{"sh", "-c", "cat /src/word > /out/made"}), llb.AddMount("/src", llb.Local("src"), llb.Readonly)).AddMount("/out", llb.Scratch())
	// A step moves the inner graph to where the outer one looks for it.
	written := base.Run(llb.Args([]string{"cp", "/in/graph", "/defs/inner.llb"}),
		llb.AddMount("/in", llb.Scratch().File(llb.Mkfile("/graph", 0o644, file(inner))), llb.Readonly)).AddMount("/defs", llb.Scratch())
	outer := written.With(llbbuild.Build(llbbuild.WithFilename("inner.llb"))).File(llb.Mkfile("/outer", 0o644, []byte("outer")))
	graph := llb.Scratch().File(llb.Mkfile("/buildkit.llb.definition", 0o644, file(outer))).With(llbbuild.Build())
	// The client lends what the graph names that it sends itself.
	graph = graph.File(llb.Copy(graph, "/made", "/copied").Copy(llb.Local("src"), "/word", "/lent"))

	build := func(policy *spb.Policy) (string, error) {
		out := t.TempDir()
		_, err := c.Solve(t.Context(), marshal(t, graph), client.SolveOpt{
			LocalMounts: map[string]fsutil.FS{"src": mount(t, src)}, Exports: toFolder(out), SourcePolicy: policy,
		}, nil)
		return out, err
	}
	for _, word := range []string{"first", "second"} {
		src = folder(t, map[string]string{"word": word})
		out, err := build(nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"made": word, "copied": word, "outer": "outer"} {
			if got := read(t, filepath.Join(out, name)); got != want {
				t.Errorf("%s holds %q, want %q", name, got, want)
			}
		}
	}
	deny := &spb.Policy{Rules: []*spb.Rule{{Action: spb.PolicyAction_DENY, Selector: &spb.Selector{Identifier: "docker-image://*"}}}}
	if _, err := build(deny); err == nil || !strings.Contains(err.Error(), "denied by policy") {
		t.Errorf("with a policy that denies what the innermost graph reads: %v", err)
	}
}
