package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	dockerref "github.com/distribution/reference"
	types "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/worker"
)

// Program is a process that a Runner runs.
type Program = worker.Program

// Runner is what a bridge must be besides for frontends in images: it runs a
// process on the file system that a graph comes to.
type Runner interface {
	RunProgram(ctx context.Context, p Program) error
}

// FromImage is the frontend that stands in an image, the one that the option
// "source" names, or what stands in its place (see image). It runs in a container, and speaks the gateway API over its
// standard input and output. It reaches nothing but its own build.
type FromImage struct {
	Workers []*types.WorkerRecord
	Limits  Limits
}

var _ frontend.Frontend = FromImage{}

// Labels of frontend images.
const (
	labelNoNetwork = "moby.buildkit.frontend.network.none"
	labelCaps      = "moby.buildkit.frontend.caps"
)

// capInputs is the capability of frontends that take inputs.
const capInputs = "moby.buildkit.frontend.inputs"

// Forward runs the frontend that a Dockerfile names, unless it is BuildKit's own of
// Dockerfiles, which kiln's stands for.
func (i FromImage) Forward(ctx context.Context, b frontend.Bridge, source, cmdline string, req frontend.Request) (*frontend.Result, bool, error) {
	named, err := dockerref.ParseNormalizedNamed(source)
	if err == nil && strings.HasPrefix(named.Name(), "docker.io/docker/dockerfile") {
		return nil, false, nil
	}
	opts := map[string]string{}
	for k, v := range req.Opts {
		opts[k] = v
	}
	opts["source"], opts["cmdline"] = source, cmdline
	req.Opts = opts
	ctx, call := frontend.Sub(ctx, ImageFrontend, req)
	call.Attribute(b)
	res, err := i.Build(ctx, req, b)
	return call.Made(res), true, err
}

// Name is what the frontend is called in BuildKit's API.
func (FromImage) Name() string { return ImageFrontend }

// Build runs the frontend.
func (i FromImage) Build(ctx context.Context, req frontend.Request, b frontend.Bridge) (*frontend.Result, error) {
	runner, ok := b.(Runner)
	if !ok {
		return nil, fault.New(codes.Unimplemented, "frontends in images cannot be run here")
	}
	root, config, err := i.image(ctx, req, b)
	if err != nil {
		return nil, err
	}
	if err := checkCaps(config.Config.Labels[labelCaps], req); err != nil {
		return nil, err
	}
	inputs, err := definitions(req.Inputs)
	if err != nil {
		return nil, err
	}
	network := pb.NetMode_UNSET
	if none, _ := strconv.ParseBool(config.Config.Labels[labelNoNetwork]); none {
		network = pb.NetMode_NONE
	}
	meta, err := i.meta(config, req)
	if err != nil {
		return nil, err
	}
	itself, err := llb.Marshal(root)
	if err != nil {
		return nil, err
	}
	stored, err := itself.MarshalVT()
	if err != nil {
		return nil, err
	}
	f := NewFunction(inputs, i.Workers)
	f.Limits = i.Limits
	return f.runIn(ctx, req, b, func(ctx context.Context, conn net.Conn, stderr io.Writer) error {
		return runner.RunProgram(ctx, Program{
			Root: root, Meta: meta, Network: network, Metadata: map[string][]byte{itselfFile: stored},
			Stdin: conn, Stdout: conn, Stderr: stderr,
		})
	})
}

// itselfFile is where a frontend finds the graph of the image that it stands in.
const itselfFile = "frontend.bin"

