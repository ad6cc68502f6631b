package kiln

import (
	"testing"
)

func TestParseAttests(t *testing.T) {
	for _, test := range []struct {
		attrs            map[string]string
		provenance, sbom bool
	}{
		{nil, false, false}, // nothing is asked for, nothing is attested
		{map[string]string{"attest:provenance": ""}, true, false},
		{map[string]string{"attest:provenance": "mode=min", "attest:sbom": "generator=x"}, true, true},
		{map[string]string{"attest:provenance": "disabled=true", "attest:sbom": "false"}, false, false},
		{map[string]string{"attest:provenance": "mode=min,disabled=false"}, true, false},
		{map[string]string{"build-arg:BUILDKIT_ATTEST_SBOM": ""}, false, true}, // for who can set arguments only
	} {
		a, err := parseAttests(test.attrs)
		if err != nil || (a.provenance != nil) != test.provenance || (a.sbom != nil) != test.sbom {
			t.Errorf("%v: got %+v, %v", test.attrs, a, err)
		}
	}
	for _, bad := range []map[string]string{
		{"attest:vibes": ""},
		{"attest:provenance": "mode=most"},
		{"attest:provenance": `"`},
		{"attest:sbom": "generator="},
		{"attest:sbom": "generator=UPPER"},
	} {
		if a, err := parseAttests(bad); err == nil {
			t.Errorf("%v: got %+v, want an error", bad, a)
		}
	}
	a, err := parseAttests(map[string]string{"attest:sbom": "generator=example.com/x,SAY=y", "no-cache": ""})
	if err != nil || a.sbom.Image != "example.com/x:latest" || a.sbom.Params["SAY"] != "y" || !a.noCache {
		t.Errorf("got %+v, %v", a.sbom, err)
	}
}
