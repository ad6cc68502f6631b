package daemon

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh/agent"
)

// buildkitConfig has buildkitd take the registry of the tests, and nothing else of
// this machine.
const buildkitConfig = `[worker.oci]
  enabled = true
[worker.containerd]
  enabled = false
[registry.%q]
  http = true
`

// startBuildKit starts the real buildkitd for a test, and gives its address.
func startBuildKit(t *testing.T) string {
	t.Helper()
	if out, err := exec.Command("../peers/build.sh", shared.peers, "buildkitd").CombinedOutput(); err != nil {
		t.Fatalf("building buildkitd: %v\n%s", err, out)
	}
	// Its name is short: sockets are made far below it, whose paths may have 107 bytes.
	dir, err := os.MkdirTemp("", "bk-")
	if err != nil {
		t.Fatal(err)
	}
	conf, addr := filepath.Join(dir, "buildkitd.toml"), "unix://"+filepath.Join(dir, "sock")
	if err := os.WriteFile(conf, fmt.Appendf(nil, buildkitConfig, shared.registry.Addr), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(shared.peers, "buildkitd"), "--config", conf, "--root", filepath.Join(dir, "root"), "--addr", addr,
		"--oci-worker-snapshotter", "overlayfs", "--oci-worker-net", "host", "--oci-worker-binary", "runc",
		"--otel-socket-path", filepath.Join(dir, "otel"), "--cdi-spec-dir", filepath.Join(dir, "cdi"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir, "DOCKER_CONFIG="+filepath.Join(dir, "docker"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
		defer timer.Stop()
		_ = cmd.Process.Signal(syscall.SIGTERM) // so that it unmounts what it has mounted
		_ = cmd.Wait()
		if err := mountless(dir); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	c, err := client.New(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Wait(t.Context()); err != nil {
		said, _ := os.ReadFile(log.Name())
		t.Fatalf("waiting for buildkitd: %v\n%s", err, said)
	}
	return addr
}

// startAgent serves an ssh agent without keys, and gives its socket.
func startAgent(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ring := agent.NewKeyring()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = agent.ServeAgent(ring, conn) // its error is the connection's end
			}()
		}
	}()
	return path
}

// TestCommandAtBuildKit has kiln's command build at the real buildkitd, in the
// scripts of testdata/buildkit.
func TestCommandAtBuildKit(t *testing.T) {
	addr, socket := startBuildKit(t), startAgent(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/buildkit",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", strings.Join([]string{shared.bin, shared.peers, e.Getenv("PATH")}, string(os.PathListSeparator)))
			e.Setenv("BUILDKIT_HOST", addr)
			e.Setenv("SSH_AUTH_SOCK", socket)
			e.Setenv("REGISTRY", shared.registry.Addr)
			e.Setenv("BUSYBOX", shared.registry.Addr+"/busybox:latest")
			e.Setenv("KILN_ROOT", filepath.Join(e.WorkDir, "no-state"))
			e.Setenv("DOCKER_CONFIG", filepath.Join(e.WorkDir, ".docker"))
			return nil
		},
	})
}