// definitions puts graphs into the form that frontends have them in.
func definitions(edges map[string]llb.Edge) (map[string]*pb.Definition, error) {
	out := make(map[string]*pb.Definition, len(edges))
	for name, e := range edges {
		var err error
		if out[name], err = llb.Marshal(e); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// checkCaps refuses a frontend that cannot do what the request needs.
func checkCaps(label string, req frontend.Request) error {
	has := strings.Split(label, ",")
	need := strings.Split(req.Opts["frontend.caps"], ",")
	if len(req.Inputs) > 0 {
		need = append(need, capInputs)
	}
	for _, n := range need {
		n = strings.TrimSuffix(strings.TrimSpace(n), "+forward")
		ok := n == ""
		for _, h := range has {
			h = strings.TrimSpace(h)
			ok = ok || h == n || h == n+"+forward"
		}
		if !ok {
			return fault.New(codes.Unimplemented, "unsupported frontend capability "+n)
		}
	}
	return nil
}

// meta makes the process of a frontend.
func (i FromImage) meta(config ocispecs.Image, req frontend.Request) (*pb.Meta, error) {
	m := &pb.Meta{Args: config.Config.Entrypoint, Cwd: config.Config.WorkingDir, RemoveMountStubsRecursive: true}
	if len(m.Args) == 0 {
		m.Args = []string{"/run"}
	}
	if m.Cwd == "" {
		m.Cwd = "/"
	}
	env, err := environment(i.Workers, req)
	m.Env = append(slices.Clone(config.Config.Env), env...)
	return m, err
}

// environment are the variables in which a frontend finds its options.
func environment(workers []*types.WorkerRecord, req frontend.Request) ([]string, error) {
	told, err := json.Marshal(workers)
	if err != nil {
		return nil, err
	}
	var env []string
	for i, k := range slices.Sorted(maps.Keys(req.Opts)) {
		env = append(env, fmt.Sprintf("BUILDKIT_FRONTEND_OPT_%d=%s=%s", i, k, req.Opts[k]))
	}
	return append(env, "BUILDKIT_SESSION_ID=", "BUILDKIT_WORKERS="+string(told), "BUILDKIT_EXPORTEDPRODUCT=kiln"), nil
}

// runIn serves the function to a program at the other end of a connection, until
// the program has ended. An error that it returned counts for more than how it
// ended, and that for more than a result.
func (f *Function) runIn(ctx context.Context, req frontend.Request, b frontend.Bridge, program func(context.Context, net.Conn, io.Writer) error) (*frontend.Result, error) {
	ours, theirs := net.Pipe()
	server := f.server()
	defer server.Stop()
	listener := &oneConn{conn: ours, closed: make(chan struct{})}
	serving := make(chan struct{})
	go func() {
		defer close(serving)
		server.Serve(listener) // its error is that of the connection, which the program sees too
	}()
	defer func() {
		// The connection first: a server waits for the greeting of one that is open.
		theirs.Close()
		ours.Close()
		listener.Close()
		server.Stop()
		<-serving
	}()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var said tail
	ended := make(chan error, 1)
	go func() {
		err := guarded(func() error { return program(ctx, theirs, &said) })
		ended <- err
		if err == nil {
			err = errors.New("the frontend ended without a result")
		}
		cancel(err)
	}()
	result, err := f.Build(ctx, req, b)
	exit := <-ended
	switch {
	case f.returned() != nil:
		return nil, f.returned()
	case exit != nil:
		return nil, fmt.Errorf("the frontend failed: %w%s", exit, said.quoted())
	case err != nil:
		return nil, fmt.Errorf("%w%s", err, said.quoted())
	}
	return result, nil
}

// returned gives the error that the function returned.
func (f *Function) returned() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// server serves the one function.
func (f *Function) server() *grpc.Server {
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
			err = guarded(func() error {
				resp, err = handle(ctx, req)
				return err
			})
			return resp, fault.Status(err).Err()
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			return fault.Status(guarded(func() error { return handle(srv, stream) })).Err()
		}),
	)
	(&Forwarder{only: f, Workers: f.workers}).Register(g)
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	return g
}

// guarded calls f, and makes an error of a panic: what goes wrong with one frontend is
// not to end the builds of all others. The daemon's own server does the same; this one,
// and goroutines, are not behind it.
func guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.New(codes.Internal, fmt.Sprintf("the daemon panicked: %v", p))
		}
	}()
	return f()
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	conn   net.Conn
	once   sync.Once
	closed chan struct{}
	end    sync.Once
}

func (o *oneConn) Accept() (conn net.Conn, err error) {
	o.once.Do(func() { conn = o.conn })
	if conn != nil {
		return conn, nil
	}
	<-o.closed
	return nil, net.ErrClosed
}

func (o *oneConn) Addr() net.Addr { return o.conn.LocalAddr() }
func (o *oneConn) Close() error {
	o.end.Do(func() { close(o.closed) })
	return nil
}

// tail keeps the end of what a program writes.
type tail struct {
	mu   sync.Mutex
	data []byte
}

const maxTail = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	if over := len(t.data) - maxTail; over > 0 {
		t.data = t.data[over:]
	}
	return len(p), nil
}

func (t *tail) quoted() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(bytes.TrimSpace(t.data)) == 0 {
		return ""
	}
	return "\n" + strings.TrimSpace(string(t.data))
}
