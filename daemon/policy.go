package daemon

import (
	"context"

	controlapi "github.com/moby/buildkit/api/services/control"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon/caller"
	"github.com/kiln-build/kiln/daemon/gateway"
	"github.com/kiln-build/kiln/frontend"
)

// checkSource gives what is asked about every source of a build, where a session of
// the request judges them; done ends its use.
func (s *Server) checkSource(req *controlapi.SolveRequest, client *caller.Caller) (check kiln.SourceCheck, done func()) {
	done = func() {}
	if req.SourcePolicySession == "" {
		return nil, done
	}
	judge := client
	if req.SourcePolicySession != req.Session {
		judge = caller.New(s.sessions, req.SourcePolicySession, s.mirrors, s.tokens, s.engine.Path("tmp"))
		done = judge.Close
	}
	return func(ctx context.Context, op *pb.Op, describe func(context.Context, *pb.SourceOp, frontend.SourceOptions) (frontend.SourceMeta, error)) (bool, error) {
		return judge.CheckSource(ctx, op, func(ctx context.Context, ask *gwpb.ResolveSourceMetaRequest) (*gwpb.ResolveSourceMetaResponse, error) {
			o, err := gateway.SourceOptions(ask)
			if err != nil {
				return nil, err
			}
			m, err := describe(ctx, ask.Source, o)
			if err != nil {
				return nil, err
			}
			return gateway.SourceResponse(ask, m), nil
		})
	}, done
}
