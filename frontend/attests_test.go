package frontend

import (
	"reflect"
	"testing"
)

func TestAttests(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts map[string]string
		want map[string]map[string]string // nil is an error
	}{
		{"none", map[string]string{"target": "x"}, map[string]map[string]string{}},
		{"without fields", map[string]string{"attest:sbom": ""}, map[string]map[string]string{"sbom": {}}},
		{"fields, with and without values", map[string]string{"attest:sbom": `a=b=c,d,"e=f,g"`},
			map[string]map[string]string{"sbom": {"a": "b=c", "d": "", "e": "f,g"}}},
		{"by a build argument, in capitals", map[string]string{"build-arg:BUILDKIT_ATTEST_PROVENANCE": "mode=min"},
			map[string]map[string]string{"provenance": {"mode": "min"}}},
		{"switched off", map[string]string{"attest:sbom": "disabled=true", "attest:provenance": "false"}, map[string]map[string]string{}},
		{"not switched off", map[string]string{"attest:sbom": "disabled=false"}, map[string]map[string]string{"sbom": {"disabled": "false"}}},
		{"a quote without an end", map[string]string{"attest:sbom": `"a`}, nil},
	} {
		got, err := Attests(tt.opts)
		if (err != nil) != (tt.want == nil) || err == nil && !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

func FuzzAttests(f *testing.F) {
	f.Add("generator=x,SAY=y")
	f.Add(`"a=b,c",d`)
	f.Add("\r\n")
	f.Fuzz(func(t *testing.T, value string) {
		got, err := Attests(map[string]string{"attest:sbom": value})
		if err == nil && len(got) > 1 {
			t.Errorf("%q: got %v, want one kind at most", value, got)
		}
	})
}
