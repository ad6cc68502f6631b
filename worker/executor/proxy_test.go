package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/worker/proxy"
)

// behind puts a spec behind a proxy, and gives what is to be called when it has run.
func behind(t *testing.T, s *Spec, rules proxy.Rules) (done func() proxy.Record) {
	t.Helper()
	a, err := proxy.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(a, rules)
	if err != nil {
		t.Fatal(err)
	}
	s.Network = NetworkDefault
	s.Proxy = &Proxy{Serve: p.Serve, Certificate: a.PEM()}
	return func() proxy.Record {
		p.Close()
		return p.Record()
	}
}

// A process behind a proxy reaches others by it, and nobody else.
func TestProxy(t *testing.T) {
	hits := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits++
		io.WriteString(w, "served "+r.URL.Path)
	}))
	defer server.Close()
	unset := "unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy NO_PROXY no_proxy; "
	port := server.URL[strings.LastIndexByte(server.URL, ':')+1:]

	for _, c := range []struct {
		name, script, want string
		hits               int
	}{
		{"by the proxy", "NO_PROXY= no_proxy= wget -q -O- " + server.URL + "/a", "served /a", 1},
		{"past it", unset + "nc -w 2 127.0.0.1 " + port + " </dev/null 2>/dev/null || echo refused", "refused\n", 0},
		{"another network", "ls /sys/class/net; wc -l < /proc/net/route", "lo\n1\n", 0},
		{"the environment", "env | grep -i _proxy | sort | head -n2", "ALL_PROXY=http://127.0.0.1:61080\nHTTPS_PROXY=http://127.0.0.1:61080\n", 0},
		{"a request that is for no proxy", "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 61080 | head -n1", "HTTP/1.0 400 Bad Request\r\n", 0},
		{"a tunnel that carries no TLS", "printf 'CONNECT 127.0.0.1:" + port + " HTTP/1.1\\r\\n\\r\\nGET / HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 61080 | grep -c served", "0\n", 0},
	} {
		for name, e := range executors(t) {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				hits = 0
				s := shell(t, c.script)
				s.Env = []string{"HTTP_PROXY=http://elsewhere.invalid"}
				done := behind(t, &s, nil)
				got, _ := output(t, e, s)
				done()
				if got != c.want || hits != c.hits {
					t.Errorf("got %q and %d hits, want %q and %d", got, hits, c.want, c.hits)
				}
			})
		}
	}
}

// executors are kiln's own, and one that calls an OCI runtime.
func executors(t *testing.T) map[string]Executor {
	t.Helper()
	o, err := NewOCI(Options{Dir: t.TempDir()}, "crun")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return map[string]Executor{"native": newNative(t), "crun": o}
}

// hostFolder is where an executor keeps its files.
func hostFolder(e Executor) string {
	if o, ok := e.(*OCI); ok {
		return o.n.dir
	}
	return e.(*Native).dir
}

// A request for a host that there is not ends at the proxy, and is known to have failed.
func TestProxyMissed(t *testing.T) {
	s := shell(t, "wget -S -O- https://no-such-host.invalid/ 2>&1 | grep -m1 HTTP/")
	done := behind(t, &s, nil)
	out, _ := output(t, newNative(t), s)
	r := done()
	if !strings.Contains(out, "HTTP/1.1 502 Bad Gateway") {
		t.Errorf("wget says %q", out)
	}
	want := proxy.Missed{Method: "GET", URL: "https://no-such-host.invalid/", Reason: "upstream_error"}
	if len(r.Missed) != 1 || r.Missed[0] != want {
		t.Errorf("missed %v", r.Missed)
	}
}

