package dockerfile

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/frontend"
)

// scanOf gives the folders that the generator of a result's first image is shown,
// without those of the image itself, and the variables that tell it of them.
func scanOf(t *testing.T, image frontend.ResultImage) (extras []string, env string, ignoreCache bool) {
	t.Helper()
	if len(image.Attestations) != 1 {
		t.Fatalf("got %d attestations, want one", len(image.Attestations))
	}
	v := image.Attestations[0].Root.Vertex
	exec := v.Op().GetExec()
	for _, m := range exec.Mounts {
		if name, ok := strings.CutPrefix(m.Dest, "/run/src/extras/"); ok {
			if !m.Readonly {
				t.Errorf("%s may be written to", m.Dest)
			}
			extras = append(extras, name)
		}
	}
	for _, e := range exec.Meta.Env {
		if dir, ok := strings.CutPrefix(e, "BUILDKIT_SCAN_SOURCE_EXTRAS="); ok {
			env = dir
		}
	}
	return extras, env, v.Meta().IgnoreCache
}

// TestScanned asks for stages and the context to be listed. Every row's generator is
// the image base.
func TestScanned(t *testing.T) {
	two := lines("FROM base AS one", "RUN 1", "FROM base AS two", "RUN 2", "FROM base AS beside", "RUN 3", "FROM one", "COPY --from=two x /")
	with := func(front, arg string) string {
		return front + "\n" + strings.ReplaceAll(two, "AS two\n", "AS two\n"+arg+"\n")
	}
	for _, tt := range []struct {
		name       string
		dockerfile string
		opts       map[string]string
		want       []string
		fresh      bool
	}{
		{"the image alone", two, nil, nil, false},
		{"arguments that no ARG names have no effect", two, opts("build-arg:BUILDKIT_SBOM_SCAN_STAGE=true", "build-arg:BUILDKIT_SBOM_SCAN_CONTEXT=true"), nil, false},
		{"all stages of the target, and not the others", with("ARG BUILDKIT_SBOM_SCAN_STAGE=true", ""), nil, []string{"sbom-one", "sbom-two"}, false},
		{"by names", with("ARG BUILDKIT_SBOM_SCAN_STAGE=one,beside", ""), nil, []string{"sbom-one"}, false},
		{"in one stage", with("", "ARG BUILDKIT_SBOM_SCAN_STAGE=true"), nil, []string{"sbom-two"}, false},
		{"a stage knows better", with("ARG BUILDKIT_SBOM_SCAN_STAGE=true", "ARG BUILDKIT_SBOM_SCAN_STAGE=false"), nil, []string{"sbom-one"}, false},
		{"the request knows better still", with("ARG BUILDKIT_SBOM_SCAN_STAGE=true", "ARG BUILDKIT_SBOM_SCAN_STAGE=true"),
			opts("build-arg:BUILDKIT_SBOM_SCAN_STAGE=0"), nil, false},
		{"an ARG without a value takes that in front of the stages", with("ARG BUILDKIT_SBOM_SCAN_STAGE=two", "ARG BUILDKIT_SBOM_SCAN_STAGE"), nil, []string{"sbom-two"}, false},
		{"an ARG that is declared takes the request's", with("", "ARG BUILDKIT_SBOM_SCAN_STAGE"), opts("build-arg:BUILDKIT_SBOM_SCAN_STAGE=true"), []string{"sbom-two"}, false},
		{"the context", with("ARG BUILDKIT_SBOM_SCAN_CONTEXT=true", ""), nil, []string{"sbom-context"}, false},
		{"the context is the target's to ask for", with("", "ARG BUILDKIT_SBOM_SCAN_CONTEXT=true"), nil, nil, false},
		{"the context, by the target's name", "ARG BUILDKIT_SBOM_SCAN_CONTEXT=last\n" + two + "\nFROM two AS last\n", nil, []string{"sbom-context"}, false},
		{"a stage without a name has a number", lines("FROM base", "ARG BUILDKIT_SBOM_SCAN_STAGE=true", "FROM base", "COPY --from=0 x /"), nil, []string{"sbom-stage-0"}, false},
		{"of the stage below the arguments hold", lines("FROM base AS a", "ARG BUILDKIT_SBOM_SCAN_STAGE=true", "FROM a AS b", "FROM b"), nil, []string{"sbom-a", "sbom-b"}, false},
		{"images are no stages", lines("ARG BUILDKIT_SBOM_SCAN_STAGE=true", "FROM base", "COPY --from=rich:1 x /"), nil, nil, false},
		{"what takes a stage's place is none", with("ARG BUILDKIT_SBOM_SCAN_STAGE=true", ""), opts("context:one=docker-image://rich:1"), []string{"sbom-two"}, false},
		{"what a stage ignores the scan ignores", with("ARG BUILDKIT_SBOM_SCAN_STAGE=true", ""), opts("no-cache=two"), []string{"sbom-one", "sbom-two"}, true},
		{"but not what another one does", with("ARG BUILDKIT_SBOM_SCAN_STAGE=one", ""), opts("no-cache=two"), []string{"sbom-one"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := opts("attest:sbom=generator=base")
			maps.Copy(asked, tt.opts)
			b := testBuild{dockerfile: tt.dockerfile, opts: asked}
			result, err := b.run()
			if err != nil {
				t.Fatal(err)
			}
			got, env, fresh := scanOf(t, result.Images[0])
			if !slices.Equal(got, tt.want) || fresh != tt.fresh {
				t.Errorf("got %v, cache ignored: %t; want %v, %t", got, fresh, tt.want, tt.fresh)
			}
			if told := env == "/run/src/extras"; told != (len(tt.want) > 0) {
				t.Errorf("the generator is told of extras in %q", env)
			}
		})
	}
}

