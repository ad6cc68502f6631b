package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// tool is a builder that is measured.
type tool interface {
	name() string
	// reset gives the tool an empty state; a daemon starts anew.
	reset(context.Context) error
	build(context.Context, build) (sample, error)
	// state is the folder that holds its state.
	state() string
	// close ends what runs.
	close() error
}

// states are the state folders of a tool, one for each round; lab.sweep removes
// them. A new one has another name, by which ext4 lays it out
// elsewhere (see openLab): where inodes were freed a moment ago it passes over them
// one by one if it keeps no journal, so that whoever makes files after a large
// removal pays for it (a third of the time of W4's first build, as measured).
type states struct {
	dir, tool string
	n         int
}

// state is the folder of the present round.
func (s *states) state() string { return filepath.Join(s.dir, fmt.Sprintf("state-%s-%d", s.tool, s.n)) }

// next begins a round.
func (s *states) next() { s.n++ }

// build is what a tool is to build.
type build struct {
	context, dockerfile string            // folder and file
	contexts            map[string]string // further folders by name
	oci                 string            // tarball to write; empty writes none
	compression         string            // of its layers; empty is gzip
	push                string            // reference to push to; empty pushes nothing
	cacheFrom, cacheTo  string            // remote caches; empty is none
}

// kilnTool is the command of this repository, a process for each build.
type kilnTool struct {
	states
	daemon
	bin string
}

func (k *kilnTool) name() string { return "kiln" }
func (k *kilnTool) close() error { return k.stop() }
func (k *kilnTool) addr() string { return "unix://" + filepath.Join(k.dir, "kiln.sock") }

func (k *kilnTool) reset(context.Context) error {
	if err := k.close(); err != nil {
		return err
	}
	k.next()
	return nil
}

// serve starts a daemon on the state folder, which the builds that follow find and
// use, until the tool is reset or closed.
func (k *kilnTool) serve(ctx context.Context) error {
	socket := strings.TrimPrefix(k.addr(), "unix://")
	cmd := exec.Command(k.bin, "serve", "--root", k.state(), "--addr", k.addr())
	return k.start(ctx, cmd, filepath.Join(k.dir, "kiln.log"), func() bool {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}

func (k *kilnTool) build(ctx context.Context, b build) (sample, error) {
	args := []string{"build", "--root", k.state(), "--progress", "plain", "--file", b.dockerfile}
	for name, dir := range b.contexts {
		args = append(args, "--build-context", name+"="+dir)
	}
	if out := b.output(); out != "" {
		args = append(args, "--output", out)
	}
	if b.cacheFrom != "" {
		args = append(args, "--cache-from", b.cacheFrom)
	}
	if b.cacheTo != "" {
		args = append(args, "--cache-to", b.cacheTo)
	}
	return k.measure(func() (sample, error) { return measure(ctx, nil, k.bin, append(args, b.context)...) })
}

// output gives the value of --output for kiln and buildctl.
func (b build) output() string {
	var out string
	switch {
	case b.oci != "":
		out = "type=oci,dest=" + b.oci
	case b.push != "":
		out = "type=image,push=true,name=" + b.push
	default:
		return ""
	}
	if b.compression != "" {
		out += ",compression=" + b.compression
	}
	return out
}

// buildkit is a daemon with runc and overlayfs, and its client.
type buildkit struct {
	states
	daemon
	peers string
}

func (b *buildkit) name() string { return "buildkit" }
func (b *buildkit) addr() string { return "unix://" + filepath.Join(b.dir, "buildkitd.sock") }
func (b *buildkit) ctl() string  { return filepath.Join(b.peers, "buildctl") }

func (b *buildkit) reset(ctx context.Context) error {
	if err := b.close(); err != nil {
		return err
	}
	b.next()
	if err := os.MkdirAll(b.state(), 0o700); err != nil {
		return err
	}
	// Garbage collection stays out of the measurement.
	conf := filepath.Join(b.dir, "buildkitd.toml")
	if err := os.WriteFile(conf, []byte("[worker.oci]\n  gc = false\n[worker.containerd]\n  enabled = false\n"), 0o600); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(b.peers, "buildkitd"), "--config", conf, "--root", b.state(), "--addr", b.addr(),
		"--oci-worker-snapshotter", "overlayfs", "--oci-worker-binary", "runc", "--oci-worker-net", "host",
		"--otel-socket-path", filepath.Join(b.dir, "buildkitd-otel.sock"))
	return b.start(ctx, cmd, filepath.Join(b.dir, "buildkitd.log"), func() bool {
		return exec.CommandContext(ctx, b.ctl(), "--addr", b.addr(), "debug", "workers").Run() == nil
	})
}

func (b *buildkit) close() error { return b.stop() }

func (b *buildkit) build(ctx context.Context, w build) (sample, error) {
	args := []string{"--addr", b.addr(), "build", "--progress", "plain", "--frontend", "dockerfile.v0",
		"--local", "context=" + w.context, "--local", "dockerfile=" + filepath.Dir(w.dockerfile), "--opt", "filename=" + filepath.Base(w.dockerfile)}
	for name, dir := range w.contexts {
		args = append(args, "--local", name+"="+dir, "--opt", "context:"+name+"=local:"+name)
	}
	if out := w.output(); out != "" {
		args = append(args, "--output", out)
	}
	if w.cacheFrom != "" {
		args = append(args, "--import-cache", w.cacheFrom)
	}
	if w.cacheTo != "" {
		args = append(args, "--export-cache", w.cacheTo)
	}
	return b.measure(func() (sample, error) { return measure(ctx, nil, b.ctl(), args...) })
}

// buildah is Debian's, with overlayfs and a process for each build.
type buildah struct{ states }

func (b *buildah) name() string { return "buildah" }

func (b *buildah) reset(ctx context.Context) error {
	if err := b.close(); err != nil {
		return err
	}
	b.next()
	return os.MkdirAll(b.state(), 0o700)
}

func (b *buildah) close() error {
	if _, err := os.Stat(filepath.Join(b.state(), "root")); err == nil {
		exec.Command("buildah", append(b.global(), "rm", "--all")...).Run()
	}
	// It leaves a bind mount of its own folder.
	syscall.Unmount(filepath.Join(b.state(), "root", "overlay"), syscall.MNT_DETACH)
	return nil
}

func (b *buildah) global() []string {
	return []string{"--root", filepath.Join(b.state(), "root"), "--runroot", filepath.Join(b.state(), "run"), "--storage-driver", "overlay"}
}

func (b *buildah) build(ctx context.Context, w build) (sample, error) {
	args := append(b.global(), "build", "--layers", "--quiet", "--runtime", "runc", "--network", "host", "--tls-verify=false", "--file", w.dockerfile, "--tag", "bench")
	for name, dir := range w.contexts {
		args = append(args, "--build-context", name+"="+dir)
	}
	env := []string{"TMPDIR=" + b.state()}
	s, err := measure(ctx, env, "buildah", append(args, w.context)...)
	if err != nil {
		return s, err
	}
	push := append(b.global(), "push", "--quiet", "--tls-verify=false", "--format", "oci")
	switch w.compression {
	case "zstd":
		push = append(push, "--compression-format", "zstd")
	case "uncompressed":
		push = append(push, "--disable-compression")
	}
	switch {
	case w.oci != "":
		os.Remove(w.oci) // it adds to an archive that exists
		push = append(push, "bench", "oci-archive:"+w.oci)
	case w.push != "":
		push = append(push, "bench", "docker://"+w.push)
	default:
		return s, nil
	}
	pushed, err := measure(ctx, env, "buildah", push...)
	return s.plus(pushed), err
}
