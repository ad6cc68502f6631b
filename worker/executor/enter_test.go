package executor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// startShared runs a process that others may enter, until the test ends or end is called.
func startShared(t *testing.T, n Executor, change func(*Spec)) (s Spec, end func() error) {
	t.Helper()
	s = shell(t, "echo mine > /file; mkdir -p /var/x; mkfifo /tmp/go; read x < /tmp/go; exit 5")
	s.Shared = true
	if change != nil {
		change(&s)
	}
	started, ended := make(chan struct{}), make(chan error, 1)
	s.Started = func(int) { close(started) }
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- n.Run(ctx, s) }()
	end = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { end() })
	select {
	case <-started:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	return s, end
}

// enter runs a script in a sandbox and gives its output.
func enter(t *testing.T, n Enterer, id, script string, change func(*Spec)) (string, error) {
	t.Helper()
	var out bytes.Buffer
	s := Spec{ID: id + "-more", Args: []string{"/bin/busybox", "sh", "-c", script}, Stdout: &out, Stderr: &out}
	if change != nil {
		change(&s)
	}
	err := n.Enter(context.Background(), id, s)
	return strings.TrimSpace(out.String()), err
}

// entries are what those who enter a sandbox find, whatever made it.
var entries = []struct {
	name   string
	change func(*Spec)
	script string
	want   string
}{
	{"files of the first process", nil, "until [ -p /tmp/go ]; do :; done; cat /file", "mine"},
	{"its processes", nil, "cat /proc/1/comm; [ $$ -gt 1 ] && echo other", "busybox\nother"},
	{"its host name", nil, "hostname", "box"},
	{"a user", func(s *Spec) { s.User = "ann:video" }, "id; echo $HOME", "uid=1000(ann) gid=44(video) groups=44(video)\n/home/ann"},
	{"environment and working folder", func(s *Spec) { s.Env, s.Cwd = []string{"A=b"}, "/var" }, "echo $A; pwd", "b\n/var"},
	{"a program by its name", func(s *Spec) { s.Args = []string{"busybox", "echo", "found"} }, "", "found"},
	{"standard input", func(s *Spec) { s.Stdin = strings.NewReader("in") }, "cat", "in"},
	{"root's capabilities", nil, "grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb"},
	{"a filter", nil, "grep Seccomp: /proc/self/status", "Seccomp:\t2"},
	{"nothing of the builder's is open", nil, "ls /proc/self/fd | tr '\\n' ' '", "0 1 2 3"},
}

