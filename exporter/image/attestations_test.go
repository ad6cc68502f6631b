package image

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/attest"
	"github.com/kiln-build/kiln/exporter/internal/fixture"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// said is an attestation that the engine makes.
func said(path, data string) exporter.Attestation {
	return exporter.Attestation{Path: path, PredicateType: "https://example.com/v1", Content: func(context.Context, exporter.Blobs) ([]byte, error) {
		return []byte(data), nil
	}}
}

func tryAssemble(t *testing.T, c *fixture.Cache, attrs map[string]string, r exporter.Result) (*Image, error) {
	t.Helper()
	o, err := ParseOptions(attrs)
	if err != nil {
		t.Fatal(err)
	}
	return Assemble(t.Context(), c.Env(nil), o, r, new(fixture.Steps), nil)
}

func TestAttestations(t *testing.T) {
	c := fixture.New(t)
	chain := c.Chain(c.Layer(map[string]tree.Entry{"f": c.File([]byte("f"), nil)}))
	r := fixture.Result(chain, fixture.Config(fixture.Amd64, 1))
	r.Images[0].Attestations = []exporter.Attestation{said("a.json", `{"a":1}`), said("b.json", `{"b":2}`)}
	img, err := tryAssemble(t, c, map[string]string{"name": "example.com/x:1"}, r)
	if err != nil {
		t.Fatal(err)
	}
	var idx ocispecs.Index
	if err := json.Unmarshal(img.Root.Data, &idx); err != nil || len(idx.Manifests) != 2 {
		t.Fatalf("the root is %s, %v; want an index of two", img.Root.Data, err)
	}
	at := idx.Manifests[1]
	if at.Platform.OS != "unknown" || at.Annotations[referenceDigest] != img.Manifests[0].Desc.Digest.String() || at.Annotations[referenceType] != attestationMark {
		t.Errorf("the second manifest is %+v", at)
	}
	var m ocispecs.Manifest
	if err := json.Unmarshal(img.Attestations[0].Data, &m); err != nil {
		t.Fatal(err)
	}
	if m.ArtifactType != attestationKind || m.Subject.Digest != img.Manifests[0].Desc.Digest || m.Config.Digest != ocispecs.DescriptorEmptyJSON.Digest || len(m.Layers) != 2 {
		t.Errorf("the manifest is %+v", m)
	}
	var s attest.Statement
	if err := json.Unmarshal(img.Attestations[0].Statements[1].Data, &s); err != nil {
		t.Fatal(err)
	}
	if string(s.Predicate) != `{"b":2}` || len(s.Subject) != 1 || s.Subject[0].Name != "pkg:docker/example.com/x@1?platform=linux%2Famd64" {
		t.Errorf("the second statement is %+v", s)
	}
	// Everything that is named is among the documents, before what names it.
	seen := map[string]bool{}
	for _, d := range img.Documents() {
		for _, l := range m.Layers {
			if d.Desc.Digest == img.Attestations[0].Desc.Digest && !seen[l.Digest.String()] {
				t.Errorf("the manifest comes before its layer %s", l.Digest)
			}
		}
		seen[d.Desc.Digest.String()] = true
	}
	if !seen[m.Config.Digest.String()] || !seen[at.Digest.String()] {
		t.Error("the documents lack a part of the attestations")
	}
}

func TestAttestationForms(t *testing.T) {
	c := fixture.New(t)
	chain := c.Chain(c.Layer(map[string]tree.Entry{"f": c.File([]byte("f"), nil)}))
	result := func(inlineOnly bool) exporter.Result {
		r := fixture.Result(chain, fixture.Config(fixture.Amd64, 1))
		a := said("a.json", "{}")
		a.InlineOnly = inlineOnly
		r.Images[0].Attestations = []exporter.Attestation{a}
		return r
	}
	// As an image.
	img, err := tryAssemble(t, c, map[string]string{"oci-artifact": "false"}, result(false))
	if err != nil {
		t.Fatal(err)
	}
	var config ocispecs.Image
	if err := json.Unmarshal(img.Attestations[0].Config.Data, &config); err != nil || config.OS != "unknown" || len(config.RootFS.DiffIDs) != 1 {
		t.Errorf("the config is %s, %v", img.Attestations[0].Config.Data, err)
	}
	if strings.Contains(string(img.Attestations[0].Data), "artifactType") {
		t.Errorf("the manifest is %s", img.Attestations[0].Data)
	}
	// What is for indexes only makes none, unless it is asked to.
	if img, err = tryAssemble(t, c, nil, result(true)); err != nil || img.Index {
		t.Errorf("an index was made for what needs none, %v", err)
	}
	if img, err = tryAssemble(t, c, map[string]string{"attestation-inline": "true"}, result(true)); err != nil || len(img.Attestations) != 1 {
		t.Errorf("no index was made where one was asked for, %v", err)
	}
	// Docker's types have no place for it.
	if _, err := tryAssemble(t, c, map[string]string{"oci-mediatypes": "false"}, result(false)); err == nil {
		t.Error("docker's media types took an attestation")
	}
	if o, err := ParseOptions(map[string]string{"oci-mediatypes": "false", "oci-artifact": "true"}); err == nil {
		t.Errorf("got %+v, want that the two conflict", o)
	}
}

func TestBillOfMaterialsNamesLayers(t *testing.T) {
	c := fixture.New(t)
	chain := c.Chain(
		c.Layer(map[string]tree.Entry{"low": c.File([]byte("low"), nil), "both": c.File([]byte("1"), nil)}),
		c.Layer(map[string]tree.Entry{"both": c.File([]byte("2"), nil)}))
	bill := func(doc string) string {
		r := fixture.Result(chain, fixture.Config(fixture.Amd64, 2))
		a := said("sbom.spdx.json", doc)
		a.PredicateType, a.SBOMCore = attest.SPDX, "sbom"
		r.Images[0].Attestations = []exporter.Attestation{a}
		img, err := tryAssemble(t, c, nil, r)
		if err != nil {
			t.Fatal(err)
		}
		var s attest.Statement
		if err := json.Unmarshal(img.Attestations[0].Statements[0].Data, &s); err != nil {
			t.Fatal(err)
		}
		layers := img.Manifests[0].Layers
		return strings.NewReplacer(layers[0].Desc.Digest.String(), "LOW", layers[1].Desc.Digest.String(), "TOP").Replace(string(s.Predicate))
	}
	got := bill(`{"spdxVersion":"SPDX-2.3","x":1,"files":[{"fileName":"/low"},{"fileName":"both"},{"fileName":"/other"},{"fileName":"/low","comment":"own"}]}`)
	want := `{"creationInfo":{"creators":["Tool: kiln"]},"files":[{"comment":"layerID: LOW","fileName":"/low"},{"comment":"layerID: TOP","fileName":"both"},` +
		`{"fileName":"/other"},{"comment":"own","fileName":"/low"}],"spdxVersion":"SPDX-2.3","x":1}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, other := range []string{`{"spdxVersion":"SPDX-3.0"}`, `{"files":3,"spdxVersion":"SPDX-2.3"}`, `[]`} {
		if got := bill(other); got != other {
			t.Errorf("%s became %s", other, got)
		}
	}
}