// TestScanArgsAreNotSeen sees that steps get none of the arguments, and that they do
// nothing where no bill of materials is wanted.
func TestScanArgsAreNotSeen(t *testing.T) {
	b := testBuild{dockerfile: lines("ARG BUILDKIT_SBOM_SCAN_STAGE=true", "FROM base AS a", "ARG BUILDKIT_SBOM_SCAN_STAGE", "RUN x", "FROM a")}
	result, err := b.run()
	if err != nil {
		t.Fatal(err)
	}
	image := result.Images[0]
	if len(image.Attestations) != 0 {
		t.Errorf("got %d attestations, want none", len(image.Attestations))
	}
	if env := image.Root.Vertex.Op().GetExec().Meta.Env; slices.ContainsFunc(env, func(s string) bool { return strings.Contains(s, "SCAN") }) {
		t.Errorf("the step sees %v", env)
	}
}

// TestScanPlatforms lists each platform's image with its own stages, all by the
// machine's generator.
func TestScanPlatforms(t *testing.T) {
	b := testBuild{
		dockerfile: lines("FROM base AS one", "ARG BUILDKIT_SBOM_SCAN_STAGE=true", "RUN 1", "FROM one"),
		opts:       opts("attest:sbom=generator=rich:1,SAY=x", "platform=linux/amd64,linux/arm64"),
	}
	result, err := b.run()
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range []string{"linux/amd64", "linux/arm64"} {
		extras, _, _ := scanOf(t, result.Images[i])
		v := result.Images[i].Attestations[0].Root.Vertex
		if want := "[" + id + "] generating sbom using docker.io/library/rich:1"; v.Meta().Name != want || v.Op().Platform.Architecture != "amd64" {
			t.Errorf("got %s for %s, want %s for amd64", v.Meta().Name, v.Op().Platform.Architecture, want)
		}
		if !slices.Equal(extras, []string{"sbom-one"}) || !slices.Contains(v.Op().GetExec().Meta.Env, "BUILDKIT_SCAN_SAY=x") {
			t.Errorf("%s: got %v and %v", id, extras, v.Op().GetExec().Meta.Env)
		}
	}
}

// TestScanErrors refuses generators that cannot be run.
func TestScanErrors(t *testing.T) {
	for attest, want := range map[string]string{
		"generator=missing": "finding the generator of bills of materials",
		"generator=nothing": "does not have cmd",
		"generator=":        "cannot be empty",
		"generator=UPPER":   "failed to parse sbom generator",
	} {
		b := testBuild{dockerfile: lines("FROM base"), opts: opts("attest:sbom=" + attest)}
		if _, err := b.run(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", attest, err, want)
		}
	}
}
