package all

import (
	"strings"
	"testing"

	"github.com/kiln-build/kiln/exporter"
)

func TestNew(t *testing.T) {
	for _, kind := range Types() {
		e, err := New(kind, map[string]string{"name": "x", "unknown": "y"}, exporter.Env{})
		if err != nil || e == nil {
			t.Errorf("%s: %v, %v", kind, e, err)
		}
		if e, err := New(kind, map[string]string{"source-date-epoch": "x"}, exporter.Env{}); err == nil || e != nil || !strings.Contains(err.Error(), kind) {
			t.Errorf("%s with a wrong attribute: %v, %v; want an error that names the type, and nil", kind, e, err)
		}
	}
	if _, err := New("floppy", nil, exporter.Env{}); err == nil || !strings.Contains(err.Error(), "docker, image, local, oci, registry, tar") {
		t.Errorf("got %v, want an error that lists the types", err)
	}
}
