//go:build online

// Package online builds what downloads: Debian packages, Go modules, npm packages,
// from where this machine itself gets them. `make test-online` runs it.
package online

import (
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// env is what every test here works with.
type env struct {
	kiln, state, registry string
	ca                    string // the machine's bundle of certificate authorities
}

func setUp(t *testing.T) env {
	t.Helper()
	dir := t.TempDir()
	bin, err := peer.BuildKiln(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := peer.StartRegistry(filepath.Join(dir, "registry"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	img, err := peer.Debian()
	if err != nil {
		t.Fatal(err)
	}
	if err := peer.Push(img, r.Addr+"/debian"); err != nil {
		t.Fatal(err)
	}
	e := env{kiln: bin, state: filepath.Join(dir, "state"), registry: r.Addr, ca: os.Getenv("SSL_CERT_FILE")}
	if e.ca == "" {
		e.ca = "/etc/ssl/certs/ca-certificates.crt"
	}
	return e
}

// reachable skips the test where the host of an address does not answer: there is
// no network then, and nothing to test.
func reachable(t *testing.T, address string) {
	t.Helper()
	u, err := url.Parse(strings.TrimSpace(address))
	if err != nil || u.Host == "" {
		t.Fatalf("no address: %q", address)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(u.Hostname(), port), 10*time.Second)
	if err != nil {
		t.Skipf("there is no network here: %v", err)
	}
	conn.Close()
}

// output is what a program of this machine prints, its settings for one.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return strings.TrimSpace(string(out))
}

// build builds a Dockerfile with those files beside it.
func (e env) build(t *testing.T, files map[string]string, args ...string) (progress string) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	args = append([]string{"build", "--root", e.state, "--progress", "plain", "--build-arg", "BASE=" + e.registry + "/debian",
		"--secret", "id=ca,src=" + e.ca, dir}, args...)
	out, err := exec.Command(e.kiln, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("kiln %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestOnlineDebianPackage(t *testing.T) {
	reachable(t, output(t, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: bookworm", "Component: main"))
	e := setUp(t)
	tar := filepath.Join(t.TempDir(), "image.tar")
	e.build(t, map[string]string{"Dockerfile": `
ARG BASE
FROM $BASE
RUN apt-get update && apt-get install -y --no-install-recommends hello && rm -rf /var/lib/apt/lists/*
CMD ["hello"]
`}, "-o", "type=oci,dest="+tar)
	got, err := peer.Run(tar, nil)
	if err != nil || !strings.Contains(got, "Hello, world!") {
		t.Errorf("running the image: got %q, %v", got, err)
	}
}

func TestOnlineGoService(t *testing.T) {
	proxy, _, _ := strings.Cut(output(t, "go", "env", "GOPROXY"), ",")
	reachable(t, proxy)
	e := setUp(t)
	tar := filepath.Join(t.TempDir(), "image.tar")
	files := map[string]string{
		"Dockerfile": `
FROM scratch AS build
COPY --from=goroot . /usr/local/go
COPY --from=busybox busybox /bin/sh
WORKDIR /var/tmp
WORKDIR /src
COPY go.mod go.sum ./
ARG GOPROXY
ENV CGO_ENABLED=0 GOTOOLCHAIN=local GOSUMDB=off HOME=/root PATH=/usr/local/go/bin:/bin TMPDIR=/var/tmp
RUN --mount=type=cache,target=/root/go --mount=type=secret,id=ca SSL_CERT_FILE=/run/secrets/ca go mod download
COPY main.go .
RUN --mount=type=cache,target=/root/go --mount=type=cache,target=/root/.cache go build -o /service .
FROM scratch
COPY --from=build /service /service
ENTRYPOINT ["/service"]
`,
		"go.mod":  "module example.com/service\n\ngo 1.26\n\nrequire github.com/google/uuid v1.6.0\n",
		"go.sum":  "github.com/google/uuid v1.6.0 h1:NIvaJDMOsjHA8n1jAhLSgzrAzy1Hgr+hNrb57e+94F0=\ngithub.com/google/uuid v1.6.0/go.mod h1:TIyPZe4MgqvfeYDBFedMoGGpEw/LqOeaOT+nhxU+yHo=\n",
		"main.go": "package main\n\nimport (\n\t\"fmt\"\n\n\t\"github.com/google/uuid\"\n)\n\nfunc main() { fmt.Println(uuid.NewSHA1(uuid.NameSpaceURL, []byte(\"kiln\"))) }\n",
	}
	busybox := t.TempDir()
	if err := os.Link(output(t, "which", "busybox"), filepath.Join(busybox, "busybox")); err != nil {
		output(t, "cp", output(t, "which", "busybox"), busybox)
	}
	e.build(t, files, "-o", "type=oci,dest="+tar, "--build-arg", "GOPROXY="+proxy,
		"--build-context", "goroot="+output(t, "go", "env", "GOROOT"), "--build-context", "busybox="+busybox)
	got, err := peer.Run(tar, nil)
	if err != nil || len(strings.TrimSpace(got)) != 36 {
		t.Errorf("running the image: got %q, %v", got, err)
	}
}

func TestOnlineNpmProject(t *testing.T) {
	if _, err := exec.LookPath("npm"); err != nil {
		t.Skip("this machine has no npm")
	}
	registry := output(t, "npm", "config", "get", "registry")
	reachable(t, registry)
	e := setUp(t)
	tar := filepath.Join(t.TempDir(), "image.tar")
	e.build(t, map[string]string{
		"Dockerfile": `
ARG BASE
FROM $BASE
COPY --from=node node /usr/bin/node
COPY --from=npm . /usr/lib/npm
WORKDIR /app
COPY package.json .
ARG REGISTRY
RUN --mount=type=secret,id=ca NODE_EXTRA_CA_CERTS=/run/secrets/ca node /usr/lib/npm/bin/npm-cli.js install --registry $REGISTRY --no-audit --no-fund
COPY index.js .
CMD ["node", "index.js"]
`,
		"package.json": `{"name": "app", "version": "1.0.0", "dependencies": {"is-number": "7.0.0"}}`,
		"index.js":     `console.log(require("is-number")(7) ? "seven is a number" : "no")`,
	}, "-o", "type=oci,dest="+tar, "--build-arg", "REGISTRY="+registry,
		"--build-context", "node="+filepath.Dir(output(t, "readlink", "-f", output(t, "which", "node"))),
		"--build-context", "npm="+filepath.Dir(filepath.Dir(output(t, "readlink", "-f", output(t, "which", "npm")))))
	got, err := peer.Run(tar, nil)
	if err != nil || !strings.Contains(got, "seven is a number") {
		t.Errorf("running the image: got %q, %v", got, err)
	}
}
