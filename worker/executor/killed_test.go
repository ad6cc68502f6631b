package executor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// runDoomed runs steps in a process that a test is going to kill.
func runDoomed(dir string) {
	n, err := New(Options{Dir: filepath.Join(dir, "executor")})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := range 3 {
		o := Overlay{Lower: []string{busybox}, Upper: filepath.Join(dir, fmt.Sprint("u", i)), Work: filepath.Join(dir, fmt.Sprint("w", i))}
		for _, d := range []string{o.Upper, o.Work} {
			if err := os.Mkdir(d, 0o755); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
		user := []string{"", "ann", "1000:1000"}[i]
		go n.Run(context.Background(), Spec{Root: o, User: user, Network: NetworkNone, Stdout: os.Stdout,
			Args: []string{"/bin/busybox", "sh", "-c", "sleep 54321 & echo up; sleep 54321"}})
	}
	select {}
}

// A kiln that is killed takes its steps with it, whoever they run as; what is
// left of their cgroups goes when the next one starts.
func TestKilledKiln(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		dir := t.TempDir()
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "KILN_EXECUTOR_DOOMED="+dir, "KILN_EXECUTOR_BUSYBOX="+busybox)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // all of them run; else at any moment
			var seen string
			for buf := make([]byte, 64); strings.Count(seen, "up") < 3; {
				n, err := out.Read(buf)
				if err != nil {
					t.Fatalf("%v after %q", err, seen)
				}
				seen += string(buf[:n])
			}
		} else {
			time.Sleep(time.Duration(i*20) * time.Millisecond)
		}
		pid := cmd.Process.Pid
		cmd.Process.Kill()
		cmd.Wait()
		// The kernel kills the steps at once; they need a moment to go.
		for deadline := time.Now().Add(5 * time.Second); running("sleep\x0054321") && time.Now().Before(deadline); {
			time.Sleep(5 * time.Millisecond)
		}
		if running("sleep\x0054321") {
			t.Error("steps are still running")
		}
		newNative(t)
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/kiln/*")
		for _, g := range groups {
			if strings.Contains(g, fmt.Sprintf(".%d.", pid)) {
				t.Errorf("cgroup %s is left", g)
			}
		}
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		if strings.Contains(string(mounts), dir) {
			t.Errorf("mounts are left:\n%s", mounts)
		}
	}
	checkNothingLeft(t)
}

func running(cmdline string) bool {
	list, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, c := range list {
		if b, _ := os.ReadFile(c); strings.Contains(string(b), cmdline) {
			return true
		}
	}
	return false
}
