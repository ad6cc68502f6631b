// Package daemon serves an engine to BuildKit's clients, over gRPC: the control
// service, by which they ask for builds, watch them and look at what there is; the
// gateway service, by which a client drives a build of its own (package gateway);
// and the health service.
//
// A client opens a session beside its request, over which the daemon calls it back
// (package caller). A build is known by the ref that the client chose: what is
// told of it is kept while it goes on, so that whoever watches it sees all of it,
// however late, and for some time afterwards, as the history.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/session"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon/caller"
	"github.com/kiln-build/kiln/daemon/content"
	"github.com/kiln-build/kiln/daemon/gateway"
	"github.com/kiln-build/kiln/daemon/internal/fault"
)

// Options are the settings of a server. The zero value works.
type Options struct {
	// Entitlements are what builds may ask for: "network.host",
	// "security.insecure", "device". None is allowed that does not stand here.
	Entitlements []string
	// Frontends say which frontends builds may use.
	Frontends gateway.Limits
	// Version is kiln's own, for clients that ask.
	Version string
	// Log is told of every call that fails; nil drops it.
	Log func(method string, err error)
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
}

// maxMessage bounds what clients send at once, definitions above all: as large as
// the largest that llb.Load accepts are in practice.
const maxMessage = 64 << 20

// Server serves an engine. It is safe for concurrent use.
type Server struct {
	controlapi.UnimplementedControlServer

	engine   *kiln.Engine
	o        Options
	workerID string
	sessions *session.Manager
	mirrors  *caller.Mirrors
	tokens   *caller.Tokens
	gateway  *gateway.Forwarder
	builds   *builds
	activity activity

	mu       sync.Mutex // guards what is below
	draining bool
	underWay sync.WaitGroup
}

// New makes the server of an engine.
func New(e *kiln.Engine, o Options) (*Server, error) {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	s := &Server{engine: e, o: o, tokens: caller.NewTokens(o.Clock), activity: activity{clock: o.Clock, last: o.Clock()}}
	var err error
	if s.sessions, err = session.NewManager(); err != nil {
		return nil, err
	}
	if s.mirrors, err = caller.OpenMirrors(e.Path("mirrors"), o.Clock, e.HoldFolder); err != nil {
		return nil, err
	}
	if s.workerID, err = workerID(e.Path("worker-id")); err != nil {
		return nil, err
	}
	s.gateway = &gateway.Forwarder{Workers: s.workers()}
	kept, err := s.openHistory()
	if err != nil {
		return nil, err
	}
	s.builds = newBuilds(o.Clock, kept, func(err error) { s.answer("history", nil, err) })
	s.builds.temp = e.Path("tmp")
	return s, nil
}

// GRPC gives a gRPC server with all services. Where clients are to use TLS, the listener
// that it serves does, a tls.NewListener.
func (s *Server) GRPC() *grpc.Server {
	g := grpc.NewServer(
		grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.Creds(peerCredentials{insecure.NewCredentials()}),
	)
	controlapi.RegisterControlServer(g, s)
	s.gateway.Register(g)
	(&content.Service{Store: s.engine.Blobs(), History: s.builds.kept}).Register(g)
	g.RegisterService(s.traceService(), nil)
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	return g
}

// Drain refuses builds from now on, and returns when those under way have ended.
func (s *Server) Drain() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.underWay.Wait()
	s.builds.hurry()
	s.builds.writing.Wait()
}

// begin counts a build, unless the server is about to end.
func (s *Server) begin() (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return nil, fault.New(codes.Unavailable, "the daemon is about to end, and takes no more builds")
	}
	s.underWay.Add(1)
	return s.underWay.Done, nil
}

// unary and stream give errors the form that clients know, and keep a panic in one
// call from ending all the others.

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer s.activity.begin()()
	defer func() { err = s.answer(info.FullMethod, recover(), err) }()
	return handle(ctx, req)
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer s.activity.begin()()
	defer func() { err = s.answer(info.FullMethod, recover(), err) }()
	return handle(srv, stream)
}

func (s *Server) answer(method string, panicked any, err error) error {
	if panicked != nil {
		err = fault.New(codes.Internal, fmt.Sprintf("the daemon panicked: %v", panicked))
	}
	if err == nil {
		return nil
	}
	if s.o.Log != nil && !errors.Is(err, context.Canceled) {
		s.o.Log(method, err)
	}
	return fault.Status(err).Err()
}
