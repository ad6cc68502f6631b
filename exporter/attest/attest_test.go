package attest

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/internal/fixture"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const spdx = `{"_type":"t","predicateType":"` + SPDX + `","subject":[{"name":"x","digest":{"sha256":"` +
	"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae" + `"}}],"predicate":{"a":1}}`

// root gives a file system with files.
func root(t *testing.T, c *fixture.Cache, files map[string]string) exporter.Attestation {
	t.Helper()
	entries := map[string]tree.Entry{}
	for name, data := range files {
		entries[name] = c.File([]byte(data), func(e *tree.Entry) { e.Tag = uint64(len(name)) })
	}
	return exporter.Attestation{Root: c.Chain(c.Layer(entries))}
}

func TestRead(t *testing.T) {
	c := fixture.New(t)
	in := root(t, c, map[string]string{"a.json": `{"b": 2}`, "empty": "", "dir/other.json": spdx, "dir/sbom.spdx.json": spdx})
	file, empty, bundle := in, in, in
	file.Path, file.PredicateType = "/a.json", "https://example.com/v1"
	empty.Path = "empty"
	bundle.Path, bundle.Bundle, bundle.SBOMCore, bundle.PredicateType = "dir", true, "sbom", SPDX
	got, err := Read(t.Context(), c.Env(nil), []exporter.Attestation{file, empty, bundle}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range got {
		names = append(names, p.Path+" "+string(p.Data))
	}
	want := []string{`dir/sbom.spdx.json {"a":1}`, `/a.json {"b": 2}`, "empty ", `dir/other.json {"a":1}`}
	if !reflect.DeepEqual(names, want) {
		t.Errorf("got %q, want %q: what is about the image itself comes first", names, want)
	}
	self := []Subject{Of("image", digest.FromString("manifest"))}
	if s := got[1].Statement(self); s.Type != StatementType || s.PredicateType != file.PredicateType || !reflect.DeepEqual(s.Subject, self) {
		t.Errorf("a statement without subjects is %+v, want the image", s)
	}
	if s := got[0].Statement(self); len(s.Subject) != 1 || s.Subject[0].Name != "x" || s.Subject[0].Digest["sha256"][:4] != "2c26" {
		t.Errorf("the subjects of a bundle's statement are %+v, want its own", s.Subject)
	}
	if data, err := json.Marshal(got[2].Statement(nil)); err != nil || !strings.Contains(string(data), `"subject":[],"predicate":null`) {
		t.Errorf("an empty predicate is %s, %v", data, err)
	}
}

func TestReadRefuses(t *testing.T) {
	c := fixture.New(t)
	in := root(t, c, map[string]string{
		"text": "text", "b1/x": "{", "b2/x": spdx + spdx, "b3/x": strings.Replace(spdx, SPDX, "https://slsa.dev/provenance/v1", 1),
		"b4/x": strings.Replace(spdx, SPDX, "other", 1),
	})
	for name, change := range map[string]func(*exporter.Attestation){
		"no path":                 func(*exporter.Attestation) {},
		"not there":               func(a *exporter.Attestation) { a.Path = "/nothere" },
		"outside":                 func(a *exporter.Attestation) { a.Path = "../../etc/passwd" },
		"no JSON":                 func(a *exporter.Attestation) { a.Path = "text" },
		"a folder":                func(a *exporter.Attestation) { a.Path = "b1" },
		"a provenance":            func(a *exporter.Attestation) { a.Path, a.PredicateType = "text", "https://slsa.dev/provenance/v1" },
		"a bundle of no folder":   func(a *exporter.Attestation) { a.Path, a.Bundle = "text", true },
		"a bundle of half JSON":   func(a *exporter.Attestation) { a.Path, a.Bundle = "b1", true },
		"a bundle of two":         func(a *exporter.Attestation) { a.Path, a.Bundle = "b2", true },
		"a bundled provenance":    func(a *exporter.Attestation) { a.Path, a.Bundle = "b3", true },
		"a bundle of other types": func(a *exporter.Attestation) { a.Path, a.Bundle, a.PredicateType = "b4", true, SPDX },
	} {
		a := in
		change(&a)
		if got, err := Read(t.Context(), c.Env(nil), []exporter.Attestation{a}, nil); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

func TestPURL(t *testing.T) {
	amd64 := &ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	sum := digest.FromString("x").String()
	for _, test := range []struct {
		ref      string
		platform *ocispecs.Platform
		want     string
	}{
		{"busybox", nil, "pkg:docker/busybox@latest"},                                                  // docker's own host and tag go without saying
		{"docker.io/library/busybox:1", amd64, "pkg:docker/busybox@1?platform=linux%2Famd64"},          // its full name is the same
		{"localhost:5000/a/b", amd64, "pkg:docker/localhost%3A5000/a/b@latest?platform=linux%2Famd64"}, // a port
		{"a/b@" + sum, nil, "pkg:docker/a/b?digest=" + sum},                                            // no tag where there is a digest
	} {
		if got, err := PURL(PURLDocker, test.ref, test.platform); err != nil || got != test.want {
			t.Errorf("%s: got %s, %v; want %s", test.ref, got, err, test.want)
		}
	}
	if got, err := PURL(PURLDocker, "UPPER", nil); err == nil {
		t.Errorf("got %s of a name that is none", got)
	}
}

func TestNaming(t *testing.T) {
	for _, test := range []struct {
		how        Naming
		path, want string
	}{
		{Naming{}, "provenance.json", "provenance.json"},
		{Naming{Prefix: "p."}, "/dir/sbom.spdx.json", "p.sbom.spdx.json"},                 // of the path the last part
		{Naming{Platform: "linux_arm64"}, "sbom.spdx.json", "sbom.spdx.linux_arm64.json"}, // before the extension
		{Naming{Prefix: "a/../"}, "x", ""},                                                // a prefix leads nowhere else
		{Naming{}, "..", ""},
	} {
		got, err := test.how.name(test.path)
		if got != test.want && err == nil || (err == nil) != (test.want != "") {
			t.Errorf("%+v of %s: got %q, %v; want %q", test.how, test.path, got, err, test.want)
		}
	}
}
