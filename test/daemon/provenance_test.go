package daemon

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/tonistiigi/fsutil"
)

// TestProvenance compares the provenances of kiln and of the real BuildKit of the same
// Dockerfile, field by field, in both versions and modes.
func TestProvenance(t *testing.T) {
	_, d := newClient(t)
	ours, theirs := connect(t, d.addr()), connect(t, startBuildKit(t))
	context := folder(t, map[string]string{"a": "a", "Dockerfile": `ARG BASE=scratch
FROM $BASE AS build
ARG WHO=nobody
RUN --mount=type=secret,id=token,required=true --mount=type=secret,id=other echo $WHO > /who
COPY a /a
FROM scratch
LABEL made=here
COPY --from=build /who /a /
`})
	for _, version := range []string{"v1", "v0.2"} {
		for _, more := range []string{"mode=max", "mode=min", "mode=max,capture-usage=true", "mode=min,reproducible=true,builder-id=https://example.com/me"} {
			t.Run(version+" "+more, func(t *testing.T) {
				attrs := map[string]string{
					"attest:provenance": "version=" + version + "," + more, "build-arg:BASE": shared.registry.Addr + "/busybox:latest",
					"build-arg:WHO": "me", "label:x": "y", "no-cache": "", "vcs:revision": "abc", "vcs:source": "https://me:hunter2@example.com/x",
				}
				o := client.SolveOpt{
					Frontend: "dockerfile.v0", FrontendAttrs: attrs,
					LocalMounts: map[string]fsutil.FS{"context": mount(t, context), "dockerfile": mount(t, context)},
					Session:     []session.Attachable{secretsprovider.FromMap(map[string][]byte{"token": []byte("s3cret")})},
				}
				compare(t, provenanceOf(t, ours, nil, o), provenanceOf(t, theirs, nil, o))
			})
		}
	}
	// Without a frontend there is a graph alone, of which this one has all kinds of sources.
	files := httptest.NewServer(http.FileServerFS(fstest.MapFS{"file": {Data: []byte("file")}}))
	defer files.Close()
	sources := llb.Merge([]llb.State{
		llb.Scratch().File(llb.Copy(llb.HTTP(files.URL+"/file"), "/file", "/file").Copy(llb.Local("context"), "/a", "/a")),
		llb.Scratch().File(llb.Copy(busybox(), "/bin/busybox", "/busybox")),
	})
	for _, attrs := range []string{"version=v1,mode=max", "version=v0.2,mode=min"} {
		t.Run("graph "+attrs, func(t *testing.T) {
			o := client.SolveOpt{
				FrontendAttrs: map[string]string{"attest:provenance": attrs}, LocalMounts: map[string]fsutil.FS{"context": mount(t, context)},
			}
			compare(t, provenanceOf(t, ours, marshal(t, sources), o), provenanceOf(t, theirs, marshal(t, sources), o))
		})
	}
}

func connect(t *testing.T, addr string) *client.Client {
	t.Helper()
	c, err := client.New(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// provenanceOf builds, and gives the fields of the provenance by their paths.
func provenanceOf(t *testing.T, c *client.Client, graph *llb.Definition, o client.SolveOpt) map[string]any {
	t.Helper()
	out := t.TempDir()
	o.Exports = toFolder(out)
	if _, err := c.Solve(t.Context(), graph, o, nil); err != nil {
		t.Fatal(err)
	}
	var statement any
	if err := json.Unmarshal([]byte(read(t, filepath.Join(out, "provenance.json"))), &statement); err != nil {
		t.Fatal(err)
	}
	fields := map[string]any{}
	flatten(fields, "", statement)
	return fields
}

// flatten puts what is in a value into fields by path. An empty object or list counts.
func flatten(fields map[string]any, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			flatten(fields, path+"/"+k, x)
		}
		if len(v) == 0 {
			fields[path] = "{}"
		}
	case []any:
		for i, x := range v {
			flatten(fields, fmt.Sprintf("%s/%d", path, i), x)
		}
		if len(v) == 0 {
			fields[path] = "[]"
		}
	default:
		fields[path] = v
	}
}

// own are fields of the graph in which kiln's compiler is not BuildKit's: it sets no
// empty constraints and no lines of nothing, and says of mounts that have no output
// that they have none. So the digests of all steps are others.
var own = regexp.MustCompile(`/digestMapping/|/op/constraints$|/exec/mounts/\d+/output$|/source/locations/step\d+$`)

// rest are fields that one of both may have more of: the samples behind the first, of
// which there are as many as the build took time for, and what steps have used, which
// BuildKit cannot know on machines with the older trees of cgroups (TestScripts/usage).
var rest = regexp.MustCompile(`/sysUsage/[1-9]|/resourceUsage/`)

// differs are fields of which the values differ from run to run, or from machine to
// machine: that they are there, and of one type, is compared.
var differs = regexp.MustCompile(`/(subject/\d+/digest/sha256|startedOn|finishedOn|buildStartedOn|buildFinishedOn|invocationId|buildInvocationID)$|/(sysUsage|resourceUsage|layers)/`)

func compare(t *testing.T, got, want map[string]any) {
	t.Helper()
	all := maps.Clone(got)
	maps.Copy(all, want)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		if own.MatchString(path) || rest.MatchString(path) {
			continue
		}
		g, inGot := got[path]
		w, inWant := want[path]
		switch {
		case !inGot:
			t.Errorf("%s is missing; BuildKit has %v", path, w)
		case !inWant:
			t.Errorf("%s is %v; BuildKit has none", path, g)
		case differs.MatchString(path):
			if reflect.TypeOf(g) != reflect.TypeOf(w) {
				t.Errorf("%s is %v; BuildKit has %v", path, g, w)
			}
		case !reflect.DeepEqual(g, w):
			t.Errorf("%s is %v; BuildKit has %v", path, g, w)
		}
	}
	if strings.Contains(fmt.Sprint(got), "hunter2") {
		t.Error("a password is in it")
	}
}
