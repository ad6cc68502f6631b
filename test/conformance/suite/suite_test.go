// Package suite names the packages that BuildKit's own tests of its client and of its
// Dockerfile frontend import, so that this module's go.sum covers them and run.sh can
// build those tests.
package suite

import (
	_ "github.com/moby/buildkit/client"
	_ "github.com/moby/buildkit/frontend/dockerfile/builder"
	_ "github.com/moby/buildkit/session/upload/uploadprovider"
	_ "github.com/moby/buildkit/util/testutil/integration"
	_ "github.com/moby/buildkit/util/testutil/workers"
)
