package script

import (
	"errors"
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

const failing = `ARG BASE
FROM $BASE
ENV WORD=said
WORKDIR /work
RUN --mount=type=cache,target=/cache --mount=type=bind,target=/ctx --mount=type=secret,id=token echo kept > /cache/f; echo half > done; exit 3
`

// TestShellOnError enters a failed step and looks around.
func TestShellOnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(failing), 0o644); err != nil {
		t.Fatal(err)
	}
	ours, theirs := peer.Terminal(t)
	cmd := exec.Command(filepath.Join(shared.bin, "kiln"), "build", "--on-error=shell", "--progress=plain", "--secret", "id=token,env=TOKEN",
		"--build-arg", "BASE="+shared.registry.Addr+"/busybox:latest", "--root", t.TempDir(), dir)
	cmd.Env = append(os.Environ(), "TOKEN=secret")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	kill := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer kill.Stop()

	// The marks are put together by the shell, so that the echo of what is typed is none.
	typed := "PS1=; until [ \"$(stty size)\" = '40 132' ]; do sleep 0.02; done; " +
		"echo be''gin; pwd; cat done /cache/f /run/secrets/token; echo; echo $WORD; ls /ctx; tty; echo fin''ish; exit 9\n"
	seen := ""
	buf := make([]byte, 4096)
	for sent := false; ; {
		n, err := ours.Read(buf)
		seen += string(buf[:n])
		if !sent && strings.Contains(seen, "exit ends the build") && (strings.HasSuffix(seen, "# ") || strings.HasSuffix(seen, "\x1b[6n")) {
			sent = true
			if _, err := io.WriteString(ours, typed); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			break // EIO when the other end is closed by all
		}
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() == 0 {
		t.Errorf("kiln ended with %v, want the build's failure", err)
	}
	_, after, _ := strings.Cut(seen, "begin\r\n")
	got, rest, _ := strings.Cut(after, "finish")
	if want := "/work\r\nhalf\r\nkept\r\nsecret\r\nsaid\r\nDockerfile\r\n/dev/pts/0\r\n"; got != want {
		t.Errorf("in the shell stands %q, want %q; all of it:\n%s", got, want, seen)
	}
	if !strings.Contains(rest, "exit code: 3") {
		t.Errorf("afterwards kiln says %q, want how the step failed", rest)
	}
}
