//go:build parity

package parity

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// questions are the requests of BuildKit's frontend by the names of --call.
var questions = map[string]string{"check": "frontend.lint", "outline": "frontend.outline", "targets": "frontend.targets"}

// buildkit is a running buildkitd.
type buildkit struct {
	ctl, addr, log string
	cmd            *exec.Cmd
	env            []string
}

const buildkitConfig = `[worker.oci]
  enabled = true
[worker.containerd]
  enabled = false
`

// registryConfig has the keys that both builders read: docker.io is the registry
// of the tests, and nothing is asked of the real one.
func registryConfig(registry string) string {
	return fmt.Sprintf("[registry.\"docker.io\"]\n  mirrors = [%q]\n[registry.%q]\n  http = true\n", registry, registry)
}

// startBuildkit starts buildkitd with all its state below dir.
func startBuildkit(peers, dir, registry string) (*buildkit, error) {
	b := &buildkit{ctl: filepath.Join(peers, "buildctl"), addr: "unix://" + filepath.Join(dir, "sock"), log: filepath.Join(dir, "log")}
	b.env = append(os.Environ(), "DOCKER_CONFIG="+filepath.Join(dir, "docker"), "HOME="+dir)
	conf := filepath.Join(dir, "buildkitd.toml")
	if err := os.WriteFile(conf, []byte(buildkitConfig+registryConfig(registry)), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(b.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// What runs the cases may ignore signals (nohup, a background job), as then would buildkitd and its steps.
	b.cmd = exec.Command("env", "--default-signal", filepath.Join(peers, "buildkitd"), "--config", conf, "--root", filepath.Join(dir, "root"), "--addr", b.addr,
		"--oci-worker-snapshotter", "overlayfs", "--oci-worker-net", "host", "--oci-worker-binary", "runc",
		"--otel-socket-path", filepath.Join(dir, "otel"), "--cdi-spec-dir", filepath.Join(dir, "cdi"),
		"--allow-insecure-entitlement", "network.host", "--allow-insecure-entitlement", "security.insecure", "--allow-insecure-entitlement", "device")
	b.cmd.Stdout, b.cmd.Stderr, b.cmd.Env = log, log, b.env
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := b.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting buildkitd: %w", err)
	}
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if exec.Command(b.ctl, "--addr", b.addr, "debug", "workers").Run() == nil {
			return b, nil
		}
	}
	b.stop()
	data, _ := os.ReadFile(b.log)
	return nil, fmt.Errorf("buildkitd did not come up in 60 s; its log: %s", data)
}

// stop ends buildkitd, asking first so that it unmounts what it mounted.
func (b *buildkit) stop() {
	b.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { b.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		b.cmd.Process.Kill()
		<-done
	}
}

// push builds a Dockerfile with the files of dir and pushes the image.
func (b *buildkit) push(dockerfile []byte, ref, dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), dockerfile, 0o644); err != nil {
		return err
	}
	_, log, err := run(nil, b.env, b.ctl, "--addr", b.addr, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
		"--local", "context="+dir, "--local", "dockerfile="+dir, "--output", "type=image,name="+ref+",push=true,registry.insecure=true")
	if err != nil {
		return fmt.Errorf("building the base image %s: %w\n%s", ref, err, log)
	}
	return nil
}

// build runs the case with buildctl.
func (b *buildkit) build(c *testCase, f *folders, s *site, dest string) outcome {
	args, annotations, err := buildctlArgs(c, f)
	if err != nil {
		return outcome{err: err}
	}
	source, err := buildctlContext(c, f, s)
	if err != nil {
		return outcome{err: err}
	}
	args = append(append([]string{"--addr", b.addr, "build", "--progress", "plain", "--frontend", "dockerfile.v0"}, args...), source...)
	if c.call != "" {
		args = append(args, "--opt", "requestid="+questions[c.call])
	} else {
		args = append(args, "--output", join("type=oci,dest="+dest, c.output, annotations))
	}
	answer, log, err := run(nil, append(b.env, c.env...), b.ctl, args...)
	return outcome{tarball: dest, answer: answer, log: log, err: err}
}

func join(parts ...string) string {
	var out []string
	for _, p := range parts {
		if p != "" {
			out = append(out, p)
		}
	}
	return strings.Join(out, ",")
}

