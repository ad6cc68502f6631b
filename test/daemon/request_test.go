package daemon

import (
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
)

func solveRequest(def *pb.Definition) *controlapi.SolveRequest {
	return &controlapi.SolveRequest{Ref: identity.NewID(), Definition: def}
}

func resolveOpt() sourceresolver.Opt {
	return sourceresolver.Opt{ImageOpt: &sourceresolver.ResolveImageOpt{ResolveMode: "default"}}
}
