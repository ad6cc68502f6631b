package main

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/kiln-build/kiln/exporter/provenance"
	"github.com/kiln-build/kiln/request"
)

// TestPredicate takes a predicate of version 1 to version 0.2, and compares it with
// what the engine itself makes of it.
func TestPredicate(t *testing.T) {
	at := time.Unix(1000, 0).UTC()
	p := &provenance.Predicate{
		BuildDefinition: provenance.BuildDefinition{
			BuildType: "v1",
			ExternalParameters: provenance.ExternalParameters{
				ConfigSource: provenance.ConfigSource{URI: "https://example.com/x.git", Digest: map[string]string{"sha1": "0"}, Path: "Dockerfile"},
				Request:      provenance.Parameters{Frontend: "dockerfile.v0", Args: map[string]string{"a": "b"}},
			},
			InternalParameters: provenance.InternalParameters{
				BuildConfig:     &provenance.BuildConfig{DigestMapping: map[string]string{"sha256:0": "step0"}},
				BuilderPlatform: "linux/amd64", DockerfileVersion: "1.2", Environment: map[string]any{"ci": "here"},
			},
			ResolvedDependencies: []provenance.Material{{URI: "pkg:docker/x", Digest: map[string]string{"sha256": "0"}}},
		},
		RunDetails: provenance.RunDetails{
			Builder: provenance.Builder{ID: "me"},
			Metadata: &provenance.Metadata{
				InvocationID: "id", StartedOn: &at, FinishedOn: &at, Hermetic: true,
				Completeness: provenance.CompletenessOf1{Request: true},
				BuildKit:     provenance.BuildKit{VCS: map[string]string{"revision": "0"}},
			},
		},
	}
	generic := func(v any) (out object) {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	minimal := *p
	minimal.BuildDefinition.InternalParameters.BuildConfig = nil
	minimal.RunDetails.Metadata = nil
	for _, test := range []struct {
		name, kind, mode string
		from, want       any
	}{
		{"in full", provenanceV1, provenanceMax, p, p.V02()},
		{"in short", provenanceV1, provenanceMin, p, minimal.V02()},
		{"of version 0.2", provenanceV02, provenanceMax, p.V02(), p.V02()},
		{"in short, of version 0.2", provenanceV02, provenanceMin, p.V02(), minimal.V02()},
	} {
		t.Run(test.name, func(t *testing.T) {
			data, err := json.Marshal(test.from)
			if err != nil {
				t.Fatal(err)
			}
			got, err := predicate(request.Provenance{Type: test.kind, Data: data}, test.mode)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := generic(got), generic(test.want); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		})
	}
	for name, p := range map[string]request.Provenance{
		"of another type": {Type: "https://slsa.dev/provenance/v9", Data: []byte("{}")},
		"no JSON":         {Type: provenanceV1, Data: []byte("{")},
	} {
		if got, err := predicate(p, provenanceMax); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
}

func TestMetadataProvenance(t *testing.T) {
	for value, want := range map[string]string{
		"": "min", "min": "min", "max": "max", "disabled": "disabled", "false": "disabled", "0": "disabled", "true": "min", "other": "min",
	} {
		t.Setenv("BUILDX_METADATA_PROVENANCE", value)
		if got := metadataProvenance(); got != want {
			t.Errorf("%q: got %s, want %s", value, got, want)
		}
	}
}