// buildctlArgs says in buildctl's words what the case's flags say in buildx's.
func buildctlArgs(c *testCase, f *folders) (args []string, annotations string, err error) {
	words := f.expandAll(c.args)
	opt := func(name, value string) { args = append(args, "--opt", name+"="+value) }
	hosts, ulimits, local := []string{}, []string{}, 0
	for i := 0; i < len(words); i++ {
		name, value, ok := strings.Cut(words[i], "=")
		if !ok && i+1 < len(words) {
			i++
			value = words[i]
		}
		switch name {
		case "--build-arg", "--label":
			key, v, ok := strings.Cut(value, "=")
			if !ok && name == "--build-arg" {
				v = envValue(c.env, key)
			}
			opt(strings.TrimPrefix(name, "--")+":"+key, v)
		case "--target", "--platform", "--cgroup-parent":
			opt(strings.TrimPrefix(name, "--"), value)
		case "--sbom":
			opt("attest:sbom", value)
		case "--network":
			opt("force-network-mode", value)
			if value == "host" {
				args = append(args, "--allow", "network.host")
			}
		case "--no-cache-filter":
			opt("no-cache", value)
		case "--annotation":
			annotations = join(annotations, "annotation."+value)
		case "--add-host":
			hosts = append(hosts, strings.Replace(value, ":", "=", 1))
		case "--ulimit":
			ulimits = append(ulimits, value)
		case "--shm-size":
			n, err := units.RAMInBytes(value)
			if err != nil {
				return nil, "", err
			}
			opt("shm-size", strconv.FormatInt(n, 10))
		case "--secret", "--ssh", "--allow":
			args = append(args, name, value)
		case "--build-context":
			local++
			more, err := namedContext(value, local)
			if err != nil {
				return nil, "", err
			}
			args = append(args, more...)
		case "-f", "--file":
			// buildctlContext reads it
		default:
			return nil, "", fmt.Errorf("flag %s has no counterpart in buildctl here", name)
		}
	}
	if len(hosts) > 0 {
		opt("add-hosts", strings.Join(hosts, ","))
	}
	if len(ulimits) > 0 {
		opt("ulimit", strings.Join(ulimits, ","))
	}
	return args, annotations, nil
}

// namedContext gives the options for --build-context: a folder is a local source
// of its own, an OCI layout a store and the digest of the image in it.
func namedContext(value string, n int) ([]string, error) {
	name, where, _ := strings.Cut(value, "=")
	if dir, ok := strings.CutPrefix(where, "oci-layout://"); ok {
		data, err := os.ReadFile(filepath.Join(dir, "index.json"))
		if err != nil {
			return nil, err
		}
		var index v1.Index
		if err := json.Unmarshal(data, &index); err != nil || len(index.Manifests) != 1 {
			return nil, fmt.Errorf("%s is no layout of one image: %w", dir, err)
		}
		store := fmt.Sprintf("store%d", n)
		return []string{"--oci-layout", store + "=" + dir, "--opt", "context:" + name + "=oci-layout://" + store + "@" + index.Manifests[0].Digest.String()}, nil
	}
	if strings.HasPrefix(where, "/") {
		local := fmt.Sprintf("ctx%d", n)
		return []string{"--local", local + "=" + where, "--opt", "context:" + name + "=local:" + local}, nil
	}
	return []string{"--opt", "context:" + name + "=" + where}, nil
}

func envValue(env []string, key string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, key+"="); ok {
			return v
		}
	}
	return os.Getenv(key)
}

// fileFlag gives what -f or --file says, "" without one.
func (c *testCase) fileFlag() string {
	for i, w := range c.args {
		if v, ok := strings.CutPrefix(w, "--file="); ok {
			return v
		}
		if (w == "-f" || w == "--file") && i+1 < len(c.args) {
			return c.args[i+1]
		}
	}
	return ""
}

// buildctlContext gives the options for the context and the Dockerfile. What
// kiln reads from standard input, BuildKit gets as a folder or an address, which
// is what buildx makes of it.
func buildctlContext(c *testCase, f *folders, s *site) ([]string, error) {
	file := f.vars.Replace(c.fileFlag())
	from := f.vars.Replace(c.context)
	switch {
	case strings.Contains(from, "://"):
		args := []string{"--opt", "context=" + from}
		if file != "" {
			args = append(args, "--opt", "filename="+file)
		}
		return args, nil
	case c.stdin == "tar":
		tarball := filepath.Join(f.web, "stdin.tar")
		if err := tarContext(f, tarball); err != nil {
			return nil, err
		}
		args := []string{"--opt", "context=" + s.url + "/web/" + c.name + "/stdin.tar"}
		if file != "" {
			args = append(args, "--opt", "filename="+file)
		}
		return args, nil
	}
	dir, context := f.context, f.context
	if from != "." {
		context, dir = filepath.Join(f.context, from), filepath.Join(f.context, from)
	}
	if c.stdin != "" {
		dir = filepath.Join(f.dirs, ".stdin")
		data, err := os.ReadFile(filepath.Join(f.context, c.stdin))
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), data, 0o644); err != nil {
			return nil, err
		}
		file = ""
		if from == "-" {
			context = filepath.Join(f.dirs, ".empty")
			if err := os.MkdirAll(context, 0o755); err != nil {
				return nil, err
			}
		}
	}
	args := []string{"--local", "context=" + context}
	if file != "" {
		if !filepath.IsAbs(file) {
			file = filepath.Join(f.context, file)
		}
		dir = filepath.Dir(file)
		args = append(args, "--opt", "filename="+filepath.Base(file))
	}
	return append(args, "--local", "dockerfile="+dir), nil
}

func tarContext(f *folders, to string) error {
	if out, err := exec.Command("tar", "-C", f.context, "--owner=:7", "--group=:8", "--numeric-owner", "-cf", to, ".").CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w\n%s", err, out)
	}
	return nil
}
