package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/containerd/log"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon"
	"github.com/kiln-build/kiln/daemon/gateway"
)

// serveOptions are the flags of `kiln serve` as they were written.
type serveOptions struct {
	root, config string
	addrs        []string
	debug        bool
	insecure     bool
	tls          tlsFiles
	allow        []string
	idle         time.Duration
	stderr       io.Writer
}

func newServeCommand() *cli.Command {
	var o serveOptions
	return &cli.Command{
		Name:  "serve",
		Usage: "build for BuildKit's clients (buildctl, docker buildx), and for kiln build",
		Description: "Serves BuildKit's API on every --addr, and at kiln.sock in the state folder, where `kiln build` finds it. SIGTERM and\n" +
			"Ctrl-C let the builds under way end and take no more; a second one stops at once. Sockets that systemd hands over\n" +
			"are served as fd://.\n\n" + exitHelp,
		Flags: append(stateFlags(&o.root, &o.config),
			listFlag("addr", "address to serve, unix:///PATH, tcp://HOST:PORT or fd://; may be repeated (default: the configuration's grpc.address, systemd's sockets, or kiln.sock in the run folder)"),
			&cli.BoolFlag{Name: "debug", Usage: "print calls that fail", Destination: &o.debug},
			&cli.DurationFlag{Name: "idle-timeout", Usage: "end when there was nothing to do for that long, 10m for one", Destination: &o.idle},
			&cli.StringFlag{Name: "tlscacert", Usage: "certificate authority that clients' certificates are checked with", Destination: &o.tls.ca},
			&cli.StringFlag{Name: "tlscert", Usage: "certificate of tcp addresses", Destination: &o.tls.cert},
			&cli.StringFlag{Name: "tlskey", Usage: "key of the certificate", Destination: &o.tls.key},
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

// runServe serves until ctx ends, or nothing was asked for long, and then until
// the builds under way have ended.
func runServe(ctx context.Context, o serveOptions) error {
	config, err := kiln.LoadConfig(o.config)
	if err != nil {
		return err
	}
	for _, line := range config.Ignored {
		warnf(o.stderr, "the configuration, %s", line)
	}
	if err := config.Cache.Check(); err != nil {
		return fmt.Errorf("the configuration, %w", err) // now, and not when the first client builds
	}
	if err := checkEntitlements("--allow-insecure-entitlement", o.allow); err != nil {
		return err
	}
	if err := checkEntitlements("the configuration, insecure-entitlements:", config.Entitlements); err != nil {
		return err
	}
	o.complete(config)
	secret, err := o.tls.config()
	if err != nil {
		return err
	}
	// The library of filters logs a client's mistakes, once for every record.
	if err := log.SetLevel("fatal"); err != nil {
		return err
	}
	engine, err := openEngine(ctx, o.root, o.config, o.stderr)
	if err != nil {
		return err
	}
	defer closeEngine(engine, o.stderr)
	d := daemon.Options{Version: version, Entitlements: append(o.allow, config.Entitlements...)}
	if !config.CDI.Disabled {
		// Which devices there are is the machine's to say, as with buildkitd.
		d.Entitlements = append(d.Entitlements, "device")
	}
	front := config.Frontends
	d.Frontends = gateway.Limits{NoDockerfile: off(front.Dockerfile), NoImages: off(front.Gateway), Repositories: front.Gateway.AllowedRepositories}
	if o.debug {
		d.Log = func(method string, err error) { fmt.Fprintf(o.stderr, "kiln: %s: %v\n", method, err) }
	}
	server, err := daemon.New(engine, d)
	if err != nil {
		return err
	}
	door := door{root: engine.Path(), secure: secret != nil, insecure: o.insecure, uid: config.GRPC.UID, gid: config.GRPC.GID}
	listeners, err := door.open(ctx, o.addrs)
	if err != nil {
		return err
	}
	stopProfiles, err := serveProfiles(ctx, config.GRPC.DebugAddress)
	if err != nil {
		closeAll(listeners)
		return err
	}
	defer stopProfiles()
	return serve(ctx, server, listeners, secret, o)
}

// off reports whether a frontend is switched off.
func off(c kiln.FrontendConfig) bool { return c.Enabled != nil && !*c.Enabled }

// complete takes from the configuration what no flag says.
func (o *serveOptions) complete(c kiln.Config) {
	o.debug = o.debug || c.Debug || c.Log.Level == "debug" || c.Log.Level == "trace"
	if len(o.addrs) == 0 {
		o.addrs = slices.Clone(c.GRPC.Address)
	}
	if len(o.addrs) == 0 && activated() > 0 {
		o.addrs = []string{activation}
	}
	if len(o.addrs) == 0 {
		o.addrs = []string{"unix://" + defaultSocket()}
	}
	if o.tls == (tlsFiles{}) {
		o.tls = tlsFiles{ca: c.GRPC.TLS.CA, cert: c.GRPC.TLS.Cert, key: c.GRPC.TLS.Key}
	}
}

// errIdle is why a server ends that has nothing to do.
var errIdle = errors.New("there was nothing to do")

// serve serves at the listeners until ctx ends or the server is idle, and lets
// what goes on then end.
func serve(ctx context.Context, server *daemon.Server, listeners []net.Listener, secret *tls.Config, o serveOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group errgroup.Group
	servers := make([]*grpc.Server, len(listeners))
	for i, l := range listeners {
		// TLS is the listener's and not gRPC's, which would turn away clients that do not
		// negotiate a protocol in it: buildx with the remote driver.
		if secret != nil && l.Addr().Network() != "unix" {
			l = tls.NewListener(l, secret)
		}
		servers[i] = server.GRPC()
		group.Go(func() error { return servers[i].Serve(l) })
	}
	for _, addr := range o.addrs {
		if addr != stateOnly {
			fmt.Fprintf(o.stderr, "kiln: serving %s\n", addr)
		}
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		if o.idle > 0 && server.Idle(ctx, o.idle) {
			cancel(errIdle)
		}
		<-ctx.Done()
		server.Drain()
		for _, g := range servers {
			stopSoon(g)
		}
	}()
	err := group.Wait()
	if ctx.Err() != nil {
		<-stopped
		return nil
	}
	cancel(err)
	<-stopped
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
