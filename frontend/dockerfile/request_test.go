package dockerfile

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

func ask(t *testing.T, dockerfile string, words ...string) *frontend.Result {
	t.Helper()
	res, err := (&testBuild{dockerfile: dockerfile, opts: opts(words...)}).run()
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Images) != 0 {
		t.Errorf("a question gave %d images", len(res.Images))
	}
	return res
}

// trimLines takes away the blanks at the ends of lines.
func trimLines(text []byte) string {
	var out []string
	for l := range strings.Lines(string(text)) {
		out = append(out, strings.TrimRight(l, " \n"))
	}
	return strings.Join(out, "\n")
}

func TestOutline(t *testing.T) {
	res := ask(t, lines(
		"ARG VERSION=1",
		"ARG UNUSED=2",
		"FROM base AS other",
		"ARG OTHER",
		"# the-app is what people want",
		"FROM base AS app",
		"ARG VERSION",
		"# LEVEL is how loud it is",
		"ARG LEVEL=$VERSION",
		"RUN --mount=type=secret,id=token,required --mount=type=ssh x",
	), "requestid=frontend.outline", "build-arg:VERSION=3")
	sameText(t, "text", trimLines(res.Metadata["result.txt"]), `
		TARGET: app

		BUILD ARG   VALUE   DESCRIPTION
		VERSION     3
		LEVEL       3       is how loud it is

		SECRET   REQUIRED
		token    true

		SSH       REQUIRED
		default`)
	var doc struct {
		Args []struct {
			Name     string
			Location struct {
				Ranges []struct{ Start struct{ Line int } }
			}
		}
	}
	if err := json.Unmarshal(res.Metadata["result.json"], &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Args) != 2 || doc.Args[1].Location.Ranges[0].Start.Line != 9 {
		t.Errorf("args = %+v, want two, LEVEL on line 9", doc.Args)
	}
}

func TestTargets(t *testing.T) {
	// The directive is one that needs a linter to be there.
	res := ask(t, lines("# tools is for tools", "FROM base AS tools", "# check=skip=all", "CMD x", "FROM tools"), "requestid=frontend.targets")
	sameText(t, "text", trimLines(res.Metadata["result.txt"]), `
		TARGET    DESCRIPTION
		tools     is for tools
		(default)`)
}

func TestLintRequest(t *testing.T) {
	// A stage that no target needs is checked too, and its image is asked for.
	res := ask(t, lines("FROM base AS A", "run x", "FROM base", "CMD y", "RUN z"), "requestid=frontend.lint")
	if got := string(res.Metadata["result.statuscode"]); got != "1" {
		t.Errorf("status = %q, want 1", got)
	}
	text := string(res.Metadata["result.txt"])
	for _, want := range []string{
		"WARNING: StageNameCasing - https://docs.docker.com/go/dockerfile/rule/stage-name-casing/\nStage name 'A' should be lowercase\nDockerfile:1\n--------------------\n   1 | >>> FROM base AS A\n   2 |     run x\n   3 |     FROM base\n--------------------\n",
		"WARNING: ConsistentInstructionCasing",
		"WARNING: JSONArgsRecommended",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("text does not contain %q:\n%s", want, text)
		}
	}
	if clean := ask(t, lines("FROM base"), "requestid=frontend.lint"); string(clean.Metadata["result.statuscode"]) != "0" {
		t.Errorf("status of a clean file = %q, want 0", clean.Metadata["result.statuscode"])
	}
}

func TestLintRequestOfABrokenFile(t *testing.T) {
	for _, tt := range []struct{ dockerfile, want string }{
		{lines("FROM base", "RUNN x"), "dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)"},
		// Where warnings are errors they are one of the build.
		{lines("# check=error=true", "FROM base AS A"), "lint violation found for rules: StageNameCasing"},
	} {
		checkBuildError(t, tt.dockerfile, tt.want)
	}
}

// checkBuildError asks for a check, and compares the error in line 2 that is part of
// its answer.
func checkBuildError(t *testing.T, dockerfile, want string) {
	t.Helper()
	res := ask(t, dockerfile, "requestid=frontend.lint")
	var doc struct {
		BuildError struct {
			Message  string
			Location struct {
				Ranges []struct{ Start struct{ Line int } }
			}
		}
	}
	if err := json.Unmarshal(res.Metadata["result.json"], &doc); err != nil {
		t.Fatal(err)
	}
	if e := doc.BuildError; e.Message != want || len(e.Location.Ranges) != 1 || e.Location.Ranges[0].Start.Line != 2 {
		t.Errorf("error = %+v, want %q on line 2", e, want)
	}
}

