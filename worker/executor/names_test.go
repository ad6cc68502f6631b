package executor

import (
	"net"
	"os"
	"strings"
	"sync"
	"testing"
)

func TestNames(t *testing.T) {
	read := func(n *names, s *Spec) (string, string) {
		t.Helper()
		resolv, hosts, err := n.files(s)
		if err != nil {
			t.Fatal(err)
		}
		r, err := os.ReadFile(resolv)
		if err != nil {
			t.Fatal(err)
		}
		h, err := os.ReadFile(hosts)
		if err != nil {
			t.Fatal(err)
		}
		return string(r), string(h)
	}
	n := &names{dir: t.TempDir(), nameservers: []string{"10.0.0.1", "10.0.0.2"}, search: []string{"a.test"}, options: []string{"ndots:2"}}
	r, h := read(n, &Spec{ExtraHosts: []HostIP{{"x", net.ParseIP("::2")}}})
	if want := "nameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch a.test\noptions ndots:2\n"; r != want {
		t.Errorf("resolv.conf %q, want %q", r, want)
	}
	if want := "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n::2\tx\n"; h != want {
		t.Errorf("hosts %q, want %q", h, want)
	}
	// Without the host's loopback nothing that listens there is named.
	r, _ = read(&names{dir: t.TempDir()}, &Spec{Network: NetworkNone})
	if strings.Contains(r, "nameserver 127.") || !strings.Contains(r, "nameserver ") {
		t.Errorf("resolv.conf %q", r)
	}
	before, _ := os.ReadDir(n.dir)
	read(n, &Spec{ExtraHosts: []HostIP{{"x", net.ParseIP("::2")}}})
	if after, _ := os.ReadDir(n.dir); len(after) != len(before) {
		t.Error("the same content was written twice")
	}
}

// TestNamesAtOnce checks that a file which somebody may have cloned for a mount is
// not replaced by another one.
func TestNamesAtOnce(t *testing.T) {
	n := &names{dir: t.TempDir()}
	const steps = 16
	files := make([]os.FileInfo, steps)
	var group sync.WaitGroup
	for i := range steps {
		group.Go(func() {
			_, hosts, err := n.files(&Spec{})
			if err == nil {
				files[i], err = os.Stat(hosts)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for i, f := range files {
		if f == nil || !os.SameFile(f, files[0]) {
			t.Errorf("step %d has another hosts file than step 0", i)
		}
	}
}
