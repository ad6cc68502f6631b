// Package registrytest lends registries to tests: Debian's docker-registry, run
// on a loopback port of its own, and Proxy, which stands before one and breaks
// what goes through it.
package registrytest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// Registry is a running docker-registry. It ends with the test.
type Registry struct {
	Host string // "127.0.0.1:port"
	Dir  string // what it holds
}

// listening is how docker-registry logs its address.
var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// Start runs a docker-registry. extra are further lines of its configuration.
func Start(t testing.TB, extra string) *Registry {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %s/data}\n  delete: {enabled: true}\nhttp: {addr: 127.0.0.1:0}\n%s", dir, extra)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", conf)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that is killed cleans up nothing
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting docker-registry (a Debian package): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	found := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			if m := listening.FindSubmatch(lines.Bytes()); m != nil {
				found <- string(m[1])
				break
			}
		}
		_, _ = io.Copy(io.Discard, stderr)
	}()
	select {
	case host := <-found:
		return &Registry{Host: host, Dir: filepath.Join(dir, "data")}
	case <-time.After(20 * time.Second):
		t.Fatal("docker-registry did not start within 20 s")
		return nil
	}
}
