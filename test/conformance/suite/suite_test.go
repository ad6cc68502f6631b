// Package suite names the packages that BuildKit's own tests and those of buildx import,
// so that this module's go.sum covers them and run.sh can build those tests. What
// buildctl's import, go.mod has it for as a tool.
package suite

import (
	_ "github.com/docker/buildx/commands"
	_ "github.com/docker/buildx/tests"
	_ "github.com/google/go-dap"
	_ "github.com/moby/buildkit/client"
	_ "github.com/moby/buildkit/frontend/dockerfile/builder"
	_ "github.com/moby/buildkit/session/upload/uploadprovider"
	_ "github.com/moby/buildkit/util/testutil/integration"
	_ "github.com/moby/buildkit/util/testutil/workers"
)
