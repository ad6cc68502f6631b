package executor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/kiln-build/kiln/worker/proxy"
)

// The containers of OCI runtimes are entered as the native executor's sandboxes are.
func TestOCIEnter(t *testing.T) {
	for _, command := range []string{"runc", "crun"} {
		t.Run(command, func(t *testing.T) {
			o, err := NewOCI(Options{Dir: t.TempDir()}, command)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			s, end := startShared(t, o, func(s *Spec) { s.Hostname = "box" })
			for _, c := range []struct {
				name   string
				change func(*Spec)
				script string
				want   string
			}{
				{"files and processes of the first one", nil, "until [ -p /tmp/go ]; do :; done; cat /file; cat /proc/1/comm; hostname; ls /sys/class/net", "mine\nbusybox\nbox\nlo"},
				{"a user", func(s *Spec) { s.User = "ann:video" }, "id; echo $HOME", "uid=1000(ann) gid=44(video) groups=44(video)\n/home/ann"},
				{"environment and working folder", func(s *Spec) { s.Env, s.Cwd = []string{"A=b"}, "/var" }, "echo $A; pwd", "b\n/var"},
				{"standard input", func(s *Spec) { s.Stdin = strings.NewReader("in") }, "cat", "in"},
				{"root's capabilities, and a filter", nil, "grep -E 'CapEff|Seccomp:' /proc/self/status", "CapEff:\t00000000a80425fb\nSeccomp:\t2"},
				{"nothing of the runtime's is open", nil, "ls /proc/self/fd | tr '\\n' ' '", "0 1 2 3"},
			} {
				got, err := enter(t, o, s.ID, c.script, c.change)
				if err != nil || got != c.want {
					t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
				}
			}
			_, err = enter(t, o, s.ID, "exit 42", nil)
			checkExit(t, err, 42, nil)
			_, err = enter(t, o, s.ID, "", func(s *Spec) { s.Args = []string{"/no/such"} })
			if err == nil || errors.As(err, new(*ExitError)) || !strings.Contains(strings.ToLower(err.Error()), "no such file") {
				t.Errorf("a program that is not there: %v", err)
			}
			signals := make(chan os.Signal, 1)
			ready := writerFunc(func(b []byte) (int, error) { signals <- syscall.SIGINT; return len(b), nil })
			_, err = enter(t, o, s.ID, "trap 'exit 111' INT; echo ready; while :; do sleep 0.05; done", func(s *Spec) { s.Signals, s.Stdout = signals, ready })
			checkExit(t, err, 111, nil)

			ctx, cancel := context.WithCancel(context.Background())
			started := writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil })
			err = o.Enter(ctx, s.ID, Spec{ID: "x", Args: []string{"/bin/busybox", "sh", "-c", "echo; sleep 100"}, Stdout: started})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
			if got, err := enter(t, o, s.ID, "echo still here", nil); err != nil || got != "still here" {
				t.Errorf("afterwards: %q, %v", got, err)
			}

			// The first process takes the others with it.
			killed, begun := make(chan error, 1), make(chan struct{})
			go func() {
				_, err := enter(t, o, s.ID, "echo; sleep 100", func(s *Spec) {
					s.Stdout = writerFunc(func(b []byte) (int, error) { close(begun); return len(b), nil })
				})
				killed <- err
			}()
			<-begun
			if err := end(); !errors.Is(err, context.Canceled) {
				t.Errorf("the first process ended with %v", err)
			}
			checkExit(t, <-killed, 128+9, nil)
			if _, err := enter(t, o, s.ID, "true", nil); !errors.Is(err, ErrNoSandbox) {
				t.Errorf("entering what has ended: %v", err)
			}
			checkNothingLeft(t)
		})
	}
}

func TestOCIEnterWithTerminal(t *testing.T) {
	o, err := NewOCI(Options{Dir: t.TempDir()}, "crun")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	s, end := startShared(t, o, nil)
	defer end()
	in, out := io.Pipe()
	var got bytes.Buffer
	resize, done := make(chan WindowSize, 1), make(chan error, 1)
	resize <- WindowSize{Rows: 40, Cols: 80}
	go func() {
		done <- o.Enter(context.Background(), s.ID, Spec{
			ID: "tty", Args: []string{"/bin/busybox", "sh", "-c", "read x; tty; echo $TERM $x"},
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
	if want := "/dev/pts/0\r\nxterm typed\r\n"; !strings.HasSuffix(got.String(), want) {
		t.Errorf("got %q, want %q at its end", got.String(), want)
	}
}

// A process that enters a container of the proxy network has no other network.
func TestOCIEnterProxy(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "served") }))
	defer server.Close()
	port := server.URL[strings.LastIndexByte(server.URL, ':')+1:]
	for _, command := range []string{"runc", "crun"} {
		t.Run(command, func(t *testing.T) {
			o, err := NewOCI(Options{Dir: t.TempDir()}, command)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			var done func() proxy.Record
			s, end := startShared(t, o, func(s *Spec) { done = behind(t, s, nil) })
			got, err := enter(t, o, s.ID, "ls /sys/class/net; nc -w 2 127.0.0.1 "+port+" </dev/null 2>/dev/null || echo refused; NO_PROXY= no_proxy= wget -q -O- "+server.URL, nil)
			if err != nil || got != "lo\nrefused\nserved" {
				t.Errorf("got %q, %v", got, err)
			}
			end()
			done()
		})
	}
}
