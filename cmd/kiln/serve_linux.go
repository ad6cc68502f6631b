package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon"
)

// serveOptions are the flags of `kiln serve` as they were written.
type serveOptions struct {
	root, config string
	addrs        []string
	debug        bool
	insecure     bool
	ca           string
	cert, key    string
	allow        []string
	stderr       io.Writer
}

func newServeCommand() *cli.Command {
	var o serveOptions
	return &cli.Command{
		Name:  "serve",
		Usage: "build for BuildKit's clients: buildctl, docker buildx",
		Description: "Serves BuildKit's API on every --addr. SIGTERM and Ctrl-C let the builds under way end and take no more; a second\n" +
			"one stops at once.\n\n" + exitHelp,
		Flags: append(stateFlags(&o.root, &o.config),
			listFlag("addr", "address to serve, unix:///PATH or tcp://HOST:PORT; may be repeated (default: kiln.sock in the run folder)"),
			&cli.BoolFlag{Name: "debug", Usage: "print calls that fail", Destination: &o.debug},
			&cli.StringFlag{Name: "tlscacert", Usage: "certificate authority that clients' certificates are checked with", Destination: &o.ca},
			&cli.StringFlag{Name: "tlscert", Usage: "certificate of tcp addresses", Destination: &o.cert},
			&cli.StringFlag{Name: "tlskey", Usage: "key of the certificate", Destination: &o.key},
			&cli.BoolFlag{Name: "allow-tcp-without-tls", Usage: "serve tcp addresses that others can reach without TLS: whoever reaches them rules this machine", Destination: &o.insecure},
			listFlag("allow-insecure-entitlement", "entitlement that builds may ask for: network.host, security.insecure or device"),
		),
		Action: func(c *cli.Context) error {
			o.stderr = c.App.ErrWriter
			o.addrs, o.allow = c.StringSlice("addr"), c.StringSlice("allow-insecure-entitlement")
			if c.NArg() > 0 {
				return usagef("kiln serve takes no arguments")
			}
			return runServe(c.Context, o)
		},
	}
}

// runServe serves until ctx ends, and then until the builds under way have.
func runServe(ctx context.Context, o serveOptions) error {
	if len(o.addrs) == 0 {
		o.addrs = []string{"unix://" + defaultSocket()}
	}
	if !slices.Contains(o.addrs, stateOnly) {
		o.addrs = append(o.addrs, stateOnly)
	}
	creds, err := o.tls()
	if err != nil {
		return err
	}
	engine, err := openEngine(ctx, o.root, o.config, o.stderr)
	if err != nil {
		return err
	}
	defer closeEngine(engine, o.stderr)
	d := daemon.Options{Version: version, Entitlements: append(o.allow, engine.Config().Entitlements...)}
	if o.debug {
		d.Log = func(method string, err error) { fmt.Fprintf(o.stderr, "kiln: %s: %v\n", method, err) }
	}
	server, err := daemon.New(engine, d)
	if err != nil {
		return err
	}
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	var group errgroup.Group
	var servers []*grpc.Server
	for _, addr := range o.addrs {
		l, err := o.listen(ctx, addr, engine, creds != nil)
		if err != nil {
			return fmt.Errorf("serving %s: %w", addr, err)
		}
		listeners = append(listeners, l)
		own := creds
		if l.Addr().Network() == "unix" {
			own = daemon.PeerCredentials()
		}
		servers = append(servers, server.GRPC(own))
	}
	for i, g := range servers {
		group.Go(func() error { return g.Serve(listeners[i]) })
		if o.addrs[i] != stateOnly {
			fmt.Fprintf(o.stderr, "kiln: serving %s\n", o.addrs[i])
		}
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		server.Drain()
		for _, g := range servers {
			stopSoon(g)
		}
	}()
	err = group.Wait()
	if ctx.Err() != nil {
		<-stopped
		return nil
	}
	return err
}

// lastAnswers is how long clients have to take their answers, and to hang up, when
// no build is left.
const lastAnswers = 3 * time.Second

func stopSoon(g *grpc.Server) {
	timer := time.AfterFunc(lastAnswers, g.Stop)
	defer timer.Stop()
	g.GracefulStop()
}

// defaultSocket is where kiln serves if nothing else is said: below /run for root,
// else in the user's own run folder.
func defaultSocket() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && os.Geteuid() != 0 {
		return filepath.Join(dir, "kiln", "kiln.sock")
	}
	return "/run/kiln/kiln.sock"
}

// stateOnly is the address of the socket in the state folder, where `kiln build`
// finds the daemon. It is served besides all others.
const stateOnly = "state:"

// listen opens an address.
func (o *serveOptions) listen(ctx context.Context, addr string, e *kiln.Engine, secure bool) (net.Listener, error) {
	if addr == stateOnly {
		return listenState(ctx, e.Path())
	}
	scheme, rest, _ := strings.Cut(addr, "://")
	switch scheme {
	case "unix":
		return listenUnix(ctx, rest)
	case "tcp":
		if !secure && !o.insecure && !isLoopback(rest) {
			return nil, usagef("others can reach it, and without TLS whoever does rules this machine: give --tlscacert, --tlscert and --tlskey, or say --allow-tcp-without-tls")
		}
		var lc net.ListenConfig
		return lc.Listen(ctx, "tcp", rest)
	}
	return nil, usagef("addresses are unix:///PATH and tcp://HOST:PORT")
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

// tls gives what tcp addresses are served with; nil is no TLS. Clients have to show
// a certificate: whoever can build here can do as this process can.
func (o *serveOptions) tls() (credentials.TransportCredentials, error) {
	if o.ca == "" && o.cert == "" && o.key == "" {
		return nil, nil
	}
	if o.ca == "" || o.cert == "" || o.key == "" {
		return nil, usagef("--tlscacert, --tlscert and --tlskey go together")
	}
	pair, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	data, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate", o.ca)
	}
	return credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	}), nil
}
