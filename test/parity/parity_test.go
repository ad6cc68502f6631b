//go:build parity

// Package parity builds the same Dockerfiles with kiln and with a real buildkitd
// and compares what comes out.
//
// A case is a txtar file below cases/: its comment says the rule that it shows,
// its files are the build context (parseCase has the details). Both builders work
// against one docker-registry and one web server, on loopback addresses. A build
// has to work or fail with both alike; then every image is compared: its config
// and history, the number of layers, and the file tree that the layers make, path
// by path. Times are left out where a case does not ask for them.
//
// A difference fails the run unless known.txt lists it with its reason.
package parity

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// suite is what the cases share.
type suite struct {
	dir      string
	registry string
	site     *site
	buildkit *buildkit
	kiln     *kiln
	known    *knownList
	debian   func() error // pushes debian, once
	frontend func() error // pushes docker/dockerfile, once
	tools    func() error // pushes toolchain, once

	cases, passes, knownCases atomic.Int64

	mu   sync.Mutex
	seen []string // the known differences that were met
}

func TestParity(t *testing.T) {
	cases, err := readCases("cases")
	if err != nil {
		t.Fatal(err)
	}
	s := setUp(t)
	t.Run("cases", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s.check(t, c)
			})
		}
	})
	ran := s.cases.Load()
	if ran == int64(len(cases)) && os.Getenv("PARITY") != "buildkit" {
		for _, k := range s.known.stale() {
			t.Errorf("known.txt: no case shows this any more: %s | %s", k.cases, k.line)
		}
	}
	slices.Sort(s.seen)
	for _, line := range s.seen {
		fmt.Println(line)
	}
	fmt.Printf("parity: %d cases, %d pass, %d of them with %d known differences, %d fail\n",
		ran, s.passes.Load(), s.knownCases.Load(), len(s.seen), ran-s.passes.Load())
}

func setUp(t *testing.T) *suite {
	t.Helper()
	s := &suite{dir: t.TempDir()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	s.known, err = readKnown("known.txt")
	must(err)
	reg, err := peer.StartRegistry(filepath.Join(s.dir, "registry"))
	must(err)
	t.Cleanup(reg.Stop)
	s.registry = reg.Addr
	must(s.pushBases())
	must(os.Mkdir(filepath.Join(s.dir, "site"), 0o755))
	s.site, err = startSite(filepath.Join(s.dir, "site"))
	must(err)
	t.Cleanup(s.site.server.Close)

	peers := os.Getenv("PARITY_PEERS")
	if peers == "" {
		t.Fatal("PARITY_PEERS names no folder with buildctl and buildkitd; `make parity` sets it")
	}
	// A socket's path has at most 107 bytes, so that its folder is not below the test's own.
	dir, err := os.MkdirTemp("", "parity-")
	must(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	devices := filepath.Join(dir, "cdi")
	must(os.Mkdir(devices, 0o755))
	for _, name := range []string{"vendor1.yaml", "vendor2.json"} {
		data, err := os.ReadFile(filepath.Join("devices", name))
		must(err)
		must(os.WriteFile(filepath.Join(devices, name), data, 0o644))
	}
	s.buildkit, err = startBuildkit(peers, dir, s.registry)
	must(err)
	t.Cleanup(s.buildkit.stop)

	s.kiln = &kiln{root: filepath.Join(s.dir, "state"), config: filepath.Join(s.dir, "kiln.toml")}
	s.kiln.env = append(os.Environ(), "DOCKER_CONFIG="+filepath.Join(dir, "docker"), "HOME="+dir)
	must(os.WriteFile(s.kiln.config, fmt.Appendf(nil, "[cdi]\nspecDirs = [%q]\n%s", devices, registryConfig(s.registry)), 0o644))
	if s.kiln.bin = os.Getenv("PARITY_KILN"); s.kiln.bin == "" {
		s.kiln.bin, err = peer.BuildKiln(s.dir)
		must(err)
	}
	s.debian = sync.OnceValue(func() error {
		img, err := peer.Debian()
		if err != nil {
			return err
		}
		for _, tag := range []string{"debian:latest", "debian:bookworm", "debian:stable"} {
			if err := peer.Push(img, s.registry+"/library/"+tag); err != nil {
				return err
			}
		}
		return nil
	})
	s.tools = sync.OnceValue(func() error {
		img, err := peer.RootFS(os.Getenv("PARITY_TOOLCHAIN"), "bash")
		if err != nil {
			return err
		}
		return peer.Push(img, s.registry+"/library/toolchain:latest")
	})
	s.frontend = sync.OnceValue(func() error { return s.pushFrontend(peers) })
	return s
}

// pushBases pushes busybox under the names that the reference's examples use, and
// an image of three platforms.
func (s *suite) pushBases() error {
	busybox, err := peer.Busybox()
	if err != nil {
		return err
	}
	for _, tag := range []string{"busybox:latest", "busybox:1.36", "alpine:latest", "ubuntu:latest", "ubuntu:22.04", "golang:latest", "base:latest", "nginx:latest"} {
		if err := peer.Push(busybox, s.registry+"/library/"+tag); err != nil {
			return err
		}
	}
	var adds []mutate.IndexAddendum
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "arm", Variant: "v7"}} {
		file, err := busybox.ConfigFile()
		if err != nil {
			return err
		}
		file = file.DeepCopy()
		file.Architecture, file.Variant = p.Architecture, p.Variant
		file.Config.Env = append(file.Config.Env, "ARCH="+p.Architecture+p.Variant)
		img, err := mutate.ConfigFile(busybox, file)
		if err != nil {
			return err
		}
		adds = append(adds, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	ref, err := name.ParseReference(s.registry+"/library/multi:latest", name.Insecure)
	if err != nil {
		return err
	}
	return remote.WriteIndex(ref, mutate.AppendManifests(empty.Index, adds...))
}

// pushFrontend makes docker/dockerfile:1, which the syntax directive names, of
// BuildKit's own frontend.
func (s *suite) pushFrontend(peers string) error {
	data, err := os.ReadFile(filepath.Join(peers, "dockerfile-frontend"))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.dir, "frontend-")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "dockerfile-frontend"), data, 0o755); err != nil {
		return err
	}
	return s.buildkit.push([]byte("FROM scratch\nCOPY dockerfile-frontend /\nENTRYPOINT [\"/dockerfile-frontend\"]\n"), s.registry+"/docker/dockerfile:1", dir)
}

