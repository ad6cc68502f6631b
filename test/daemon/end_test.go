package daemon

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/crypto/ssh/agent"
)

// sleeper is a step that takes a minute unless somebody stops it.
func sleeper(marker string) llb.State {
	return llb.Image(shared.registry.Addr+"/busybox:latest").
		Run(llb.Args([]string{"sh", "-c", "echo begun " + marker + "; exec sleep 60"}), llb.IgnoreCache).Root()
}

// solveInBackground begins a build; begun is closed when its step has written
// something, and the error comes when it has ended.
func solveInBackground(ctx context.Context, t *testing.T, c *client.Client, st llb.State) (begun <-chan struct{}, ended <-chan error) {
	t.Helper()
	def := marshal(t, st)
	statuses := make(chan *client.SolveStatus)
	wrote, done := make(chan struct{}), make(chan error, 1)
	go func() {
		var once sync.Once
		for s := range statuses {
			if len(s.Logs) > 0 {
				once.Do(func() { close(wrote) })
			}
		}
	}()
	go func() {
		_, err := c.Solve(ctx, def, client.SolveOpt{}, statuses)
		done <- err
	}()
	return wrote, done
}

func within(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s did not happen within 30 s", what)
	}
}

// TestClientGoesAway cancels a build and looks whether its step has ended.
func TestClientGoesAway(t *testing.T) {
	c, d := newClient(t)
	ctx, cancel := context.WithCancel(t.Context())
	begun, ended := solveInBackground(ctx, t, c, sleeper("cancel"))
	within(t, "the step's output", begun)
	cancel()
	if err := <-ended; err == nil {
		t.Error("a cancelled build ended well")
	}
	deadline := time.Now().Add(10 * time.Second)
	for sleeping(t, d.cmd.Process.Pid) {
		if time.Now().After(deadline) {
			t.Fatal("the step still runs 10 s after its only client has gone")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// sleeping reports whether a process below pid runs sleep.
func sleeping(t *testing.T, pid int) bool {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		data, err := os.ReadFile(p)
		if err != nil || !strings.HasPrefix(string(data), "sleep\x0060") {
			continue
		}
		for at := filepath.Base(filepath.Dir(p)); at != "0" && at != ""; at = parent(at) {
			if at == strconv.Itoa(pid) {
				return true
			}
		}
	}
	return false
}

func parent(pid string) string {
	data, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "PPid:"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// TestDrain sends SIGTERM while a build runs: it ends well, and no other begins.
func TestDrain(t *testing.T) {
	c, d := newClient(t)
	st := llb.Image(shared.registry.Addr+"/busybox:latest").
		Run(llb.Args([]string{"sh", "-c", "echo begun; sleep 2; echo done"}), llb.IgnoreCache).Root()
	begun, ended := solveInBackground(t.Context(), t, c, st)
	within(t, "the step's output", begun)
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if _, err := c.Solve(t.Context(), marshal(t, llb.Scratch()), client.SolveOpt{}, nil); err == nil || !strings.Contains(err.Error(), "no more builds") {
		t.Errorf("a build after SIGTERM: %v, want a refusal", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the build under way: %v", err)
	}
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("the daemon: %v", err)
	}
	d.cmd = nil
}

// TestStopAtOnce sends SIGTERM twice.
func TestStopAtOnce(t *testing.T) {
	c, d := newClient(t)
	begun, ended := solveInBackground(t.Context(), t, c, sleeper("stop"))
	within(t, "the step's output", begun)
	started := time.Now()
	for range 2 {
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
	}
	if err := <-ended; err == nil {
		t.Error("the build ended well")
	}
	d.cmd.Wait()
	if took := time.Since(started); took > 15*time.Second {
		t.Errorf("the daemon took %v to end", took)
	}
	d.cmd = nil
}

// TestSSH lends a step an agent, and another step none.
func TestSSH(t *testing.T) {
	c, _ := newClient(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key, Comment: "kiln test"}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(ring, conn)
		}
	}()
	lent, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{ID: "default", Paths: []string{socket}}})
	if err != nil {
		t.Fatal(err)
	}
	tool := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(tool, "agent"), "./testdata/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	step := llb.Image(shared.registry.Addr+"/busybox:latest").Run(
		llb.Args([]string{"sh", "-c", "/tool/agent > /out/answer"}), llb.AddSSHSocket(llb.SSHSocketTarget("/agent.sock")),
		llb.AddEnv("SSH_AUTH_SOCK", "/agent.sock"), llb.AddMount("/tool", llb.Local("tool"), llb.Readonly),
	)
	out := t.TempDir()
	def := marshal(t, step.AddMount("/out", llb.Scratch()))
	_, err = c.Solve(t.Context(), def, client.SolveOpt{
		Session: []session.Attachable{lent}, LocalMounts: map[string]fsutil.FS{"tool": mount(t, tool)}, Exports: toFolder(out),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(out, "answer")); got != "kiln test\n" {
		t.Errorf("the step saw the keys %q, want kiln test", got)
	}
	def = marshal(t, llb.Image(shared.registry.Addr+"/busybox:latest").Run(llb.Args([]string{"true"}), llb.AddSSHSocket()).Root())
	if _, err := c.Solve(t.Context(), def, client.SolveOpt{}, nil); err == nil || !strings.Contains(err.Error(), "SSH") {
		t.Errorf("without an agent: %v, want an error about SSH", err)
	}
}
