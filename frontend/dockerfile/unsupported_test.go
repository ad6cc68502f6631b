package dockerfile

import (
	"encoding/json"
	"errors"
	"testing"
)

func TestCapabilities(t *testing.T) {
	for _, tt := range []struct {
		name, required string
		dockerfile     string
		want           string // the error
	}{
		{"none", "", "FROM scratch", ""},
		{"those that are there", "moby.buildkit.frontend.contexts,moby.buildkit.frontend.inputs+forward", "FROM scratch", ""},
		{"one that is not", "moby.buildkit.frontend.inputs,x.dance", "FROM scratch", "unsupported frontend capability x.dance"},
		{"one that another frontend may have", "x.dance+forward", "# syntax=docker/dockerfile:1\nFROM scratch", "unsupported frontend capability x.dance"},
	} {
		b := testBuild{dockerfile: tt.dockerfile, opts: map[string]string{"frontend.caps": tt.required}}
		_, err := b.run()
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestUnsupportedNames(t *testing.T) {
	b := testBuild{dockerfile: "FROM scratch", opts: map[string]string{"requestid": "frontend.dance"}}
	_, err := b.run()
	var e *UnsupportedError
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an UnsupportedError", err)
	}
	kind, value := e.Detail()
	data, err := json.Marshal(value)
	if err != nil || kind != "errdefs.Subrequest+json" || string(data) != `{"name":"frontend.dance"}` {
		t.Errorf("got %s %s, %v", kind, data, err)
	}
}
