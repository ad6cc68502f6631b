// Package peer starts the real programs that tests work with, and makes the
// images that they need from Debian's packages. What it starts listens on
// 127.0.0.1 only and is stopped, by process id, by what started it.
package peer

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// Registry is a running docker-registry.
type Registry struct {
	// Addr is its address, "127.0.0.1:PORT".
	Addr string
	// Dir is the folder that holds what was pushed.
	Dir string
	// Log is the file that the registry writes its log to.
	Log string
	cmd *exec.Cmd
}

const registryConfig = `version: 0.1
log: {level: info, accesslog: {disabled: false}}
storage:
  filesystem: {rootdirectory: %s}
  delete: {enabled: true}
http: {addr: "127.0.0.1:0"}
`

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)

// StartRegistry starts a registry that keeps its images in dir.
func StartRegistry(dir string) (*Registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, registryConfig, filepath.Join(dir, "data")), 0o644); err != nil {
		return nil, err
	}
	r := &Registry{Dir: dir, Log: filepath.Join(dir, "log")}
	log, err := os.Create(r.Log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r.cmd = exec.Command("docker-registry", "serve", conf)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting docker-registry (`make deps` installs it): %w", err)
	}
	if r.Addr, err = waitForAddress(r.Log); err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

// waitForAddress reads the log until it says where the registry listens.
func waitForAddress(log string) (string, error) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		f, err := os.Open(log)
		if err != nil {
			return "", err
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				f.Close()
				return m[1], nil
			}
		}
		f.Close()
	}
	data, _ := os.ReadFile(log)
	return "", fmt.Errorf("docker-registry did not come up in 20 s; its log: %s", data)
}

// Stop ends the registry.
func (r *Registry) Stop() {
	r.cmd.Process.Kill()
	r.cmd.Wait()
}
