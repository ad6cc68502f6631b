package executor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The OCI runtimes do for a step what the native executor does.
func TestOCI(t *testing.T) {
	for _, command := range []string{"runc", "crun"} {
		t.Run(command, func(t *testing.T) {
			o, err := NewOCI(Options{Dir: t.TempDir()}, command)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			source := files(t, map[string]string{"s": "secret"})

			s := shell(t, "cat; echo; cat /m/n/s; id -un; echo $HOME; hostname; pwd; echo -n x >out; grep Seccomp: /proc/self/status; exit 5")
			s.Mounts = []Mount{{Dest: "/m/n", Source: source, ReadOnly: true}, {Dest: "/t", Tmpfs: &Tmpfs{}}}
			s.StubsRecursive, s.User, s.Cwd, s.Stdin = true, "ann", "/w", strings.NewReader("in")
			out, err := output(t, o, s)
			checkExit(t, err, 5, nil)
			if want := "in\nsecretann\n/home/ann\nbuildkitsandbox\n/w\nSeccomp:\t2\n"; out != want {
				t.Errorf("got %q, want %q", out, want)
			}
			if got := tree(t, s.Root.Upper); got != "w/\nw/out=x" {
				t.Errorf("the upper folder holds %s", got)
			}

			s = shell(t, "true")
			s.Args = []string{"/nosuch"}
			var e *ExitError
			if _, err := output(t, o, s); err == nil || errors.As(err, &e) {
				t.Errorf("a missing program: %v", err)
			}

			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if err := o.Run(ctx, shell(t, "sleep 54321")); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("cancelled: %v", err)
			}
			list, err := exec.Command(command, "--root", o.n.path("oci"), "list", "-q").Output()
			if err != nil || len(list) > 0 {
				t.Errorf("containers are left: %s, %v", list, err)
			}
			checkNothingLeft(t)
		})
	}
}

// A container that is left of a kiln that was killed goes when the next one starts.
func TestOCISweep(t *testing.T) {
	dir := t.TempDir()
	first, err := NewOCI(Options{Dir: dir}, "runc")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	s := shell(t, "echo up; sleep 54321")
	up := make(chan bool, 1)
	s.Stdout = writerFunc(func(b []byte) (int, error) { up <- true; return len(b), nil })
	ended := make(chan error, 1)
	go func() { ended <- first.Run(context.Background(), s) }()
	<-up
	second, err := NewOCI(Options{Dir: dir}, "runc")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	checkExit(t, <-ended, 137, nil)
	checkNothingLeft(t)
}

func TestOCITerminal(t *testing.T) {
	o, err := NewOCI(Options{Dir: t.TempDir()}, "runc")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	s := shell(t, "test -t 0 && echo yes; read x; echo got $x")
	s.Terminal = &Terminal{}
	var out bytes.Buffer
	s.Stdout = &out
	r, w := io.Pipe()
	s.Stdin = r
	go io.WriteString(w, "word\n")
	err = o.Run(context.Background(), s)
	w.Close()
	if got := strings.ReplaceAll(out.String(), "\r", ""); err != nil || !strings.Contains(got, "yes\n") || !strings.Contains(got, "got word\n") {
		t.Errorf("got %q, %v", got, err)
	}
}

// A terminal of a process that could not be started is closed once: its number may
// be another file's by then.
func TestTerminalIsClosedOnce(t *testing.T) {
	s := Spec{Terminal: &Terminal{}}
	std, err := newStdio(&s)
	if err != nil {
		t.Fatal(err)
	}
	r := &ociRun{box: &box{s: &s, io: std}}
	if err := r.connect(&exec.Cmd{SysProcAttr: &syscall.SysProcAttr{}}); err != nil {
		t.Fatal(err)
	}
	tty := std.child[0]
	r.closeKept()
	var others []*os.File
	for range 8 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		others = append(others, f)
	}
	std.close()
	for _, f := range others {
		if _, err := f.Stat(); err != nil {
			t.Errorf("another file was closed: %v", err)
		}
	}
	if _, err := unix.FcntlInt(uintptr(tty), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("the terminal is still open: %v", err)
	}
	for _, f := range append(r.std, r.ptmx) {
		f.Close()
	}
}
