package provenance

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	imageDigest = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
	commit      = "0123456789012345678901234567890123456789"
)

var (
	amd64 = &pb.Platform{OS: "linux", Architecture: "amd64"}
	file  = &llb.File{Name: "Dockerfile", Data: []byte("FROM busybox"), Definition: folder()}
)

// folder is the graph of where the file is from.
func folder() *pb.Definition {
	v, err := llb.Source("local://dockerfile", map[string]string{pb.AttrLocalSessionID: "session"})
	if err != nil {
		panic(err)
	}
	def, err := llb.Marshal(v.Output(0))
	if err != nil {
		panic(err)
	}
	return def
}

func from(t *testing.T, id string, attrs map[string]string) llb.Edge {
	t.Helper()
	v, err := llb.Source(id, attrs, llb.WithPlatform(amd64), llb.WithMeta(llb.Meta{Locations: []llb.Location{{File: file, Start: 1, End: 1}}}))
	if err != nil {
		t.Fatal(err)
	}
	return v.Output(0)
}

// sample is a step on an image that sees a repository, a file, and a folder, and is
// lent a secret and an agent. Its pins are those of pins.
func sample(t *testing.T, network pb.NetMode) llb.Edge {
	t.Helper()
	x := &llb.Exec{
		Meta: &pb.Meta{Args: []string{"make"}, Cwd: "/", Env: []string{"ORIGIN=https://me:hunter2@example.com/x"},
			ProxyEnv: &pb.ProxyEnv{HttpProxy: "http://me:hunter2@proxy.example"}},
		Network: network,
		Mounts: []llb.Mount{
			llb.Root(from(t, "docker-image://docker.io/library/busybox:latest@"+imageDigest, nil)),
			llb.Bind(from(t, "git://example.com/repo.git#v1:sub", map[string]string{
				pb.AttrFullRemoteURL: "https://me:hunter2@example.com/repo.git", pb.AttrAuthTokenSecret: "GIT_AUTH_TOKEN",
			}), "", "/git"),
			llb.Bind(from(t, "https://me:hunter2@example.com/file", nil), "", "/http"),
			llb.Bind(from(t, "local://context", map[string]string{pb.AttrLocalSessionID: "session", pb.AttrLocalUniqueID: "unique"}), "", "/local"),
			llb.Secret("/run/secrets/token", &pb.SecretOpt{ID: "token"}),
			llb.SSH("/run/agent", &pb.SSHOpt{Optional: true}),
		},
		SecretEnv: []*pb.SecretEnv{{ID: "env", Name: "ENV", Optional: true}},
	}
	v, err := x.Vertex()
	if err != nil {
		t.Fatal(err)
	}
	return v.Output(0)
}

// pins pins each source by its kind.
func pins(e llb.Edge) Pins {
	out := map[llb.Digest]string{}
	for _, v := range llb.Walk(e) {
		s := v.Op().GetSource()
		switch {
		case s == nil:
		case strings.HasPrefix(s.Identifier, "git:"):
			out[v.Digest()] = commit
		default:
			out[v.Digest()] = imageDigest
		}
	}
	return func(d llb.Digest) string { return out[d] }
}

func captured(t *testing.T, network pb.NetMode) (*Capture, llb.Edge) {
	e := sample(t, network)
	c := &Capture{Frontend: "dockerfile.v0", Args: Args(map[string]string{
		"context": "https://me:hunter2@example.com/repo.git#v1:sub", "filename": "my.Dockerfile", "target": "x",
		"build-arg:A": "b", "label:l": "m", "build-arg:PROXY": "http://me:hunter2@proxy.example",
		"vcs:source": "https://me:hunter2@example.com/vcs", "vcs:revision": "r", "vcs:empty": "",
		"platform": "linux/amd64", "attest:provenance": "", "cache-imports": "[]",
	})}
	c.Add(pins(e), e)
	c.AddImage(Image{Ref: "docker.io/library/busybox:latest", Platform: &ocispecs.Platform{OS: "linux", Architecture: "amd64"}, Digest: imageDigest})
	return c, e
}

