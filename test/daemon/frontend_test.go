package daemon

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
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

// TestFrontendFromElsewhere builds by a frontend that no registry has under the name
// that is asked for: a named context is in its place, or it is built first.
func TestFrontendFromElsewhere(t *testing.T) {
	c, _ := newClient(t)
	image := pushFrontend(t, c)
	src := folder(t, map[string]string{"Dockerfile": "ARG BASE\nFROM ${BASE}\nCOPY file /copied\nRUN echo ran > /ran\n", "file": "content"})
	front := folder(t, map[string]string{"Dockerfile": strings.Replace(frontendDockerfile, "COPY", "COPY --from=peers", 1)})
	lent := map[string]fsutil.FS{"context": mount(t, src), "dockerfile": mount(t, src), "peers": mount(t, shared.peers), "front": mount(t, front)}
	build := func(attrs map[string]string, inputs map[string]llb.State) (string, error) {
		attrs["build-arg:BASE"] = shared.registry.Addr + "/busybox:latest"
		out := t.TempDir()
		_, err := c.Solve(t.Context(), nil, client.SolveOpt{
			Frontend: "gateway.v0", FrontendAttrs: attrs, FrontendInputs: inputs, LocalMounts: lent, Exports: toFolder(out),
		}, nil)
		if err != nil {
			return "", err
		}
		return read(t, filepath.Join(out, "copied")) + read(t, filepath.Join(out, "ran")), nil
	}
	const config = `{"config":{"Entrypoint":["/front"],"Labels":{"moby.buildkit.frontend.caps":"moby.buildkit.frontend.inputs"}}}`
	metadata, err := json.Marshal(map[string][]byte{"containerimage.config": []byte(config)})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		attrs  map[string]string
		inputs map[string]llb.State
		want   string // of the error; empty is none
	}{
		{"another image", map[string]string{"source": "nobody/has:it", "context:nobody/has:it": "docker-image://" + image}, nil, ""},
		{"a result of the client's", map[string]string{"source": "it", "context:it": "input:made", "input-metadata:made": string(metadata)},
			map[string]llb.State{"made": llb.Scratch().File(llb.Copy(llb.Local("peers", llb.IncludePatterns([]string{"dockerfile-frontend"})), "dockerfile-frontend", "/front"))}, ""},
		{"in the place of the daemon's own", map[string]string{"source": "dockerfile.v0", "context:dockerfile.v0": "docker-image://" + image}, nil, ""},
		{"a target", map[string]string{"source": "it", "context:it": "target:x"}, nil, "no Dockerfile"},
		{"another context", map[string]string{"source": shared.registry.Addr + "/none", "context:other": "docker-image://" + image}, nil, "does not have the image"},
		{"built by a Dockerfile", map[string]string{"source": "dockerfile.v0", "gateway-devel": "", "gateway-context:peers": "local:peers", "gateway-dockerfilekey": "front"}, nil, ""},
		{"built by a frontend in an image", map[string]string{"source": "gateway.v0", "gateway-devel": "", "gateway-source": image, "gateway-context:peers": "local:peers", "gateway-dockerfilekey": "front"}, nil, ""},
		{"built by nobody", map[string]string{"source": image, "gateway-devel": ""}, nil, "dockerfile.v0 or gateway.v0"},
		{"built in vain", map[string]string{"source": "dockerfile.v0", "gateway-devel": "", "gateway-filename": "None", "gateway-dockerfilekey": "front"}, nil, "open None"},
	} {
		got, err := build(test.attrs, test.inputs)
		if test.want == "" && (err != nil || got != "contentran\n") || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %q, %v; want an error with %q", test.name, got, err, test.want)
		}
	}
}

// TestFrontendReachesItsBuildOnly runs a frontend that tries to reach more, from
// inside a build whose results it would like to see.
func TestFrontendReachesItsBuildOnly(t *testing.T) {
	c, _ := newClient(t)
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "prober"), "./testdata/prober")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the prober: %v\n%s", err, out)
	}
	image := shared.registry.Addr + "/prober:1"
	file := folder(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY prober /prober\nLABEL moby.buildkit.frontend.network.none=true\nENTRYPOINT [\"/prober\"]\n"})
	_, err := c.Solve(t.Context(), nil, client.SolveOpt{
		Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": mount(t, dir), "dockerfile": mount(t, file)},
		Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": image, "push": "true"}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ref := identity.NewID()
	function(t, c, client.SolveOpt{Ref: ref}, func(ctx context.Context, g gateway.Client) {
		solve(ctx, t, g, llb.Scratch().File(llb.Mkfile("/private", 0o644, []byte("secret"))))
		_, err := c.Solve(ctx, nil, client.SolveOpt{Frontend: "gateway.v0", FrontendAttrs: map[string]string{"source": image, "other": ref}}, nil)
		if err == nil {
			t.Fatal("the prober built something")
		}
		for _, want := range []string{
			"itself: docker-image://" + image + "@sha256:", "control: Unimplemented", "other build: no such ref", "host network: network.host is not allowed",
			"files: [dev etc prober proc run sys] <nil>", "process: 1\n", "networks: 1 <nil>",
		} {
			if !strings.Contains(err.Error()+"\n", want) {
				t.Errorf("the prober reports\n%v\nwant %s", err, want)
			}
		}
	})
}

// TestFrontendIsAProgram builds by a program of the daemon's machine, which its
// configuration has to name.
func TestFrontendIsAProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "frontend")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "../../examples/frontend")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the example: %v\n%s", err, out)
	}
	config := filepath.Join(folder(t, map[string]string{"kiln.toml": "[frontend.exec]\nprograms = [\"" + program + "\"]\n"}), "kiln.toml")
	c, _ := newClient(t, "--config", config)
	src := folder(t, map[string]string{"Kilnfile": "copy file /copied\n", "file": "content"})
	by := func(frontend, out string) error {
		lent := map[string]fsutil.FS{"context": mount(t, src), "dockerfile": mount(t, src)}
		_, err := c.Solve(t.Context(), nil, client.SolveOpt{Frontend: frontend, LocalMounts: lent, Exports: toFolder(out)}, nil)
		return err
	}
	out := t.TempDir()
	if err := by("exec:"+program, out); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(out, "copied")); got != "content" {
		t.Errorf("the result holds %q", got)
	}
	for _, other := range []string{"/bin/true", filepath.Dir(program) + "/./frontend", "frontend", ""} {
		if err := by("exec:"+other, t.TempDir()); err == nil || !strings.Contains(err.Error(), "does not allow the frontend") {
			t.Errorf("%q: %v, want that it is not allowed", other, err)
		}
	}
}
