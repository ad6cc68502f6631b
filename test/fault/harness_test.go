package fault

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hang is when something that should have ended counts as hanging. It bounds no
// speed: the machine may be busy with other things.
const hang = time.Minute

// ended is a command that has run.
type ended struct {
	code           int // -1 where a signal killed it
	stdout, stderr string
}

// run runs kiln on a state folder. env comes on top of this process's own.
func run(t *testing.T, state string, env []string, args ...string) ended {
	t.Helper()
	cmd := exec.Command(kiln, args...)
	cmd.Env = append(append(os.Environ(), "KILN_ROOT="+state), env...)
	return finish(t, cmd)
}

// finish runs a command to its end.
func finish(t *testing.T, cmd *exec.Cmd) ended {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(hang, func() { cmd.Process.Signal(syscall.SIGQUIT) }) // with a trace of all goroutines
	defer watchdog.Stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return ended{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// failed checks that a command ended with a code, and said what it should: each of
// patterns, and no stack trace.
func (e ended) failed(t *testing.T, code int, patterns ...string) {
	t.Helper()
	if e.code != code {
		t.Errorf("exit code %d, want %d", e.code, code)
	}
	for _, p := range append(patterns, `(?m)^kiln: `) {
		if !regexp.MustCompile(p).MatchString(e.stderr) {
			t.Errorf("standard error lacks %q", p)
		}
	}
	if strings.Contains(e.stderr, "goroutine ") {
		t.Error("standard error has a stack trace")
	}
	if t.Failed() {
		t.Logf("standard error:\n%s", e.stderr)
	}
}

// worked checks that a command succeeded.
func (e ended) worked(t *testing.T) {
	t.Helper()
	if e.code != 0 {
		t.Errorf("exit code %d, want 0; standard error:\n%s", e.code, e.stderr)
	}
}

// dockerfile writes a Dockerfile into a context of its own.
func dockerfile(t *testing.T, format string, args ...any) (context string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), fmt.Appendf(nil, format, args...), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// clean checks that nothing of a build is left: no mount below the state folder, no
// process that has it as its root or on its command line, no temporary file.
func clean(t *testing.T, state string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+state+"/") {
			t.Errorf("left behind: mount %s", line)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		root, _ := os.Readlink(filepath.Join(p, "root"))
		if environ, _ := os.ReadFile(filepath.Join(p, "environ")); root != "/" && strings.Contains(root, state) ||
			bytes.Contains(environ, []byte("KILN_ROOT="+state+"\x00")) {
			command, _ := os.ReadFile(filepath.Join(p, "cmdline"))
			t.Errorf("left behind: process %s: %q", p, command)
		}
	}
	entries, err := os.ReadDir(filepath.Join(state, "tmp"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left behind: %s/tmp/%s", state, e.Name())
	}
}
