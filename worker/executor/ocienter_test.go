package executor

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
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
			s, end := startShared(t, o, func(s *Spec) { s.Hostname, s.Network = "box", NetworkNone })
			// While the container is being made: that it is not there yet is no failure.
			_, err = enter(t, o, s.ID, "exit 42", nil)
			checkExit(t, err, 42, nil)
			checkEntries(t, o, s.ID)
			if got, err := enter(t, o, s.ID, "ls /sys/class/net", nil); err != nil || got != "lo" {
				t.Errorf("its network: got %q, %v", got, err)
			}
			_, err = enter(t, o, s.ID, "", func(s *Spec) { s.Args = []string{"/no/such"} })
			if err == nil || errors.As(err, new(*ExitError)) || !strings.Contains(strings.ToLower(err.Error()), "no such file") {
				t.Errorf("a program that is not there: %v", err)
			}
			checkEntriesEnd(t, o, s.ID, end, nil)
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
	got := enterTyping(t, o, s.ID, "read x; tty; echo $TERM $x")
	if want := "/dev/pts/0\r\nxterm typed\r\n"; !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want %q at its end", got, want)
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
