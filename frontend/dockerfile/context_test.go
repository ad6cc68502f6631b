package dockerfile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

func tgz(t *testing.T, files map[string]time.Time) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, mtime := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, ModTime: mtime}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestRemoteContext takes the context, and the Dockerfile in it, from elsewhere.
func TestRemoteContext(t *testing.T) {
	dockerfile := fstest.MapFS{"Dockerfile": {Data: []byte(lines("FROM scratch", "COPY a /"))}}
	for _, tt := range []struct {
		name    string
		opts    map[string]string
		folders map[string]fstest.MapFS
		want    string
	}{
		{"a repository", opts("context=https://h/r.git#main:sub"),
			map[string]fstest.MapFS{"git://h/r.git#main:sub": dockerfile}, `
			0 git://h/r.git#main:sub git.fullurl=https://h/r.git
			1 copy 0:/a / on scratch`},
		{"a repository that keeps .git", opts("context=https://h/r.git", "build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"),
			map[string]fstest.MapFS{"git://h/r.git": dockerfile}, `
			0 git://h/r.git git.fullurl=https://h/r.git git.keepgitdir=true
			1 copy 0:/a / on scratch`},
		{"an archive", opts("context=https://h/c.tgz"),
			map[string]fstest.MapFS{"https://h/c.tgz": {
				"context":    {Data: tgz(t, map[string]time.Time{"a": time.Unix(0, 0)})},
				"Dockerfile": dockerfile["Dockerfile"],
			}}, `
			0 https://h/c.tgz http.filename=context
			1 copy 0:/context / unpack nocreate plain on scratch
			2 copy 1:/a / on scratch`},
		{"a folder of an archive", opts("context=https://h/c.tgz", "contextsubdir=d"),
			map[string]fstest.MapFS{"https://h/c.tgz": {
				"context":    {Data: tgz(t, map[string]time.Time{"a": time.Unix(0, 0)})},
				"Dockerfile": dockerfile["Dockerfile"],
			}}, `
			0 https://h/c.tgz http.filename=context
			1 copy 0:/context / unpack nocreate plain on scratch
			2 copy 1:/d / nocreate plain on scratch
			3 copy 2:/a / on scratch`},
		{"a Dockerfile alone", opts("context=https://h/Dockerfile"),
			map[string]fstest.MapFS{"https://h/Dockerfile": {"context": dockerfile["Dockerfile"]}}, `
			0 https://h/Dockerfile http.filename=context
			1 copy 0:/a / on scratch`},
		{"a local Dockerfile for a repository", opts("context=https://h/r.git", "dockerfilekey=dockerfile"),
			map[string]fstest.MapFS{"git://h/r.git": {}, "local://dockerfile": {"Dockerfile": {Data: []byte(lines("FROM scratch", "COPY b /"))}}}, `
			0 git://h/r.git git.fullurl=https://h/r.git
			1 copy 0:/b / on scratch`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &testBuild{opts: tt.opts, bridge: fakeBridge{folders: tt.folders}}
			sameText(t, "graph", draw(mustBuild(t, b).Root), tt.want)
		})
	}
}

// TestInputs takes Dockerfile and context from other graphs.
func TestInputs(t *testing.T) {
	graph := func(url string) llb.Edge {
		v, err := llb.Source(url, nil)
		if err != nil {
			t.Fatal(err)
		}
		return llb.Edge{Vertex: v}
	}
	b := &fakeBridge{folders: map[string]fstest.MapFS{
		"https://h/dockerfile": {"Dockerfile": {Data: []byte(lines("FROM given", "COPY a /"))}},
	}}
	res, err := New().Build(context.Background(), frontend.Request{
		Machine: amd64,
		Opts: opts("context:given=input:base",
			`input-metadata:base={"containerimage.config":"eyJjb25maWciOnsiRW52IjpbIkE9YiJdfX0="}`),
		Inputs: map[string]llb.Edge{
			"dockerfile": graph("https://h/dockerfile"),
			"context":    graph("https://h/context"),
			"base":       graph("https://h/base"),
		},
	}, b)
	if err != nil {
		t.Fatal(err)
	}
	sameText(t, "graph", draw(res.Images[0].Root), `
		0 https://h/base
		1 https://h/context
		2 copy 1:/a / on 0`)
	if !strings.Contains(string(res.Images[0].Config), `"A=b"`) {
		t.Errorf("config %s, want the variable that the input came with", res.Images[0].Config)
	}
}