func TestPredicate(t *testing.T) {
	c, e := captured(t, pb.NetMode_UNSET)
	run := Run{ID: "id", Started: time.Unix(1, 0), Ended: time.Unix(2, 0), DockerfileVersion: "1.2", BuilderPlatform: ocispecs.Platform{OS: "linux", Architecture: "arm64"}}
	run.Layers = func(at llb.Edge) []ocispecs.Descriptor {
		if at == e {
			return []ocispecs.Descriptor{{Digest: imageDigest}}
		}
		return nil
	}
	made, kind, err := c.Predicate(e, Options{Reproducible: true, BuilderID: "me"}, run)
	if err != nil {
		t.Fatal(err)
	}
	p := made.(*Predicate)
	def, external, m := p.BuildDefinition, p.BuildDefinition.ExternalParameters, p.RunDetails.Metadata
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"type", kind, TypeV1},
		// The tag stands for the digest of it.
		{"materials", def.ResolvedDependencies, []Material{
			{"pkg:docker/busybox@latest?platform=linux%2Famd64", digestSet(imageDigest)},
			{"https://xxxxx:xxxxx@example.com/repo.git#v1", map[string]string{"sha1": commit}},
			{"https://xxxxx:xxxxx@example.com/file", digestSet(imageDigest)},
		}},
		{"config source", external.ConfigSource, ConfigSource{
			URI: "https://xxxxx:xxxxx@example.com/repo.git#v1:sub", Digest: map[string]string{"sha1": commit}, Path: "my.Dockerfile",
		}},
		{"arguments", external.Request.Args, map[string]string{
			"target": "x", "build-arg:A": "b", "label:l": "m", "build-arg:PROXY": "http://xxxxx:xxxxx@proxy.example",
		}},
		{"secrets", external.Request.Secrets, []ID{{"GIT_AUTH_TOKEN", true}, {"env", true}, {"token", false}}},
		{"agents", external.Request.SSH, []ID{{"default", true}}},
		{"locals", external.Request.Locals, []Local{{"context"}}},
		{"version control", m.BuildKit.VCS, map[string]string{"source": "https://xxxxx:xxxxx@example.com/vcs", "revision": "r"}},
		{"platform", def.InternalParameters.BuilderPlatform, "linux/arm64"},
		{"frontend's version", def.InternalParameters.DockerfileVersion, "1.2"},
		{"completeness", m.Completeness, CompletenessOf1{Request: true}}, // a local folder has no name to others
		{"steps", len(def.InternalParameters.BuildConfig.Definition), 6},
		{"layers", slices.Collect(maps.Keys(m.BuildKit.Layers)), []string{"step4:0"}},
		{"text", m.BuildKit.Source.Infos[0].Data, file.Data},
		{"graph of the text", len(m.BuildKit.Source.Infos[0].Definition), 2},
		{"name of its folder", m.BuildKit.Source.Infos[0].Definition[0].Op.GetSource().GetIdentifier(), "local://dockerfile"},
		{"builder", p.RunDetails.Builder.ID, "me"},
		{"reproducible", m.Reproducible, true},
		{"hermetic", m.Hermetic, false},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", c.what, c.got, c.want)
		}
	}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hunter2", `"session"`, `"unique"`} {
		if strings.Contains(string(data), secret) {
			t.Errorf("the predicate holds %s: %s", secret, data)
		}
	}
}

// TestNoGraphOfTheText sees that a client that lies about where its text is from
// gets no graph of it, and its provenance all the same.
func TestNoGraphOfTheText(t *testing.T) {
	for _, def := range []*pb.Definition{nil, {}, {Def: [][]byte{{1}}}, {Def: [][]byte{nil}}} {
		got := sourceInfo(&pb.SourceInfo{Filename: "f", Definition: def})
		if got.Filename != "f" || got.Definition != nil {
			t.Errorf("%v: got %+v", def, got)
		}
	}
}

func TestMinimalPredicate(t *testing.T) {
	c, e := captured(t, pb.NetMode_NONE)
	made, kind, err := c.Predicate(e, Options{Min: true, V02: true}, Run{})
	if err != nil {
		t.Fatal(err)
	}
	p := made.(*PredicateV02)
	if kind != TypeV02 || p.BuildConfig != nil || p.Metadata.BuildKit.Source != nil || p.Metadata.Completeness.Parameters {
		t.Errorf("got %s, %+v; want neither graph nor text, and that arguments were left out", kind, p)
	}
	params := p.Invocation.Parameters
	if want := map[string]string{"target": "x"}; !reflect.DeepEqual(params.Args, want) || params.Secrets != nil || params.SSH != nil {
		t.Errorf("the parameters are %+v, want %v and no ids", params, want)
	}
	if len(p.Materials) != 3 || p.Invocation.ConfigSource.EntryPoint != "my.Dockerfile" {
		t.Errorf("got %+v, want all materials", p)
	}
	if _, _, err := c.Predicate(e, Options{Complete: true}, Run{}); err == nil {
		t.Error("a local folder counts as complete")
	}
}

