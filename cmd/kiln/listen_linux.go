package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kiln-build/kiln/worker/executor/userns"
)

// Addresses of `kiln serve` besides unix:// and tcp://.
const (
	// stateOnly is the socket in the state folder, where `kiln build` finds the
	// daemon. It is served besides all others.
	stateOnly = "state:"
	// activation are the sockets that systemd hands over.
	activation = "fd://"
)

// defaultSocket is where kiln serves if nothing else is said: below /run for root,
// else in the user's own run folder.
func defaultSocket() string {
	// Root of a user namespace is the user who made it.
	if _, nested := userns.IDs(); nested && os.Getenv("XDG_RUNTIME_DIR") != "" {
		dir := os.Getenv("XDG_RUNTIME_DIR")
		return filepath.Join(dir, "kiln", "kiln.sock")
	}
	return "/run/kiln/kiln.sock"
}

// door opens the addresses of a server.
type door struct {
	root             string // the state folder
	secure, insecure bool   // there is TLS; there may be none
	uid, gid         *int   // whom sockets belong to
}

// open opens all addresses, and the state folder's, or none.
func (d *door) open(ctx context.Context, addrs []string) ([]net.Listener, error) {
	if !slices.Contains(addrs, stateOnly) {
		addrs = append(slices.Clip(addrs), stateOnly)
	}
	var all []net.Listener
	for _, addr := range addrs {
		list, err := d.listen(ctx, addr)
		all = append(all, list...)
		if err != nil {
			closeAll(all)
			return nil, fmt.Errorf("serving %s: %w", addr, err)
		}
	}
	return all, nil
}

func closeAll(list []net.Listener) {
	for _, l := range list {
		l.Close()
	}
}

// listen opens an address.
func (d *door) listen(ctx context.Context, addr string) ([]net.Listener, error) {
	scheme, rest, _ := strings.Cut(addr, "://")
	switch {
	case addr == stateOnly:
		l, err := listenState(ctx, d.root)
		return []net.Listener{l}, err
	case scheme == "unix":
		if err := d.folder(filepath.Dir(rest)); err != nil {
			return nil, err
		}
		l, err := listenUnix(ctx, rest)
		if err != nil {
			return nil, err
		}
		return []net.Listener{l}, d.give(rest, 0o600, 0o660)
	case scheme == "fd" && rest == "":
		return d.inherit()
	case scheme == "tcp":
		if err := d.mayServe(rest); err != nil {
			return nil, err
		}
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", rest)
		if err != nil {
			return nil, err
		}
		return []net.Listener{l}, nil
	}
	return nil, usagef("addresses are unix:///PATH, tcp://HOST:PORT and fd://")
}

// mayServe refuses TCP without TLS where others reach it.
func (d *door) mayServe(hostPort string) error {
	if d.secure || d.insecure || isLoopback(hostPort) {
		return nil
	}
	return usagef("others can reach it, and without TLS whoever does rules this machine: give --tlscacert, --tlscert and --tlskey, or say --allow-tcp-without-tls")
}

// folder makes the folder of a socket that is given to others, who have to get
// through it. One that is there stays as it is.
func (d *door) folder(dir string) error {
	if d.uid == nil && d.gid == nil {
		return nil // listenUnix makes it
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return d.give(dir, 0o700, 0o750)
}

// give makes a socket, or its folder, that of the user and group that the
// configuration names: with mode own, or shared where there is a group, whose members
// may connect, and do as this process can.
func (d *door) give(path string, own, shared os.FileMode) error {
	if d.uid == nil && d.gid == nil {
		return nil
	}
	uid, gid, mode := -1, -1, own
	if d.uid != nil {
		uid = *d.uid
	}
	if d.gid != nil {
		gid, mode = *d.gid, shared
	}
	return errors.Join(os.Lchown(path, uid, gid), os.Chmod(path, mode))
}

// firstActivated is the descriptor of the first socket that systemd hands over.
const firstActivated = 3

// activated says how many sockets systemd handed to this process.
func activated() int {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0
	}
	return n
}

// inherit serves the sockets that systemd handed over, which stay its own.
func (d *door) inherit() ([]net.Listener, error) {
	n := activated()
	if n <= 0 {
		return nil, errors.New("no sockets were handed over (LISTEN_FDS and LISTEN_PID); without root kiln runs as another process than the one that got them, and opens a socket itself")
	}
	var out []net.Listener
	for fd := firstActivated; fd < firstActivated+n; fd++ {
		f := os.NewFile(uintptr(fd), fmt.Sprintf("LISTEN_FD_%d", fd))
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return out, fmt.Errorf("socket %d: %w", fd, err)
		}
		out = append(out, l)
		switch u := l.(type) {
		case *net.UnixListener:
			u.SetUnlinkOnClose(false)
		default:
			if err := d.mayServe(l.Addr().String()); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// isLoopback reports whether only this machine reaches an address. A name may come
// to mean another address, and so is not one, but for localhost.
func isLoopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// tlsFiles are what tcp addresses are served with.
type tlsFiles struct{ ca, cert, key string }

// config reads the files; none is no TLS. Clients have to show a certificate: whoever
// can build here can do as this process can.
func (f tlsFiles) config() (*tls.Config, error) {
	if f == (tlsFiles{}) {
		return nil, nil
	}
	if f.ca == "" || f.cert == "" || f.key == "" {
		return nil, usagef("--tlscacert, --tlscert and --tlskey go together")
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	data, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate", f.ca)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
	}, nil
}

// serveProfiles serves Go's profiles of this process at an address of this machine;
// an empty one serves nothing.
func serveProfiles(ctx context.Context, addr string) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	if !isLoopback(addr) {
		return nil, fmt.Errorf("grpc.debugAddress %s: profiles are for this machine only, 127.0.0.1:6060 for one", addr)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serving profiles: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(l) // ends with Close
	}()
	return func() { s.Close(); <-done }, nil
}
