package gateway

import (
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
)

// pong says what kiln can do: all that BuildKit v0.33 can. Clients ask for a capability
// before they use it.
func pong() *gwpb.PongResponse {
	return &gwpb.PongResponse{FrontendAPICaps: gwpb.Caps.All(), LLBCaps: pb.Caps.All()}
}
