// Package fault breaks what kiln stands on while it works: it kills the process,
// fills the disk, and damages the state folder, and asks each time for a next
// build that gives the right image.
package fault

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kiln-build/kiln/test/internal/peer"
)

var (
	kiln     string
	registry *peer.Registry
)

func TestMain(m *testing.M) {
	os.Exit(peer.Main(m, func(l *peer.Lab) error {
		kiln, registry = l.Kiln, l.Registry
		return nil
	}))
}

// killed is a build with a bit of everything: stages that run at the same time, a
// context, many files, a large file, deletions, an export.
const killed = `
FROM %[1]s/busybox AS many
RUN mkdir /many && for i in $(seq 100); do echo $i > /many/$i; done
FROM %[1]s/busybox AS large
RUN dd if=/dev/zero of=/large bs=1M count=8 && rm /etc/group
FROM %[1]s/busybox
COPY . /src
COPY --from=many /many /many
RUN rm -r /src/d1 && ln /src/d2/f1 /hard
COPY --from=large /large /large
WORKDIR /src
CMD ["sh"]
`

// context makes the folder of the killed build.
func context(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := range 5 {
		sub := filepath.Join(dir, fmt.Sprintf("d%d", d))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range 40 {
			data := strings.Repeat(fmt.Sprintf("%d %d\n", d, f), 10*f)
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%d", f)), []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), fmt.Appendf(nil, killed, registry.Addr), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// command is a build whose digest depends on nothing but its input.
func command(state, context, out string) *exec.Cmd {
	cmd := exec.Command(kiln, "build", "--root", state, "--progress", "plain", "--build-arg", "SOURCE_DATE_EPOCH=1700000000",
		"--metadata-file", out+".json", "-o", "type=oci,rewrite-timestamp=true,dest="+out, context)
	return cmd
}

func build(t *testing.T, state, context string) (digest string, took time.Duration) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image.tar")
	start := time.Now()
	if text, err := command(state, context, out).CombinedOutput(); err != nil {
		t.Fatalf("the build failed: %v\n%s", err, text)
	}
	took = time.Since(start)
	meta, err := os.ReadFile(out + ".json")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(meta), `"containerimage.digest": "`)
	digest, _, _ = strings.Cut(rest, `"`)
	if !strings.HasPrefix(digest, "sha256:") {
		t.Fatalf("no digest in the metadata: %s", meta)
	}
	return digest, took
}

// TestKillAtRandomMoments kills a build that starts from nothing, and finds the
// next build of its state folder right, fifty times.
func TestKillAtRandomMoments(t *testing.T) {
	const kills = 50
	dir := context(t)
	want, took := build(t, t.TempDir(), dir)
	for n := range kills {
		state := t.TempDir()
		after := time.Duration(rand.Int64N(int64(took)))
		kill(t, state, dir, after)
		if got, _ := build(t, state, dir); got != want {
			t.Errorf("kill %d, after %v: got %s, want %s", n, after, got, want)
		}
		if err := os.RemoveAll(state); err != nil {
			t.Fatal(err)
		}
	}
}

// kill starts a build and ends it by SIGKILL. A build that was done before is fine.
func kill(t *testing.T, state, dir string, after time.Duration) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "killed.tar")
	cmd := command(state, dir, out)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(after)
	cmd.Process.Kill()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL) {
		t.Errorf("the killed build ended with %v", err)
	}
	waitForGroup(t, cmd.Process.Pid)
}

// waitForGroup waits until no process of the killed build is left: they die with it.
func waitForGroup(t *testing.T, pgid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err := syscall.Kill(-pgid, 0); errors.Is(err, syscall.ESRCH) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("processes of the killed build (group %d) are still there", pgid)
			return
		}
	}
}