// What a process that is behind a proxy finds, and leaves, in lists of authorities.
func TestProxyTrust(t *testing.T) {
	const list, real = "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/list.pem"
	image := files(t, map[string]string{list[1:]: "own\n", "etc/ssl/cert.pem": "->certs/ca-certificates.crt", "etc/ssl/loop": "->loop"})
	moved := files(t, map[string]string{real[1:]: "own\n", list[1:]: "->" + real})
	hostile := files(t, map[string]string{"etc/ssl/certs": "->/proc/1/root/etc", "etc/pki/tls/certs/ca-bundle.crt/": ""})
	const marked = "grep -c 'proxy CA' "
	for _, c := range []struct {
		name, lower, script, out, upper, err string
		change                               func(*Spec)
	}{
		{name: "untouched", lower: image, script: marked + list, out: "2\n"},
		{name: "behind a link", lower: moved, script: marked + list, out: "2\n"},
		{name: "added to", lower: image, script: "echo more >> " + list, upper: "etc/\netc/ssl/\netc/ssl/certs/\netc/ssl/certs/ca-certificates.crt=own\nmore\n"},
		{name: "made anew", lower: image, script: "echo new > /x; mv /x " + list, upper: "etc/\netc/ssl/\netc/ssl/certs/\netc/ssl/certs/ca-certificates.crt=new\n"},
		{name: "removed", lower: image, script: "rm " + list, upper: "etc/\netc/ssl/\netc/ssl/certs/\netc/ssl/certs/ca-certificates.crt whiteout"},
		{name: "given another name", lower: image, script: "ln " + list + " /x", upper: "etc/\netc/ssl/\netc/ssl/certs/\netc/ssl/certs/ca-certificates.crt=own\n\nx=own\n"},
		{name: "made another kind", lower: image, script: "rm " + list + "; mkfifo " + list + "; echo no > /dev/null", upper: "etc/\netc/ssl/\netc/ssl/certs/\netc/ssl/certs/ca-certificates.crt"},
		{name: "made a link out of the root", lower: image, script: "rm -rf /etc/ssl/certs; ln -s ../../../../../../../etc /etc/ssl/certs", upper: "etc/\netc/ssl/\netc/ssl/certs"},
		{name: "too large", lower: image, script: "dd if=/dev/zero bs=1048576 count=11 >> " + list + " 2>/dev/null", err: "failed to clean up proxy CA: " + list + ": it exceeds 10485760 bytes"},
		{name: "too large, and failed", lower: image, script: "dd if=/dev/zero bs=1048576 count=11 >> " + list + " 2>/dev/null; exit 42", err: "process ended with exit code 42; failed to clean up proxy CA: " + list + ": it exceeds 10485760 bytes"},
		{name: "a read-only root", lower: image, script: marked + list, out: "2\n", change: func(s *Spec) { s.Root.Upper, s.Root.Work = "", "" }},
		{name: "no list", lower: hostile, script: "ls -d /etc/pki/tls/certs/*", out: "/etc/pki/tls/certs/ca-bundle.crt\n"},
	} {
		for name, e := range executors(t) {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				s := onLayers(t, []string{busybox, c.lower}, "/bin/busybox", "sh", "-c", c.script)
				if c.change != nil {
					c.change(&s)
				}
				done := behind(t, &s, nil)
				out, err := output(t, e, s)
				done()
				if out != c.out {
					t.Errorf("printed %q, want %q", out, c.out)
				}
				if got := fmt.Sprint(err); got != c.err && (err != nil || c.err != "") {
					t.Errorf("ended with %v, want %q", err, c.err)
				}
				if left, err := filepath.Glob(hostFolder(e) + "/names/authorities-*"); err != nil || len(left) > 0 {
					t.Errorf("left on the host: %q, %v", left, err)
				}
				if c.err != "" || s.Root.Upper == "" {
					return
				}
				if got := tree(t, s.Root.Upper); got != c.upper {
					t.Errorf("left %q, want %q", got, c.upper)
				}
			})
		}
	}
}

// The host's own files are no list of a root, wherever a root's links seem to lead.
func TestProxyTrustStaysInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(outside, []byte("host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := files(t, map[string]string{"etc/ssl/certs/ca-certificates.crt": "->" + strings.Repeat("../", 20) + outside[1:]})
	s := onLayers(t, []string{busybox, image}, "/bin/busybox", "true")
	done := behind(t, &s, nil)
	_, err := output(t, newNative(t), s)
	done()
	if got, _ := os.ReadFile(outside); err != nil || string(got) != "host\n" {
		t.Errorf("the host's file holds %q; %v", got, err)
	}
}

// A process that enters is behind the same proxy.
func TestProxyEnter(t *testing.T) {
	n := newNative(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "served") }))
	defer server.Close()
	var done func() proxy.Record
	s, end := startShared(t, n, func(s *Spec) { done = behind(t, s, nil) })
	got, err := enter(t, n, s.ID, "NO_PROXY= no_proxy= wget -q -O- "+server.URL, func(s *Spec) { s.Env = []string{"http_proxy=http://elsewhere.invalid"} })
	if err != nil || got != "served" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := end(); !errors.Is(err, context.Canceled) {
		t.Errorf("the first process ended with %v", err)
	}
	done()
}
