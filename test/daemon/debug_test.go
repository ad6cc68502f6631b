package daemon

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// TestBuildxDebug enters a failed step by the debugger of docker buildx.
func TestBuildxDebug(t *testing.T) {
	_, d := newClient(t)
	env := append(os.Environ(), "BUILDX_EXPERIMENTAL=1", "BUILDX_CONFIG="+t.TempDir())
	buildx := filepath.Join(shared.peers, "buildx")
	create := exec.Command(buildx, "create", "--name", "debugged", "--driver", "remote", d.addr())
	create.Env = env
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	src := folder(t, map[string]string{"Dockerfile": "FROM " + shared.registry.Addr + "/busybox:latest\nRUN echo half > /done; exit 3\n"})
	ours, theirs := peer.Terminal(t)
	cmd := exec.Command(buildx, "debug", "--on=error", "--invoke", "/bin/sh", "build", "--builder", "debugged", "--progress=plain", src)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	kill := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	defer kill.Stop()

	// What is typed when a text is there; quotes keep its echo from being taken for it.
	steps := []struct{ seen, typed string }{
		{"/ # ", "cat /done; echo mar''ked\n"},
		{"marked", "exit\n"},
		{"(buildx)", "exit\n"},
	}
	seen := ""
	buf := make([]byte, 4096)
	for {
		n, err := ours.Read(buf)
		seen += string(buf[:n])
		if len(steps) > 0 && strings.Contains(seen, steps[0].seen) {
			if _, err := io.WriteString(ours, steps[0].typed); err != nil {
				t.Fatal(err)
			}
			steps = steps[1:]
		}
		if err != nil {
			break // EIO when the other end is closed by all
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the build of a failing step went well")
	}
	if !strings.Contains(seen, "\nhalf\r") || !strings.Contains(seen, "\nmarked\r") {
		t.Errorf("the debugger showed\n%s", seen)
	}
}