// TestCredentials looks for the password of a context where people see it.
func TestCredentials(t *testing.T) {
	b := &testBuild{
		dockerfile: lines("FROM scratch", "COPY --from=r a /", "COPY --from=d context /"),
		opts:       opts("context:r=https://user:hush@h/r.git", "context:d=https://hush@h/f"),
	}
	for _, v := range llb.Walk(mustBuild(t, b).Root) {
		if strings.Contains(v.Meta().Name, "hush") {
			t.Errorf("a vertex is called %q", v.Meta().Name)
		}
	}
}

// TestNamedContexts puts other things in the place of images and stages.
func TestNamedContexts(t *testing.T) {
	for _, tt := range []struct {
		name       string
		dockerfile string
		opts       map[string]string
		folders    map[string]fstest.MapFS
		want       string
	}{
		{"an image for an image", lines("FROM base", "RUN x"), opts("context:base=docker-image://rich:1"), nil, `
			0 docker-image://docker.io/library/rich:1
			1 run 0 ["/bin/bash" "-c" "x"] env:PATH=/opt/bin env:A=rich dir:/home user:bob`},
		{"an image for a stage, whose steps are then not run", lines("FROM missing AS a", "RUN no", "FROM a", "RUN yes"), opts("context:a=docker-image://base"), nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "yes"]`},
		{"a folder, of which only what is read is sent", lines("FROM scratch", "COPY --from=src a b/c /"), opts("context:src=local:somewhere"),
			map[string]fstest.MapFS{"local://somewhere": {".dockerignore": {Data: []byte("*.o\n")}}}, `
			0 local://somewhere local.excludepatterns=["*.o"] local.followpaths=["a","b/c"]
			1 copy 0:/a / on scratch; copy 0:/b/c / on .`},
		{"a folder of another session", lines("FROM scratch", "COPY --from=src a /"), opts("context:src=local:somewhere", "local-sessionid:somewhere=abc", "local-sessionid:else=def"), nil, `
			0 local://somewhere local.followpaths=["a"] local.session=abc
			1 copy 0:/a / on scratch`},
		{"a folder as a base is read whole when something runs in it", lines("FROM src", "COPY a /", "RUN x"), opts("context:src=local:somewhere"), nil, `
			0 local://somewhere
			1 local://context local.followpaths=["a"]
			2 copy 1:/a / on 0
			3 run 2 ["/bin/sh" "-c" "x"]`},
		{"a folder in a mount", lines("FROM base", "RUN --mount=from=src,source=s,target=/t x"), opts("context:src=local:somewhere"), nil, `
			0 docker-image://docker.io/library/base:latest
			1 local://somewhere local.followpaths=["s"]
			2 run 0 ["/bin/sh" "-c" "x"] bind(/t 1:/s ro)`},
		{"a repository, a download", lines("FROM scratch", "COPY --from=r a /", "COPY --from=d context /"), opts("context:r=https://h/r.git#v1", "context:d=https://h/f.tgz"), nil, `
			0 git://h/r.git#v1 git.fullurl=https://h/r.git
			1 copy 0:/a / on scratch
			2 https://h/f.tgz http.filename=context
			3 copy 2:/context / on 1`},
		{"nothing", lines("FROM base", "COPY a /"), opts("context:base=docker-image://scratch"), nil, `
			0 local://context local.followpaths=["a"]
			1 copy 0:/a / on scratch`},
		{"for one platform alone", lines("FROM base", "RUN x"), opts("context:base::linux/arm64=docker-image://rich:1"), nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"]`},
		{"an image layout", lines("FROM base"), opts("context:base=oci-layout://store@sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d"), nil, `
			0 oci-layout://docker.io/library/base oci.store=store`},
		// In place of an image, with the config that it comes to.
		{"a target", lines("FROM base AS dev", "ENV A=b", "RUN x", "FROM swapped", "RUN y $A"), opts("context:swapped=target:dev"), nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "x"] env:A=b
			2 run 1 ["/bin/sh" "-c" "y $A"] env:A=b`},
		// In place of a stage, for COPY; a later stage of the file may stand for it.
		{"a later target", lines("FROM base AS lib", "RUN slow", "FROM scratch AS last", "COPY --from=lib /a /", "FROM base AS quick", "RUN quick"), opts("target=last", "context:lib=target:quick"), nil, `
			0 docker-image://docker.io/library/base:latest
			1 run 0 ["/bin/sh" "-c" "quick"]
			2 copy 1:/a / on scratch`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			layout := "docker.io/library/base@sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d"
			b := &testBuild{dockerfile: tt.dockerfile, opts: tt.opts, bridge: fakeBridge{
				folders: tt.folders,
				images:  map[string]string{layout: testImages["docker.io/library/base:latest"]},
			}}
			sameText(t, "graph", draw(mustBuild(t, b).Root), tt.want)
		})
	}
}

// TestNamedContextErrors are specifications that make no sense.
func TestNamedContextErrors(t *testing.T) {
	for _, tt := range []struct{ spec, want string }{
		{"nonsense", "invalid context specifier nonsense for x"},
		{"ftp://h/x", "unsupported context source ftp for x"},
		{"input:y", "invalid input y for x"},
		{"oci-layout://store", `oci-layout reference "store" has no digest`},
		{"git:x", "invalid git context git:x"},
		{"target:", "target: for x names no target"},
		{"target:nothing", `target stage "nothing" could not be found`},
		// It stands for itself.
		{"target:self", "target:self stands for x within a target that stands for another context"},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			_, err := (&testBuild{dockerfile: "FROM x AS self\n", opts: opts("context:x=" + tt.spec)}).run()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one that contains %q", err, tt.want)
			}
		})
	}
}

// TestIgnoreFiles checks which ignore file holds: the Dockerfile's own before the
// context's.
func TestIgnoreFiles(t *testing.T) {
	own := &testBuild{opts: opts("filename=my.Dockerfile"), ignore: "general\n", bridge: fakeBridge{folders: map[string]fstest.MapFS{
		"local://dockerfile": {
			"my.Dockerfile":              {Data: []byte(lines("FROM scratch", "COPY . /"))},
			"my.Dockerfile.dockerignore": {Data: []byte("# own\nspecial\n")},
		},
	}}}
	sameText(t, "graph", draw(mustBuild(t, own).Root), `
		0 local://context local.excludepatterns=["special"]
		1 copy 0:/ / on scratch`)
}

// TestIgnoredBy explains why a file is not there.
func TestIgnoredBy(t *testing.T) {
	for _, tt := range []struct {
		patterns []string
		name     string
		want     string // the pattern; empty is not ignored
	}{
		{[]string{"*.md"}, "README.md", "*.md"},
		{[]string{"*.md"}, "/README.md", "*.md"},
		{[]string{"*.md"}, "docs/README.md", ""},
		{[]string{"**/*.md"}, "docs/README.md", "**/*.md"},
		{[]string{"node_modules"}, "node_modules/a/b.js", "node_modules"},
		{[]string{"*", "!src"}, "src/main.go", ""},
		{[]string{"*", "!src"}, "bin/x", "*"},
		{[]string{"*", "!src", "src/*.tmp"}, "src/a.tmp", "src/*.tmp"},
		{[]string{"a", "!a", "*"}, "a", "*"},
		{nil, "a", ""},
		{[]string{"*"}, "/", ""},
		{[]string{"["}, "a", ""},
	} {
		got, ok := IgnoredBy(tt.patterns, tt.name)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("IgnoredBy(%q, %q) = %q, %v, want %q", tt.patterns, tt.name, got, ok, tt.want)
		}
	}
}

// TestEpoch takes the time from elsewhere.
func TestEpoch(t *testing.T) {
	newest := time.Unix(5000, 0).UTC()
	archive := tgz(t, map[string]time.Time{"old": time.Unix(1, 0), "new": newest})
	folders := map[string]fstest.MapFS{
		"https://h/c.tgz": {"context": {Data: archive}, "Dockerfile": {Data: []byte(lines("FROM base", "ARG SOURCE_DATE_EPOCH", "RUN x"))}},
		"https://h/f.tgz": {"f.tgz": {Data: archive}},
	}
	download := lines("FROM scratch AS src", "ARG F=f", "ADD https://h/$F.tgz /", "FROM base", "ARG SOURCE_DATE_EPOCH", "RUN x")
	for _, tt := range []struct {
		name, dockerfile string
		opts             map[string]string
		times            map[string]time.Time
		want             string // seconds; empty is none
	}{
		{"seconds", lines("FROM base", "ARG SOURCE_DATE_EPOCH", "RUN x"), opts("build-arg:SOURCE_DATE_EPOCH=42"), nil, "42"},
		{"a default in the Dockerfile", lines("ARG SOURCE_DATE_EPOCH=43", "FROM base", "ARG SOURCE_DATE_EPOCH", "RUN x"), nil, nil, "43"},
		{"none", lines("FROM base", "ARG SOURCE_DATE_EPOCH", "RUN x"), opts("build-arg:SOURCE_DATE_EPOCH="), nil, ""},
		{"a local context has none", lines("FROM base", "ARG SOURCE_DATE_EPOCH", "RUN x"), opts("build-arg:SOURCE_DATE_EPOCH=context"), nil, ""},
		{"a context's Last-Modified", "", opts("build-arg:SOURCE_DATE_EPOCH=context", "context=https://h/c.tgz"), map[string]time.Time{"https://h/c.tgz": time.Unix(44, 0)}, "44"},
		{"the newest file of a context", "", opts("build-arg:SOURCE_DATE_EPOCH=context", "context=https://h/c.tgz"), nil, "5000"},
		{"a stage's download", download, opts("build-arg:SOURCE_DATE_EPOCH=src"), map[string]time.Time{"https://h/f.tgz": time.Unix(45, 0)}, "45"},
		{"the newest file of a stage's download", download, opts("build-arg:SOURCE_DATE_EPOCH=SRC"), nil, "5000"},
		{"a named context", lines("FROM base", "ARG SOURCE_DATE_EPOCH", "RUN x"), opts("build-arg:SOURCE_DATE_EPOCH=repo", "context:repo=https://h/r.git"), map[string]time.Time{"git://h/r.git": time.Unix(46, 0)}, "46"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &testBuild{dockerfile: tt.dockerfile, opts: tt.opts, bridge: fakeBridge{folders: folders, times: tt.times}}
			res, err := b.run()
			if err != nil {
				t.Fatal(err)
			}
			if got := string(res.Metadata[epochKey]); got != tt.want {
				t.Errorf("epoch = %q, want %q", got, tt.want)
			}
			graph := draw(res.Images[0].Root)
			_, seen, ok := strings.Cut(graph, "env:SOURCE_DATE_EPOCH=")
			if seen != tt.want || ok != (tt.want != "") {
				t.Errorf("the step sees %q, want %q:\n%s", seen, tt.want, graph)
			}
		})
	}
}

// TestEpochErrors are names that have no time.
func TestEpochErrors(t *testing.T) {
	for _, tt := range []struct{ name, dockerfile, want string }{
		{"a name of nothing", lines("FROM base"), "invalid SOURCE_DATE_EPOCH: src"},
		{"a stage with a base", lines("FROM base AS src", "ADD https://h/f /", "FROM base"), "must use FROM scratch"},
		{"a stage with steps", lines("FROM scratch AS src", "RUN x", "FROM base"), "unsupported RUN instruction"},
		{"a stage with two downloads", lines("FROM scratch AS src", "ADD https://h/f /", "ADD https://h/g /", "FROM base"), "exactly one remote ADD"},
		{"a stage with local files", lines("FROM scratch AS src", "ADD f /", "FROM base"), "must be a single HTTP(S) or Git ADD"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := (&testBuild{dockerfile: tt.dockerfile, opts: opts("build-arg:SOURCE_DATE_EPOCH=src")}).run()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one that contains %q", err, tt.want)
			}
		})
	}
}

// TestExplain asks the vertex of a COPY.
func TestExplain(t *testing.T) {
	img := mustBuild(t, &testBuild{dockerfile: lines("FROM base", "COPY docs/a.md /"), ignore: "bin\n**/*.md\n"})
	hint, ok := Explain(img.Root.Vertex, "/docs/a.md")
	if want := `"/docs/a.md" is left out of the context by the pattern "**/*.md" of the ignore file`; !ok || hint != want {
		t.Errorf("hint = %q, %v, want %q", hint, ok, want)
	}
	if hint, ok := Explain(img.Root.Vertex, "/docs/a.txt"); ok {
		t.Errorf("a path that no pattern matches: %q", hint)
	}
}
