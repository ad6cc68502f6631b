package daemon

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
)

const frontendDockerfile = `FROM scratch
COPY dockerfile-frontend /bin/dockerfile-frontend
LABEL moby.buildkit.frontend.network.none=true
LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts
ENTRYPOINT ["/bin/dockerfile-frontend"]
`

// pushFrontend makes an image of BuildKit's own Dockerfile frontend, and gives its name.
func pushFrontend(t *testing.T, c *client.Client) string {
	t.Helper()
	if out, err := exec.Command("../peers/build.sh", shared.peers, "dockerfile-frontend").CombinedOutput(); err != nil {
		t.Fatalf("building the frontend: %v\n%s", err, out)
	}
	name := shared.registry.Addr + "/frontend:1"
	src := folder(t, map[string]string{"Dockerfile": frontendDockerfile})
	_, err := c.Solve(t.Context(), nil, client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{},
		LocalMounts: map[string]fsutil.FS{"context": mount(t, shared.peers), "dockerfile": mount(t, src)},
		Exports:     []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": name, "push": "true"}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestFrontendInImage builds by BuildKit's own frontend, asked for by the Dockerfile
// and by the client.
func TestFrontendInImage(t *testing.T) {
	c, _ := newClient(t)
	image := pushFrontend(t, c)
	const text = "FROM ${BASE}\nCOPY file /copied\nRUN echo ran > /ran\n"
	for _, test := range []struct {
		name, dockerfile, frontend string
	}{
		{"the Dockerfile asks for it", "# syntax=" + image + "\nARG BASE\n" + text, "dockerfile.v0"},
		{"the client asks for it", "ARG BASE\n" + text, "gateway.v0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			src := folder(t, map[string]string{"Dockerfile": test.dockerfile, "file": "content"})
			attrs := map[string]string{"build-arg:BASE": shared.registry.Addr + "/busybox:latest"}
			if test.frontend == "gateway.v0" {
				attrs["source"] = image
			}
			out := t.TempDir()
			lent := map[string]fsutil.FS{"context": mount(t, src), "dockerfile": mount(t, src)}
			_, err := c.Solve(t.Context(), nil, client.SolveOpt{Frontend: test.frontend, FrontendAttrs: attrs, LocalMounts: lent, Exports: toFolder(out)}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, filepath.Join(out, "copied")) + read(t, filepath.Join(out, "ran")); got != "contentran\n" {
				t.Errorf("the result holds %q", got)
			}
		})
	}
	t.Run("its errors come back", func(t *testing.T) {
		src := folder(t, map[string]string{"Dockerfile": "# syntax=" + image + "\nFROM scratch\nRUNN x\n"})
		lent := map[string]fsutil.FS{"context": mount(t, src), "dockerfile": mount(t, src)}
		_, err := c.Solve(t.Context(), nil, client.SolveOpt{Frontend: "dockerfile.v0", LocalMounts: lent}, nil)
		if err == nil || !strings.Contains(err.Error(), "dockerfile parse error on line 3: unknown instruction: RUNN") {
			t.Errorf("got %v, want the frontend's own error", err)
		}
	})
	t.Run("an image that is no frontend", func(t *testing.T) {
		src := folder(t, map[string]string{"Dockerfile": "# syntax=" + shared.registry.Addr + "/busybox:latest\nFROM scratch\n"})
		lent := map[string]fsutil.FS{"context": mount(t, src), "dockerfile": mount(t, src)}
		_, err := c.Solve(t.Context(), nil, client.SolveOpt{Frontend: "dockerfile.v0", LocalMounts: lent}, nil)
		if err == nil {
			t.Error("it built something")
		}
	})
}