func TestDescribe(t *testing.T) {
	res := ask(t, lines("FROM base"), "requestid=frontend.subrequests.describe")
	for _, want := range []string{"outline", "targets", "lint", "subrequests.describe"} {
		if !strings.Contains(string(res.Metadata["result.txt"]), want) {
			t.Errorf("%s is not described:\n%s", want, res.Metadata["result.txt"])
		}
	}
	_, err := (&testBuild{dockerfile: "FROM base\n", opts: opts("requestid=frontend.dance")}).run()
	if err == nil || err.Error() != "unsupported request frontend.dance" {
		t.Errorf("error = %v, want unsupported request", err)
	}
}

// forwarder runs the frontends that it knows.
type forwarder struct {
	*fakeBridge
	known   string
	cmdline string
}

func (f *forwarder) Forward(_ context.Context, source, cmdline string, _ frontend.Request) (*frontend.Result, bool, error) {
	if source != f.known {
		return nil, false, nil
	}
	f.cmdline = cmdline
	return &frontend.Result{Images: []frontend.ResultImage{{Root: llb.Edge{}}, {}, {}}}, true, nil
}

// TestSyntax checks who builds: this frontend, another, or nobody.
func TestSyntax(t *testing.T) {
	for _, tt := range []struct {
		name, dockerfile string
		opts             map[string]string
		cmdline          string // that the other frontend gets; empty: it is not asked
		fails            bool
	}{
		{"no directive", lines("FROM base"), nil, "", false},
		{"the built-in one", lines("# syntax=docker/dockerfile:1.7-labs", "FROM base"), nil, "", false},
		{"the built-in one, by its whole name", lines("# syntax=docker.io/docker/dockerfile@sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d", "FROM base"), nil, "", false},
		{"another", lines("# syntax=my/frontend a b", "whatever"), nil, "my/frontend a b", false},
		{"another, by argument", lines("FROM base"), opts("build-arg:BUILDKIT_SYNTAX=my/frontend c"), "my/frontend c", false},
		{"one that is not there", lines("# syntax=your/frontend", "FROM base"), nil, "", true},
		{"when it was forwarded here", lines("# syntax=your/frontend", "FROM base"), opts("cmdline=your/frontend"), "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &testBuild{dockerfile: tt.dockerfile, opts: tt.opts}
			_, err := b.run() // fills in the bridge's folders
			f := &forwarder{fakeBridge: &b.bridge, known: "my/frontend"}
			res, err2 := New().Build(context.Background(), frontend.Request{Opts: tt.opts, Machine: amd64}, f)
			if f.cmdline != tt.cmdline {
				t.Errorf("command line %q, want %q", f.cmdline, tt.cmdline)
			}
			if (err2 != nil) != tt.fails {
				t.Errorf("error = %v, want one: %v", err2, tt.fails)
			}
			if tt.cmdline != "" && (err == nil || len(res.Images) != 3) {
				t.Errorf("without a forwarder: %v; with one: %+v", err, res)
			}
		})
	}
}

// TestMultiPlatform builds an index.
func TestMultiPlatform(t *testing.T) {
	b := &testBuild{
		dockerfile: lines("FROM --platform=$BUILDPLATFORM base AS build", "RUN once", "FROM base", "ARG TARGETARCH", "COPY --from=build /x /", "CMD c"),
		opts:       opts("platform=linux/amd64,linux/arm64/v8,linux/arm/v7", "build-arg:SOURCE_DATE_EPOCH=5"),
	}
	res, err := b.run()
	if err != nil {
		t.Fatal(err)
	}
	if !res.Index || len(res.Images) != 3 {
		t.Fatalf("index %v, %d images, want an index of 3", res.Index, len(res.Images))
	}
	if got, want := string(res.Metadata["refs.platforms"]), `{"Platforms":[`+
		`{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}},`+
		`{"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}},`+
		`{"ID":"linux/arm/v7","Platform":{"architecture":"arm","os":"linux","variant":"v7"}}]}`; got != want {
		t.Errorf("platforms %s, want %s", got, want)
	}
	once := map[llb.Digest]bool{}
	for i, img := range res.Images {
		for _, v := range llb.Walk(img.Root) {
			if v.Kind() == "exec" {
				once[v.Digest()] = true
			}
		}
		var config Image
		if err := json.Unmarshal(img.Config, &config); err != nil {
			t.Fatal(err)
		}
		if config.Architecture != img.Platform.Architecture || config.Variant != img.Platform.Variant {
			t.Errorf("image %d: config is for %s %s, want %s %s", i, config.Architecture, config.Variant, img.Platform.Architecture, img.Platform.Variant)
		}
	}
	if len(once) != 1 {
		t.Errorf("the stage for the build platform is built %d times", len(once))
	}
	if got := string(res.Metadata["source.date.epoch/linux/arm64"]); got != "5" {
		t.Errorf("epoch of an image = %q, want 5", got)
	}
	if n := len(b.bridge.warnings); n != 1 {
		t.Errorf("%d warnings, want one, once: %q", n, b.bridge.warnings)
	}
}