// checkEntries has the sandbox of a first process called "box" entered.
func checkEntries(t *testing.T, n Enterer, id string) {
	t.Helper()
	for _, c := range entries {
		got, err := enter(t, n, id, c.script, c.change)
		if err != nil || got != c.want {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

// checkEntriesEnd sees how those end who have entered a sandbox, and ends it. killed is
// the signal that the executor names where a process was killed.
func checkEntriesEnd(t *testing.T, n Enterer, id string, end func() error, killed os.Signal) {
	t.Helper()
	_, err := enter(t, n, id, "exit 42", nil)
	checkExit(t, err, 42, nil)

	signals := make(chan os.Signal, 1)
	ready := writerFunc(func(b []byte) (int, error) { signals <- syscall.SIGINT; return len(b), nil })
	_, err = enter(t, n, id, "trap 'exit 111' INT; echo ready; while :; do sleep 0.05; done", func(s *Spec) { s.Signals, s.Stdout = signals, ready })
	checkExit(t, err, 111, nil)

	ctx, cancel := context.WithCancel(context.Background())
	begun := writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil })
	err = n.Enter(ctx, id, Spec{ID: "x", Args: []string{"busybox", "sh", "-c", "echo; sleep 100"}, Stdout: begun})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if got, err := enter(t, n, id, "echo still here", nil); err != nil || got != "still here" {
		t.Errorf("after another one was cancelled: %q, %v", got, err)
	}

	// The first process takes the others with it.
	ended, started, running := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() {
		_, err := enter(t, n, id, "echo; sleep 100", func(s *Spec) {
			s.Started = func(int) { close(started) }
			s.Stdout = writerFunc(func(b []byte) (int, error) { close(running); return len(b), nil })
		})
		ended <- err
	}()
	<-started
	<-running
	if err := end(); !errors.Is(err, context.Canceled) {
		t.Errorf("the first process ended with %v", err)
	}
	checkExit(t, <-ended, 128+9, killed)
	if _, err := enter(t, n, id, "true", nil); !errors.Is(err, ErrNoSandbox) {
		t.Errorf("entering what has ended: %v", err)
	}
	checkNothingLeft(t)
}

func TestEnter(t *testing.T) {
	n := newNative(t)
	s, _ := startShared(t, n, func(s *Spec) { s.Hostname = "box" })
	checkEntries(t, n, s.ID)
	for _, c := range []struct {
		name   string
		first  func(*Spec)
		change func(*Spec)
		script string
		want   string
	}{
		{"its network", func(s *Spec) { s.Network = NetworkNone }, nil, "ls /sys/class/net; ip -o addr | head -n1 | awk '{print $4}'", "lo\n127.0.0.1/8"},
		{"its cgroup", nil, nil, "[ \"$(cat /proc/1/cgroup)\" = \"$(cat /proc/self/cgroup)\" ] && echo same", "same"},
		{"no standard input", nil, nil, "cat; ls -l /proc/self/fd/0 | sed 's/.* //'", "/dev/null"},
		{"no filter for the privileged", nil, func(s *Spec) { s.Insecure = true }, "grep Seccomp: /proc/self/status", "Seccomp:\t0"},
		{"no file of kiln's", nil, nil, "ls -l /proc/self/exe | sed 's/.* //'", "/bin/busybox"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := startShared(t, n, c.first)
			got, err := enter(t, n, s.ID, c.script, c.change)
			if err != nil || got != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestEnterEnds(t *testing.T) {
	n := newNative(t)
	s, end := startShared(t, n, nil)
	_, err := enter(t, n, s.ID, "", func(s *Spec) { s.Args = []string{"/no/such"} })
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is not there: %v", err)
	}
	if _, err := enter(t, n, s.ID, "true", func(s *Spec) { s.Cwd = "/no/such" }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a working folder that is not there: %v", err)
	}
	checkEntriesEnd(t, n, s.ID, end, unix.SIGKILL)
}

// enterTyping runs a script in a sandbox, with a terminal in which "typed" is typed, and
// gives what is seen there.
func enterTyping(t *testing.T, n Enterer, id, script string) string {
	t.Helper()
	resize := make(chan WindowSize, 1)
	resize <- WindowSize{Rows: 40, Cols: 80}
	in, out := io.Pipe()
	var got bytes.Buffer
	done := make(chan error, 1)
	go func() {
		done <- n.Enter(context.Background(), id, Spec{
			ID: "tty", Args: []string{"busybox", "sh", "-c", script},
			Stdin: in, Stdout: &got, Terminal: &Terminal{Resize: resize},
		})
	}()
	for len(resize) > 0 {
		runtime.Gosched()
	}
	io.WriteString(out, "typed\n")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return got.String()
}

func TestEnterWithTerminal(t *testing.T) {
	n := newNative(t)
	s, _ := startShared(t, n, nil)
	got := enterTyping(t, n, s.ID, "read x; tty; stty size; echo $TERM $x")
	if want := "typed\r\n/dev/pts/0\r\n40 80\r\nxterm typed\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What is entered shows its first process's links and mounts, not the host's.
func TestEnterStaysInside(t *testing.T) {
	n := newNative(t)
	host := files(t, map[string]string{"passwd": "mallory:x:0:0::/:/bin/sh\n"})
	s, _ := startShared(t, n, func(s *Spec) {
		s.Args = []string{"/bin/busybox", "sh", "-c", "rm /etc/passwd; ln -s " + host + "/passwd /etc/passwd; rm /dev/null; ln -s " + host + "/passwd /dev/null; echo > /tmp/done; sleep 100"}
	})
	if _, err := enter(t, n, s.ID, "until [ -e /tmp/done ]; do :; done", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := enter(t, n, s.ID, "true", func(s *Spec) { s.User = "mallory" }); err == nil {
		t.Error("a user of the host's file was found")
	}
	if got, err := enter(t, n, s.ID, "cat <&0", nil); err != nil || got != "" {
		t.Errorf("standard input is %q, %v; want the null device", got, err)
	}
}

func TestView(t *testing.T) {
	n := newNative(t)
	lower := files(t, map[string]string{"a": "lower", "dir/b": "below", "gone": "x"})
	s, _ := startShared(t, n, func(s *Spec) {
		s.Root.Lower = append([]string{lower}, s.Root.Lower...)
		s.Args = []string{"/bin/busybox", "sh", "-c", "rm /gone; echo changed > /a; echo > /tmp/done; sleep 100"}
	})
	if _, err := enter(t, n, s.ID, "until [ -e /tmp/done ]; do :; done", nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		mount Mount
		file  string
		want  string // "" is no such file
	}{
		{"what the process wrote", Mount{Overlay: &s.Root}, "a", "changed\n"},
		{"what lies below", Mount{Overlay: &s.Root}, "dir/b", "below"},
		{"what the process removed", Mount{Overlay: &s.Root}, "gone", ""},
		{"a part", Mount{Overlay: &s.Root, Selector: "/dir"}, "b", "below"},
		{"a folder", Mount{Source: lower}, "gone", "x"},
		{"a part of a folder", Mount{Source: lower, Selector: "dir"}, "b", "below"},
		{"one layer", Mount{Overlay: &Overlay{Lower: []string{lower}}}, "a", "lower"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := n.View(c.mount)
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			data, err := os.ReadFile(filepath.Join("/proc/self/fd", strconv.Itoa(int(v.Fd())), c.file))
			if string(data) != c.want || (err != nil) != (c.want == "") {
				t.Errorf("got %q, %v; want %q", data, err, c.want)
			}
		})
	}
	if _, err := n.View(Mount{Dest: "/t", Tmpfs: &Tmpfs{}}); err == nil {
		t.Error("a view of a tmpfs")
	}
}