var (
	fromDebian   = regexp.MustCompile(`(?mi)^FROM debian`)
	fromTools    = regexp.MustCompile(`(?mi)^FROM toolchain`)
	fromFrontend = regexp.MustCompile(`(?m)^# syntax=docker/dockerfile`)
)

// check builds one case with both and compares.
func (s *suite) check(t *testing.T, c *testCase) {
	s.cases.Add(1)
	if err := s.provide(c); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f, err := c.write(dir, s.site, s.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range c.images {
		ref := f.vars.Replace("@IMAGES@/") + img.name
		if err := s.buildkit.push(f.expand(img.dockerfile), ref, t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	want := s.buildkit.build(c, f, s.site, filepath.Join(dir, "buildkit.tar"))
	if problem := c.judge(want); problem != "" {
		t.Fatalf("the case is wrong: with buildkit, %s", problem)
	}
	if os.Getenv("PARITY") == "buildkit" {
		s.passes.Add(1)
		return
	}
	got := s.kiln.build(c, f, filepath.Join(dir, "kiln.tar"))
	s.report(t, c, compare(t, c, want, got))
}

// provide pushes the larger images that the case stands on, each once in a run.
func (s *suite) provide(c *testCase) error {
	var text []byte
	for _, f := range c.files {
		text = append(text, f.Data...)
	}
	for _, i := range c.images {
		text = append(text, i.dockerfile...)
	}
	for _, base := range []struct {
		named *regexp.Regexp
		push  func() error
	}{{fromDebian, s.debian}, {fromTools, s.tools}, {fromFrontend, s.frontend}} {
		if base.named.Match(text) {
			if err := base.push(); err != nil {
				return err
			}
		}
	}
	return nil
}

// judge says in which way a build did not do what the case says it does.
func (c *testCase) judge(o outcome) string {
	switch {
	case c.fails == nil && o.err != nil:
		return fmt.Sprintf("the build failed: %v\n%s", o.err, tail(o.log))
	case c.fails != nil && o.err == nil:
		return fmt.Sprintf("the build worked, but should have failed with %q", c.fails)
	case c.fails != nil && !c.fails.MatchString(o.log):
		return fmt.Sprintf("the build failed, but its message does not match %q:\n%s", c.fails, tail(o.log))
	}
	return ""
}

func compare(t *testing.T, c *testCase, want, got outcome) []string {
	if problem := c.judge(got); problem != "" {
		return []string{problem}
	}
	if c.fails != nil {
		return nil
	}
	if c.call != "" {
		return compareAnswers(want.answer, got.answer)
	}
	w, err := readImages(want.tarball)
	if err != nil {
		t.Fatalf("reading buildkit's tarball: %v", err)
	}
	g, err := readImages(got.tarball)
	if err != nil {
		return []string{fmt.Sprintf("kiln's tarball cannot be read: %v", err)}
	}
	return compareImages(w, g, comparison{times: c.times, compression: strings.Contains(c.output, "compression=")})
}

func (s *suite) report(t *testing.T, c *testCase, lines []string) {
	failed, meant := false, false
	for _, line := range lines {
		if k := s.known.find(c.name, line); k != nil {
			s.mu.Lock()
			first, _, _ := strings.Cut(line, "\n")
			s.seen = append(s.seen, fmt.Sprintf("known: %s: %s (%s)", c.name, first, k.reason))
			s.mu.Unlock()
			meant = true
			continue
		}
		failed = true
		t.Errorf("%s\n\trule: %s", line, c.rule)
	}
	if failed {
		return
	}
	s.passes.Add(1)
	if meant {
		s.knownCases.Add(1)
	}
}

// tail gives the last lines of a log.
func tail(log string) string {
	lines := strings.Split(strings.TrimRight(log, "\n"), "\n")
	lines = lines[max(0, len(lines)-25):]
	for i, l := range lines {
		lines[i] = l[:min(len(l), 400)]
	}
	return strings.Join(lines, "\n")
}
