package dockerfile

import (
	"context"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/kiln-build/kiln/frontend"
)

// policyBridge puts another source in the place of every image.
type policyBridge struct {
	fakeBridge
	by string
}

func (b *policyBridge) ResolveImage(_ context.Context, ref string, _ frontend.ResolveOptions) (frontend.Image, error) {
	return frontend.Image{}, &frontend.ReplacedError{Ref: ref, By: b.by}
}

// TestReplacedContext has policies put something else in the place of an image that is
// a named context.
func TestReplacedContext(t *testing.T) {
	for _, tt := range []struct {
		name, by string
		want     string // the graph, or else what the error has
	}{
		{"a folder", "local://other", `
			0 local://other local.followpaths=["foo"]
			1 copy 0:/foo / on scratch`},
		{"a repository", "git://example.com/r.git", `
			0 git://example.com/r.git git.fullurl=git://example.com/r.git
			1 copy 0:/foo / on scratch`},
		{"an image, again and again", "docker-image://docker.io/library/next:latest", "more than 10 times"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &policyBridge{by: tt.by, fakeBridge: fakeBridge{folders: map[string]fstest.MapFS{
				"local://dockerfile": {"Dockerfile": {Data: []byte(lines("FROM scratch", "COPY --from=dep /foo /"))}},
			}}}
			res, err := New().Build(t.Context(), frontend.Request{Machine: amd64, Opts: opts("context:dep=docker-image://base")}, b)
			if err != nil {
				if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
				return
			}
			sameText(t, "graph", draw(res.Images[0].Root), tt.want)
		})
	}
}
