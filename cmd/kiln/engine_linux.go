package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cmd/kiln/internal/remote"
	"github.com/kiln-build/kiln/daemon/status"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/request"
	"github.com/kiln-build/kiln/worker/executor/userns"
)

// defaultRoot is the state folder where none is named.
func defaultRoot() string { return kiln.DefaultRoot() }

// platformCommands are those that need the engine in this process.
func platformCommands() []*cli.Command {
	return []*cli.Command{newServeCommand()}
}

// enterUserNamespace runs a command that opens a state folder again in a user
// namespace, where kiln is not root.
func enterUserNamespace(args []string) (done bool, code int, err error) {
	if len(args) < 2 || slices.Contains(args, "--help") || slices.Contains(args, "-h") {
		return false, 0, nil
	}
	switch args[1] {
	case "build", "b", "du", "prune", "explain", "debug":
		if namesDaemon(args[2:]) {
			return false, 0, nil
		}
		return userns.Enter()
	case "serve":
		return userns.Enter()
	}
	return false, 0, nil
}

// platformEngine gives the engine of a state folder: that of the process that has
// the folder, if it serves others, and else one in this process.
func platformEngine(ctx context.Context, p place, stderr io.Writer) (engine, error) {
	root, err := stateFolder(p)
	if err != nil {
		return nil, err
	}
	switch p.daemon {
	case daemonNever:
		e, err := openEngine(ctx, p.root, p.config, stderr)
		if err != nil {
			return nil, err
		}
		return &here{engine: e, stderr: stderr, shell: p.shell}, nil
	case daemonAlways:
		if err := startDaemon(ctx, root, p.config, stderr); err != nil {
			return nil, err
		}
		return newGuest(ctx, root)
	}
	e, err := openOrJoin(ctx, root, p, stderr)
	switch {
	case errors.Is(err, errServed):
		if p.config != "" {
			warnf(stderr, "another process has the state folder and builds with its own configuration; --config says nothing")
		}
		return newGuest(ctx, root)
	case err != nil:
		return nil, err
	}
	return &here{engine: e, stderr: stderr, root: root}, nil
}

// stateFolder gives the path of the state folder: that of the flag, else the
// configuration's, as kiln.Open has it. The socket of whoever has the folder is there.
func stateFolder(p place) (string, error) {
	root := p.root
	if root == "" {
		config, err := kiln.LoadConfig(p.config)
		if err != nil {
			return "", err
		}
		root = cmp.Or(config.Root, kiln.DefaultRoot())
	}
	return filepath.Abs(root)
}

// errServed is why the folder is not waited for: the process that has it builds
// for others too.
var errServed = errors.New("the process that has the state folder serves it")

const (
	// socketPoll is how often the socket of a held folder is tried.
	socketPoll = 20 * time.Millisecond
	// patience is how long the holder may take to serve before people are told
	// that they wait.
	patience = time.Second
)

// openOrJoin opens the state folder, or says that another process serves it. A
// process that builds begins to serve a moment after it began (guestDelay).
func openOrJoin(ctx context.Context, root string, p place, stderr io.Writer) (*kiln.Engine, error) {
	opening, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel(nil)
	var once sync.Once
	o := engineOptions(p.root, p.config, stderr)
	o.Waiting = func(pid int, command string) {
		once.Do(func() {
			group.Go(func() {
				for tries := 0; opening.Err() == nil; tries++ {
					if conn, err := dialState(opening, root); err == nil {
						conn.Close()
						cancel(errServed)
						return
					}
					if time.Duration(tries)*socketPoll == patience {
						sayWaiting(stderr, pid, command)
					}
					select {
					case <-opening.Done():
					case <-time.After(socketPoll):
					}
				}
			})
		})
	}
	e, err := kiln.Open(opening, o)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return e, err
}

func sayWaiting(stderr io.Writer, pid int, command string) {
	fmt.Fprintf(stderr, "kiln: waiting for process %d (%s), which holds the state folder\n", pid, command)
}

func engineOptions(root, config string, stderr io.Writer) kiln.Options {
	return kiln.Options{Root: root, ConfigFile: config, Warn: func(msg string) { warnf(stderr, "%s", msg) }}
}

// openEngine opens the state folder, saying for whom it waits where another
// process holds it.
func openEngine(ctx context.Context, root, config string, stderr io.Writer) (*kiln.Engine, error) {
	o := engineOptions(root, config, stderr)
	o.Waiting = func(pid int, command string) { sayWaiting(stderr, pid, command) }
	e, err := kiln.Open(ctx, o)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	return e, nil
}

// closeEngine ends the engine. That the state folder could not be written is no
// failure of a build whose output is there: the next build does more than it had to.
func closeEngine(e *kiln.Engine, stderr io.Writer) {
	if err := e.Close(); err != nil {
		warnf(stderr, "not all that was done is kept, and the next build does it again: %v", err)
	}
}

// newGuest gives the engine of the process that serves the state folder.
func newGuest(ctx context.Context, root string) (engine, error) {
	c, err := remote.Open(ctx, remote.Address{
		URL:  "unix://" + filepath.Join(root, socketName),
		Dial: func(ctx context.Context) (net.Conn, error) { return dialState(ctx, root) },
	})
	if err != nil {
		return nil, err
	}
	return guest{away: away{c}, root: root}, nil
}

