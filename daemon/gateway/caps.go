package gateway

import (
	"slices"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	capspb "github.com/moby/buildkit/util/apicaps/pb"
)

// missing are the capabilities of BuildKit v0.33 that kiln does not have. Clients
// ask for them before they use them.
var missing = []apicaps.CapID{
	pb.CapSourceGitSignatureVerify, pb.CapSourceHTTPSignatureVerify,
}

// offered gives the capabilities of a list that kiln has.
func offered(all []*capspb.APICap) []*capspb.APICap {
	return slices.DeleteFunc(all, func(c *capspb.APICap) bool { return slices.Contains(missing, apicaps.CapID(c.ID)) })
}

// pong says what kiln can do.
func pong() *gwpb.PongResponse {
	return &gwpb.PongResponse{FrontendAPICaps: offered(gwpb.Caps.All()), LLBCaps: offered(pb.Caps.All())}
}
