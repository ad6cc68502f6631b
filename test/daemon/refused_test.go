package daemon

import (
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
)

// TestCompatibilityVersion asks for results as BuildKit's versions make them: those
// that kiln does not make are refused, and not made in another way.
func TestCompatibilityVersion(t *testing.T) {
	c, _ := newClient(t)
	def := marshal(t, llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte("x"))))
	for version, says := range map[int]string{
		0:  "", // the newest
		30: "",
		10: "unsupported compatibility-version 10",
		20: "unsupported compatibility-version 20",
		40: "unsupported compatibility-version 40",
	} {
		_, err := c.Solve(t.Context(), def, client.SolveOpt{CompatibilityVersion: version}, nil)
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("version %d: got %v, want it to say %q", version, err, says)
		}
	}
}