// here is the engine in this process. While it builds for long, other processes
// that want the same state folder build in it too.
type here struct {
	engine *kiln.Engine
	root   string // empty serves nobody
	stderr io.Writer
	guests *guests
	shell  *shell // for steps that fail; nil is none
}

// Build builds in this process.
func (h *here) Build(ctx context.Context, r *request.Request, show func(*client.SolveStatus)) (*request.Result, error) {
	if h.root != "" {
		h.guests = expectGuests(h.engine, h.root, h.stderr)
	}
	req := engineRequest(r, func(e kiln.Event) { show(status.Of(e)) })
	if h.shell != nil {
		req.OnError = h.shell.enter
	}
	result, err := h.engine.Build(ctx, req)
	if err != nil {
		return nil, err
	}
	out := &request.Result{Digest: result.Digest, Metadata: result.Metadata}
	for _, p := range result.Provenance {
		data, kind, err := p.Document()
		if err != nil {
			return nil, fmt.Errorf("writing the provenance: %w", err)
		}
		said := request.Provenance{Type: kind, Data: data}
		if p.Multi {
			said.Platform = p.ID
		}
		out.Provenance = append(out.Provenance, said)
	}
	return out, nil
}

// engineRequest gives a request as the engine takes it.
func engineRequest(r *request.Request, events func(kiln.Event)) kiln.Request {
	out := kiln.Request{
		Context: r.Context, Dockerfile: r.Dockerfile, DockerfileText: r.DockerfileText, Contexts: r.Contexts,
		Target: r.Target, BuildArgs: r.BuildArgs, Labels: r.Labels, Platforms: r.Platforms,
		NoCache: r.NoCache, NoCacheFilter: r.NoCacheFilter, Pull: r.Pull, Network: r.Network, AddHosts: r.AddHosts,
		ShmSize: r.ShmSize, Ulimits: r.Ulimits, CgroupParent: r.CgroupParent, ProxyNetwork: r.ProxyNetwork, Call: r.Call, Attrs: r.Attrs,
		Secrets: r.Secrets, SSH: r.SSH, Allow: r.Allow, CacheFrom: r.CacheFrom, CacheTo: r.CacheTo, Events: events,
		Ref: r.Ref, Record: r.Provenance, FailOnMiss: r.FailOnMiss, Explain: r.Explain, Frontend: frontendOf(r.Frontend), Forward: forward,
	}
	for _, o := range r.Outputs {
		out.Outputs = append(out.Outputs, kiln.Output{Type: o.Type, Attrs: o.Attrs, Dest: o.Dest, Writer: o.Writer})
	}
	return out
}

var _ compiler = (*here)(nil)

// Graphs compiles a request in this process.
func (h *here) Graphs(ctx context.Context, r *request.Request) ([]llb.Edge, error) {
	images, err := h.engine.Compile(ctx, engineRequest(r, nil))
	if err != nil {
		return nil, err
	}
	var out []llb.Edge
	for _, image := range images {
		out = append(out, image.Root)
	}
	return out, nil
}

// Usage lists what the state folder holds.
func (h *here) Usage(ctx context.Context) ([]request.Usage, error) {
	list, err := h.engine.Usage(ctx)
	return usages(list), err
}

// Prune has the process that has the folder collect.
func (g guest) Prune(ctx context.Context, p request.Prune) ([]request.Usage, error) {
	disk, err := diskSize(g.root)
	if err != nil {
		return nil, err
	}
	return g.away.Prune(ctx, p.OnDisk(disk))
}

// diskSize gives the size of the file system that holds a folder.
func diskSize(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("asking for the size of the disk of %s: %w", dir, err)
	}
	return int64(st.Blocks) * st.Bsize, nil
}

// Prune collects.
func (h *here) Prune(ctx context.Context, p request.Prune) ([]request.Usage, error) {
	disk, err := diskSize(h.engine.Path())
	if err != nil {
		return nil, err
	}
	p = p.OnDisk(disk)
	o := cache.PruneOptions{
		All: p.All, KeepDuration: p.KeepDuration, MaxUsed: p.MaxUsed.Bytes, MinFree: p.MinFree.Bytes, Reserved: p.Reserved.Bytes,
	}
	if p.Filter != nil {
		o.Filter = func(u cache.Usage) bool { return p.Filter(usageOf(u)) }
	}
	gone, err := h.engine.Prune(ctx, o)
	return usages(gone), err
}

func usages(list []cache.Usage) []request.Usage {
	out := make([]request.Usage, len(list))
	for i, u := range list {
		out[i] = usageOf(u)
	}
	return out
}

func usageOf(u cache.Usage) request.Usage {
	return request.Usage{
		ID: u.ID, Kind: u.Kind, Description: u.Description, Size: u.Size, Shared: u.Shared, InUse: u.InUse,
		Created: u.Created, LastUsed: u.LastUsed, Uses: u.Uses, Parents: u.Parents,
	}
}

// Close ends the engine when the guests' builds have ended too, or ctx has.
func (h *here) Close(ctx context.Context) {
	if h.guests != nil {
		h.guests.close(ctx)
	}
	closeEngine(h.engine, h.stderr)
}
