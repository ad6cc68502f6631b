package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"golang.org/x/sys/unix"
)

// authority is a certificate authority of a test's, with a folder of its files.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir(), next: 2}
	a.cert, a.key = a.issue("ca", &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// path gives the path of one of the authority's files.
func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// issue makes a certificate, name.pem, and its key, name.key.
func (a *authority) issue(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.Subject = pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if c.SerialNumber == nil {
		c.SerialNumber = big.NewInt(a.next)
		a.next++
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	bytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: bytes},
	} {
		if err := os.WriteFile(a.path(file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return made, key
}

// server and client make certificates of those kinds, for this machine.
func (a *authority) server(name string) {
	a.issue(name, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
}

func (a *authority) client(name string) {
	a.issue(name, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

// freePort gives a port that nobody listens at.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// output runs a program and gives what it wrote.
func output(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "KILN_ROOT="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestTLS serves a port to those who have a certificate of the authority's, and to
// nobody else.
func TestTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	ours.server("server")
	ours.client("client")
	others.client("client")
	addr := "tcp://127.0.0.1:" + freePort(t)
	newClient(t, "--addr", addr, "--tlscacert", ours.path("ca.pem"), "--tlscert", ours.path("server.pem"), "--tlskey", ours.path("server.key"))

	kiln, buildctl := filepath.Join(shared.bin, "kiln"), filepath.Join(shared.peers, "buildctl")
	src := folder(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY f /\n", "f": "by tls"})
	auth := func(ca, by *authority) []string {
		return []string{"--tlscacert", ca.path("ca.pem"), "--tlscert", by.path("client.pem"), "--tlskey", by.path("client.key")}
	}
	// A client of another language's would do as these do: buildctl takes its flags
	// before the command, kiln behind it.
	asBuildctl := func(flags ...string) (string, error) {
		return output(t, buildctl, append(append([]string{"--addr", addr}, flags...), "du")...)
	}
	asKiln := func(flags ...string) (string, error) {
		return output(t, kiln, append(append([]string{"build", "--addr", addr}, flags...), "-o", t.TempDir(), src)...)
	}
	for _, row := range []struct {
		name  string
		flags []string
		fine  bool
	}{
		{"a certificate of the authority's", auth(ours, ours), true},
		{"no TLS", nil, false},
		{"no certificate", []string{"--tlscacert", ours.path("ca.pem")}, false},
		{"a certificate of another authority's", auth(ours, others), false},
		{"a server of another authority's", auth(others, ours), false},
	} {
		for name, as := range map[string]func(...string) (string, error){"buildctl": asBuildctl, "kiln": asKiln} {
			if out, err := as(row.flags...); (err == nil) != row.fine {
				t.Errorf("%s, %s: %v, want it served: %v\n%s", name, row.name, err, row.fine, out)
			}
		}
	}
}

// TestWhoReaches has addresses refused that more than the owner would reach.
func TestWhoReaches(t *testing.T) {
	kiln := filepath.Join(shared.bin, "kiln")
	ours := newAuthority(t)
	ours.server("server")
	for _, row := range []struct{ flags, want string }{
		{"--addr tcp://0.0.0.0:0", "without TLS whoever does rules this machine"},
		{"--addr tcp://192.0.2.1:1234", "without TLS whoever does rules this machine"},
		{"--addr tcp://[::]:0", "without TLS whoever does rules this machine"},
		{"--addr tcp://127.0.0.1:0 --tlscert " + ours.path("server.pem"), "go together"},
		{"--addr http://127.0.0.1:0", "addresses are"},
		{"--addr fd://", "no sockets were handed over"},
	} {
		args := append([]string{"serve", "--root", t.TempDir()}, strings.Fields(row.flags)...)
		out, err := output(t, kiln, args...)
		if err == nil || !strings.Contains(out, row.want) {
			t.Errorf("kiln serve %s: %v, %q; want %q", row.flags, err, out, row.want)
		}
	}
	_, d := newClient(t)
	for _, path := range []string{filepath.Join(d.dir, "kiln.sock"), filepath.Join(d.dir, "root/kiln.sock")} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v, want 0600", path, info.Mode())
		}
	}
}

// TestActivation serves sockets that another process opened, as systemd does, and
// leaves them to it.
func TestActivation(t *testing.T) {
	dir, err := os.MkdirTemp(shared.bin, "state-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "given.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The shell becomes kiln, whose process the variables name.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" serve --root "$1" --idle-timeout 1s`, filepath.Join(shared.bin, "kiln"), filepath.Join(dir, "root"))
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := client.New(ctx, "unix://"+sock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Info(ctx); err != nil {
		t.Errorf("asking through the socket: %v", err)
	}
	c.Close()
	// And with nothing to do it ends, leaving the socket.
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v\n%s", err, said.String())
	}
	if _, err := os.Stat(sock); err != nil {
		t.Errorf("the socket that was handed over: %v", err)
	}
	if !strings.Contains(said.String(), "serving fd://") {
		t.Errorf("got %q", said.String())
	}
}

// TestConfigurationIsRead has a daemon take addresses from its configuration, and
// name what it ignores.
func TestConfigurationIsRead(t *testing.T) {
	dir, err := os.MkdirTemp(shared.bin, "state-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "shared", "here.sock")
	config := filepath.Join(dir, "kiln.toml")
	text := fmt.Sprintf("root = %q\n[grpc]\naddress = [%q]\ngid = 65534\n[worker.oci]\nsnapshotter = \"auto\"\nmax-paralelism = 2\n", filepath.Join(dir, "root"), "unix://"+sock)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := output(t, "env", "-u", "KILN_ROOT", filepath.Join(shared.bin, "kiln"), "serve", "--config", config, "--idle-timeout", "1s")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"serving unix://" + sock, "worker.oci.snapshotter is ignored", "there is no key worker.oci.max-paralelism; did you mean worker.oci.max-parallelism?",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("got %q, want %q in it", out, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "root", "lock")); err != nil {
		t.Errorf("the state folder of the configuration: %v", err)
	}
	// The group gets through the folder that was made for the socket.
	var st unix.Stat_t
	if err := unix.Stat(filepath.Dir(sock), &st); err != nil || st.Mode&0o777 != 0o750 || st.Gid != 65534 {
		t.Errorf("the folder of the socket: mode %o, group %d, %v", st.Mode&0o777, st.Gid, err)
	}
}
