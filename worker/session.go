// Package worker runs operations: it resolves sources, works file operations out
// on trees, runs processes in sandboxes, and turns what they wrote into layers.
//
// Each kind of op has a file of its own. What they share:
//
//   - A Source says what an op of its scheme stands for (its pin), and makes a
//     chain of that. Neither fetches an image's layers, or reads more of a local
//     folder than the stat cache asks for.
//   - A chain is unpacked when an op looks into it (state, for a tree) or stands
//     on it (lower, for folders that overlayfs mounts).
//   - A local folder is a chain of one layer of a kind of its own, whose files stay
//     where they are. A copy captures the files that it takes; every other use
//     captures the folder, or the part that is mounted, and goes on with an
//     ordinary chain (solid). So no chain that leaves the worker, but that of the
//     source itself, promises files that are not in the pool.
//   - A Session is what one build lends; a job looks for what it needs in the
//     sessions of all builds that want it.
package worker

import (
	"context"
	"io"
	"net"
	"net/url"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/worker/proxy"
	"github.com/kiln-build/kiln/worker/source"
	"github.com/kiln-build/kiln/worker/usage"
)

// Session is what one build lends to its steps. Nil fields lend nothing.
type Session struct {
	Locals  Locals
	Secrets Secrets
	SSH     SSH
	Layouts Layouts
	// CacheFolders are where remote caches of the type local lie.
	CacheFolders CacheFolders
	// Graphs solves the graphs that build operations make.
	Graphs Graphs
	// Uploads are what http sources below source.SessionHost name.
	Uploads Uploads
	// Credentials for registries; nil is docker's config and its helpers.
	Credentials registry.Credentials
	// Entitlements that were granted: "security.insecure", "network.host", "device".
	Entitlements map[string]bool
	// Proxy judges what steps ask the proxy network for; nil where the build did not
	// ask for that network.
	Proxy proxy.Rules
	// Usage is told of what steps use; nil is nobody.
	Usage *Usage
	// Debug makes a step that fails keep what it has done so far, for somebody to
	// look at: its error is a *StepError.
	Debug bool
}

// Usage is how a build hears of what its steps use.
type Usage struct {
	// Fully measures what takes something to be measured (executor.Measure).
	Fully bool
	// Used is told when the process of a vertex has ended, by several goroutines at once.
	Used func(v llb.Digest, s *usage.Samples)
}

// Locals gives the folders that a build's local sources name.
type Locals interface {
	// Local gives the path of the folder called name, to be read in place. For a
	// client elsewhere it is a copy, of what the filter lets through at least; where
	// metadata alone is wanted, of just that. came is told, by one goroutine, how many
	// bytes have come for a copy since it was told last.
	Local(ctx context.Context, name string, f Filter, came func(n int)) (dir string, err error)
}

// Filter narrows a local source, in the pattern language of .dockerignore, and says
// how it gets here.
type Filter struct {
	Include, Exclude, Follow []string
	// Session is whose folder it is; empty is the build's own, as is one that is not
	// there.
	Session string
	// MetadataOnly wants the list of what the other fields let through, in the file
	// .fsutil-metadata, and of the files themselves the Exceptions alone.
	MetadataOnly bool
	Exceptions   []string
	// Differ says how a client's files are compared with what came before.
	Differ Differ
}

// Differ is a way to tell which files of a client's folder have to be sent.
type Differ string

const (
	// DifferMetadata compares what can be known without reading a file. It is what
	// the empty Differ is, and besides says that somebody wants just that.
	DifferMetadata Differ = pb.AttrLocalDifferMetadata
	// DifferNone has every file sent again.
	DifferNone Differ = pb.AttrLocalDifferNone
)

// Secrets gives secrets by id; one that is not known wraps fs.ErrNotExist.
type Secrets interface {
	Secret(ctx context.Context, id string) ([]byte, error)
}

// SSH connects to the ssh agent of that id; one that is not known wraps fs.ErrNotExist.
type SSH interface {
	DialAgent(ctx context.Context, id string) (net.Conn, error)
}

// Layouts gives the image layouts that a build's oci-layout sources name; one
// that is not known wraps fs.ErrNotExist. source.OpenLayout makes one of a folder.
type Layouts interface {
	Layout(ctx context.Context, name string) (source.BlobReader, error)
}

// CacheFolders gives the remote caches that lie in folders of the session's.
type CacheFolders interface {
	// CacheFolder gives the cache in the folder called dir; its manifest is the one
	// of that digest, where it is not zero.
	CacheFolder(dir string, manifest blob.Digest) remote.Target
}

// Uploads gives what a client sends over its session: tarballs that it builds from.
type Uploads interface {
	// Upload reads what is behind a URL. It may be that it can be read once only.
	Upload(ctx context.Context, u *url.URL) (io.ReadCloser, error)
}
