// Package worker runs operations: it resolves sources, works file operations out
// on trees, runs processes in sandboxes, and turns what they wrote into layers.
package worker

import (
	"context"
	"net"

	"github.com/kiln-build/kiln/registry"
)

// Session is what one build lends to its steps. Nil fields lend nothing.
type Session struct {
	Locals  Locals
	Secrets Secrets
	SSH     SSH
	// Credentials for registries; nil is docker's config and its helpers.
	Credentials registry.Credentials
	// Entitlements that were granted: "security.insecure", "network.host", "device".
	Entitlements map[string]bool
}

// Locals gives the folders that a build's local sources name.
type Locals interface {
	// Local gives the path of the folder called name, to be read in place. For a
	// client elsewhere it is a copy, of what the filter lets through at least.
	Local(ctx context.Context, name string, f Filter) (dir string, err error)
}

// Filter narrows a local source, in the pattern language of .dockerignore.
type Filter struct {
	Include, Exclude, Follow []string
}

// Secrets gives secrets by id; one that is not known wraps fs.ErrNotExist.
type Secrets interface {
	Secret(ctx context.Context, id string) ([]byte, error)
}

// SSH connects to the ssh agent of that id; one that is not known wraps fs.ErrNotExist.
type SSH interface {
	DialAgent(ctx context.Context, id string) (net.Conn, error)
}
