package gateway

import (
	types "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/worker"
)

// LocalWorkers are what frontends are told of an engine that serves nobody.
func LocalWorkers() []*types.WorkerRecord {
	return []*types.WorkerRecord{{
		ID:        "kiln",
		Platforms: pb.PlatformsFromSpec(worker.Platforms()),
	}}
}