func TestHermetic(t *testing.T) {
	for _, test := range []struct {
		network pb.NetMode
		want    bool
	}{{pb.NetMode_NONE, true}, {pb.NetMode_UNSET, false}, {pb.NetMode_HOST, false}} {
		x := &llb.Exec{Meta: &pb.Meta{Args: []string{"x"}, Cwd: "/"}, Network: test.network, Mounts: []llb.Mount{llb.Root(from(t, "docker-image://busybox", nil))}}
		v, err := x.Vertex()
		if err != nil {
			t.Fatal(err)
		}
		c := &Capture{}
		c.Add(pins(v.Output(0)), v.Output(0))
		made, _, err := c.Predicate(v.Output(0), Options{}, Run{})
		if err != nil {
			t.Fatal(err)
		}
		if got := made.(*Predicate).RunDetails.Metadata.Hermetic; got != test.want {
			t.Errorf("network %v: hermetic is %v", test.network, got)
		}
	}
}

// TestAddOf sees that of images asked about for each platform only the own counts.
func TestAddOf(t *testing.T) {
	p := func(arch string) *ocispecs.Platform { return &ocispecs.Platform{OS: "linux", Architecture: arch} }
	all := []ocispecs.Platform{*p("amd64"), *p("arm64")}
	asked := []Image{
		{Ref: "both", Platform: p("amd64"), Digest: "a"}, {Ref: "both", Platform: p("arm64"), Digest: "b"},
		{Ref: "builder", Platform: p("amd64"), Digest: "c"}, // also what arm64 is built with
	}
	c := &Capture{}
	c.AddOf(all[1], all, asked)
	var got []string
	for _, i := range c.Images {
		got = append(got, i.Digest)
	}
	if want := []string{"b", "c"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                               "plain",
		"https://example.com/a@b":             "https://example.com/a@b", // no name
		"https://me@example.com":              "https://xxxxx@example.com",
		"https://:hunter2@example.com":        "https://xxxxx:xxxxx@example.com",
		"https://me:hunter2@example.com/a":    "https://xxxxx:xxxxx@example.com/a",
		"https://me:h@nter2@example.com/a":    "https://xxxxx:xxxxx@example.com/a", // an @ that should not be there
		"A=http://a:b@c B=http://d:e@f/g@h":   "A=http://xxxxx:xxxxx@c B=http://xxxxx:xxxxx@f/g@h",
		"git@github.com:moby/buildkit":        "git@github.com:moby/buildkit", // no password has a place in it
		"git://me:hunter2@example.com/r#v1:s": "git://xxxxx:xxxxx@example.com/r#v1:s",
	} {
		if got := Redact(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

// FuzzRedact sees that what stands between a scheme and the last @ goes.
func FuzzRedact(f *testing.F) {
	f.Add("me", "hunter2")
	f.Fuzz(func(t *testing.T, name, password string) {
		if strings.ContainsAny(name+password, "/?#\"' \t\r\n\f\v\u0085\u00a0") || len(password) < 8 || strings.Contains("xxxxx:xxxxx@example.com", password) {
			return
		}
		if got := Redact("https://" + name + ":" + password + "@example.com/x"); strings.Contains(got, password) {
			t.Errorf("%q has the password %q", got, password)
		}
	})
}

func TestParseOptions(t *testing.T) {
	o, err := ParseOptions(map[string]string{
		"mode": "min", "version": "v0.2", "inline-only": "true", "builder-id": "x", "filename": "p.json", "reproducible": "true",
		"capture-usage": "true", "another": "of others than kiln",
	})
	want := Options{Min: true, V02: true, Usage: true, InlineOnly: true, BuilderID: "x", Filename: "p.json", Reproducible: true}
	if err != nil || o != want {
		t.Errorf("got %+v, %v; want %+v", o, err, want)
	}
	for _, bad := range []map[string]string{{"mode": "most"}, {"version": "v2"}, {"reproducible": "perhaps"}} {
		if o, err := ParseOptions(bad); err == nil {
			t.Errorf("%v: got %+v, want an error", bad, o)
		}
	}
}
