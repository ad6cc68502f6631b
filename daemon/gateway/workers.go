package gateway

import (
	"github.com/containerd/platforms"
	types "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// LocalWorkers are what frontends are told of an engine that serves nobody.
func LocalWorkers() []*types.WorkerRecord {
	return []*types.WorkerRecord{{
		ID:        "kiln",
		Platforms: pb.PlatformsFromSpec([]ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())}),
	}}
}
