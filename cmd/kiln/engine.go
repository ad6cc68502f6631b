package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/urfave/cli/v2"

	"github.com/kiln-build/kiln/cmd/kiln/internal/remote"
	"github.com/kiln-build/kiln/request"
)

// engine is where the commands have their work done: in this process, or in a
// daemon.
type engine interface {
	// Build builds, and tells show of all that happens, by one goroutine.
	Build(ctx context.Context, r *request.Request, show func(*client.SolveStatus)) (*request.Result, error)
	Usage(ctx context.Context) ([]request.Usage, error)
	Prune(ctx context.Context, p request.Prune) ([]request.Usage, error)
	// Close ends what was begun to reach it.
	Close(ctx context.Context)
}

// place says where an engine is looked for, as the flags do.
type place struct {
	root, config string
	addr         remote.Address
	daemon       string
	shell        *shell // for an engine in this process; nil is none
}

// placeFlags are the flags of every command that needs an engine.
func placeFlags(p *place) []cli.Flag {
	return append(stateFlags(&p.root, &p.config),
		&cli.StringFlag{Name: "addr", Usage: "the daemon to use, kiln's or BuildKit's: unix:///PATH, tcp://HOST:PORT, docker-container://NAME, ssh://HOST and the like", EnvVars: []string{"KILN_HOST", "BUILDKIT_HOST"}, Destination: &p.addr.URL},
		&cli.StringFlag{Name: "tlscacert", Usage: "certificate authority that the daemon's certificate is checked with", Destination: &p.addr.CA},
		&cli.StringFlag{Name: "tlscert", Usage: "certificate to show to the daemon", Destination: &p.addr.Cert},
		&cli.StringFlag{Name: "tlskey", Usage: "key of the certificate", Destination: &p.addr.Key},
		&cli.StringFlag{Name: "tlsservername", Usage: "name in the daemon's certificate, where it is not the host of --addr", Destination: &p.addr.ServerName},
		&cli.StringFlag{Name: "daemon", Usage: "auto: use the process that has the state folder, if there is one; always: start a daemon that stays for the builds to come; never: wait for the folder, and build in this process", Value: daemonAuto, EnvVars: []string{"KILN_DAEMON"}, Destination: &p.daemon},
	)
}

// What --daemon says.
const (
	daemonAuto   = "auto"
	daemonAlways = "always"
	daemonNever  = "never"
)

// findEngine gives the engine that a command uses: the daemon that --addr names,
// else what platformEngine finds on this machine.
func findEngine(ctx context.Context, p place, stderr io.Writer) (engine, error) {
	switch p.daemon {
	case "", daemonAuto, daemonAlways, daemonNever:
	default:
		return nil, usagef("--daemon %s: want auto, always or never", p.daemon)
	}
	if p.addr.URL == "" {
		if p.addr.CA != "" || p.addr.Cert != "" || p.addr.Key != "" || p.addr.ServerName != "" {
			return nil, usagef("the flags of TLS are for a daemon that --addr names")
		}
		return platformEngine(ctx, p, stderr)
	}
	c, err := remote.Dial(ctx, p.addr)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	return away{c}, nil
}

// away is the engine of a daemon.
type away struct{ *remote.Client }

// Close hangs up.
func (a away) Close(context.Context) { a.Client.Close() }

// guest is the engine of another process that has the state folder. It may end at
// any time, and what was begun in it is then begun again.
type guest struct {
	away
	root string
}

// again is how long a guest waits before it looks for an engine anew.
const again = 100 * time.Millisecond

// buildAt builds in the engine of a place. Where that engine belongs to another
// process, which ends in mid-build, the build goes on in the next one: what was done
// is cached.
func buildAt(ctx context.Context, p place, r *request.Request, show func(*client.SolveStatus), stderr io.Writer) (*request.Result, error) {
	for {
		e, err := findEngine(ctx, p, stderr)
		if err != nil {
			return nil, err
		}
		result, err := e.Build(ctx, r, show)
		e.Close(ctx)
		if _, ok := e.(guest); !ok || !errors.Is(err, remote.ErrGone) {
			return result, err
		}
		if begun(r.Outputs) {
			return nil, fmt.Errorf("%w; the output that was begun cannot be written again", err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(again):
		}
	}
}

// warnf tells people what is worth knowing and no error.
func warnf(stderr io.Writer, format string, args ...any) {
	fmt.Fprintf(stderr, "kiln: warning: "+format+"\n", args...)
}

// namesDaemon reports whether a command line, or the environment, names a daemon:
// then nothing is opened or mounted in this process.
func namesDaemon(args []string) bool {
	named := slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return name == "--addr" || name == "-addr"
	})
	return named || os.Getenv("KILN_HOST") != "" || os.Getenv("BUILDKIT_HOST") != ""
}
