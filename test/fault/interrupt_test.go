package fault

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kiln-build/kiln/registry/registrytest"
)

// interrupt runs kiln until a line of its standard error matches at, sends it a
// signal, and gives how it ended.
func interrupt(t *testing.T, state string, signal syscall.Signal, at string, args ...string) ended {
	t.Helper()
	cmd := exec.Command(kiln, args...)
	cmd.Env = append(os.Environ(), "KILN_ROOT="+state)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Standard output is a pipe that nobody reads.
	unread, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	cmd.Stdout = stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	watchdog := time.AfterFunc(hang, func() { cmd.Process.Signal(syscall.SIGQUIT) })
	defer watchdog.Stop()
	var text strings.Builder
	var sent time.Time
	pattern, in := regexp.MustCompile("(?m)"+at), bufio.NewReader(stderr)
	for {
		line, err := in.ReadString('\n')
		text.WriteString(line)
		if sent.IsZero() && pattern.MatchString(line) {
			sent = time.Now()
			if err := cmd.Process.Signal(signal); err != nil {
				t.Error(err)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd.Wait()
	if sent.IsZero() {
		t.Errorf("no line of standard error matches %q", at)
	} else {
		t.Logf("ended %v after the signal", time.Since(sent))
	}
	return ended{code: cmd.ProcessState.ExitCode(), stderr: text.String()}
}

// isGoing is "is going\n" as rawjson writes what a step prints.
const isGoing = "aXMgZ29pbmcK"

// TestInterrupt ends kiln by a signal in every part of a build.
func TestInterrupt(t *testing.T) {
	hanging := func(when func(*http.Request) bool, after int64) func(*http.Request, int) registrytest.Fault {
		return func(r *http.Request, _ int) registrytest.Fault {
			return registrytest.Fault{Hang: when(r), After: after}
		}
	}
	for _, tt := range []struct {
		name, dockerfile, at string
		args                 []string // OUT is a folder, HOST the proxy
		fault                func(*http.Request, int) registrytest.Fault
	}{
		{"while a tag is resolved", "FROM %[1]s/busybox\n", `"name":"\[internal\] load metadata`, nil, hanging(isManifest, 10)},
		{"while a layer comes", "FROM %[1]s/busybox\nRUN true\n", `"action|"statuses"|RUN true"`, nil, hanging(isBlob, 1000)},
		{"while a step runs", "FROM %[1]s/busybox\nRUN sleep 1000 & trap '' INT TERM HUP; echo going\nRUN trap '' INT TERM; echo is going; sleep 1000\n", isGoing, nil, nil},
		{"while several steps run", "FROM %[1]s/busybox AS a\nRUN sleep 1000\nFROM %[1]s/busybox AS b\nRUN sleep 1; echo is going; sleep 1000\nFROM scratch\nCOPY --from=a / /\nCOPY --from=b / /\n", isGoing, nil, nil},
		{"while a tarball is made", "FROM %[1]s/busybox\nRUN dd if=/dev/urandom of=/large bs=1M count=48\n", `"id":"exporting layers"`,
			[]string{"-o", "type=oci,dest=OUT/image.tar"}, nil},
		{"while a folder is written", "FROM %[1]s/busybox\nRUN for i in $(seq 3000); do echo $i > /$i; done\n", `"id":"copying files"`,
			[]string{"-o", "type=local,dest=OUT/folder"}, nil},
		{"while nobody reads the output", "FROM %[1]s/busybox\nRUN dd if=/dev/urandom of=/large bs=1M count=2\n", `"id":"(sending|copying|exporting|writing)`,
			[]string{"-o", "type=tar,dest=-"}, nil},
		{"while it pushes", "FROM %[1]s/busybox\nRUN echo pushed > /pushed\n", `"id":"pushing layers"`,
			[]string{"--push", "-t", "HOST/interrupted:1"}, hanging(func(r *http.Request) bool { return r.Method == http.MethodHead || r.Method == http.MethodPost }, 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
				proxy := registrytest.NewProxy(t, registry.Addr)
				state, out := t.TempDir(), t.TempDir()
				dir := dockerfile(t, tt.dockerfile, proxy.Host)
				args := []string{"build", "--progress", "rawjson"}
				for _, a := range tt.args {
					args = append(args, strings.NewReplacer("OUT", out, "HOST", proxy.Host).Replace(a))
				}
				proxy.Break(tt.fault)
				got := interrupt(t, state, signal, tt.at, append(args, dir)...)
				got.failed(t, 130, `(?m)^kiln: interrupted$`)
				clean(t, state)
				if files, err := filepath.Glob(filepath.Join(out, "*")); err != nil || len(files) > 0 && filepath.Base(files[0]) != "folder" {
					t.Errorf("left behind: %v (%v)", files, err)
				}
				proxy.Break(nil)
				small := dockerfile(t, "FROM %s/busybox\nRUN echo next\n", proxy.Host)
				run(t, state, nil, "build", "--push", "-t", proxy.Host+"/interrupted:1", small).worked(t)
			}
		})
	}
}

// TestInterruptWhileWaiting ends a kiln that waits for another's state folder, as
// --daemon=never has it; the other goes on.
func TestInterruptWhileWaiting(t *testing.T) {
	state := t.TempDir()
	dir := dockerfile(t, "FROM %s/busybox\nRUN sleep 1000\n", registry.Addr)
	first := exec.Command(kiln, "build", "--daemon", "never", "--progress", "plain", dir)
	first.Env = append(os.Environ(), "KILN_ROOT="+state)
	first.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := first.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stderr)
	if _, err := lines.ReadString('\n'); err != nil { // it builds
		t.Fatal(err)
	}
	got := interrupt(t, state, syscall.SIGINT, "waiting for process", "build", "--daemon", "never", dir)
	got.failed(t, 130, fmt.Sprintf(`waiting for process %d \(.*kiln build --daemon never --progress plain %s\)`, first.Process.Pid, dir))
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	io.Copy(io.Discard, lines)
	if first.Wait(); first.ProcessState.ExitCode() != 130 {
		t.Errorf("the build that had the folder: %v, want exit code 130", first.ProcessState)
	}
	clean(t, state)
}
