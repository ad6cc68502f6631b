// Package frontend says what a frontend is: a program that compiles a build
// description to LLB, with the help of a bridge to the engine that runs it.
package frontend

import (
	"cmp"
	"context"
	"io/fs"
	"time"

	"github.com/containerd/platforms"
	"github.com/kiln-build/kiln/llb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Frontend compiles a build description.
type Frontend interface {
	Build(ctx context.Context, req Request, b Bridge) (*Result, error)
}

// Request is what a build asks of its frontend, in the attribute names that
// BuildKit's clients send: "filename", "target", "build-arg:NAME", "label:NAME",
// "context", "context:NAME", "platform", "no-cache", "image-resolve-mode", ...
type Request struct {
	Opts   map[string]string
	Inputs map[string]llb.Edge
	// Machine is the platform of the worker; the zero Platform is this machine's.
	Machine ocispecs.Platform
}

// Bridge is what a frontend may ask of the engine.
type Bridge interface {
	// ResolveImage finds an image's digest and config without pulling its layers.
	ResolveImage(ctx context.Context, ref string, o ResolveOptions) (Image, error)
	// Solve runs a graph and gives its file system.
	Solve(ctx context.Context, e llb.Edge) (Ref, error)
	// Warn tells the user something; lines of the description may be shown with it.
	Warn(w Warning)
}

// Forwarder is what a Bridge is besides, where other frontends can be run: images
// that speak the gateway API, named by "# syntax=" or BUILDKIT_SYNTAX.
type Forwarder interface {
	// Forward hands the request to the frontend in the image source; cmdline is the
	// source with the words that follow it. It reports false where it leaves the
	// request to the frontend that asked.
	Forward(ctx context.Context, source, cmdline string, req Request) (*Result, bool, error)
}

// SourceDescriber is what a Bridge is besides, where the engine can tell when the
// content of a git or http source was made.
type SourceDescriber interface {
	// SourceTime gives the committer's time of the commit that a git source stands
	// for, or the Last-Modified header of an http source; zero where there is none.
	SourceTime(ctx context.Context, v *llb.Vertex) (time.Time, error)
}

// ResolveOptions say which image of an index is meant, and how fresh it must be.
type ResolveOptions struct {
	Platform ocispecs.Platform
	Pull     bool // ask the registry even where a digest is known locally
	LogName  string
	Layout   string // non-empty: the oci-layout store that ref is in
}

// Image is a resolved image.
type Image struct {
	Ref    string // as given, normalised
	Digest string // of the manifest or index that Ref names
	Config []byte // the image config of the platform
}

// Ref is a solved file system, read through paths whose links stay inside it.
// Errors for paths that are not there wrap fs.ErrNotExist.
type Ref interface {
	ReadFile(ctx context.Context, path string) ([]byte, error)
	ReadDir(ctx context.Context, path string) ([]fs.DirEntry, error)
	Stat(ctx context.Context, path string) (fs.FileInfo, error)
}

// RangeReader is what a Ref is besides, where a part of a file can be read alone.
type RangeReader interface {
	// ReadRange reads at most n bytes from an offset.
	ReadRange(ctx context.Context, path string, offset, n int64) ([]byte, error)
}

// Warning is a message about the build description.
type Warning struct {
	Short    string
	Detail   []string
	URL      string
	Level    int
	Location *llb.Location
	More     []llb.Location // further lines of Location's file
	Vertex   llb.Digest     // what it is about; zero is the whole description
}

// Result is what a frontend made: one image for each platform, or no image where
// the request was a question ("requestid"); the answer is then in the metadata, as
// "result.json" and "result.txt".
type Result struct {
	Images []ResultImage
	// Index says that an image index is wanted, though there may be one image.
	Index bool
	// Metadata holds the keys that exporters read ("frontend.*", "containerimage.*").
	Metadata map[string][]byte
}

// ResultImage is the image for one platform.
type ResultImage struct {
	Platform ocispecs.Platform
	// ID is what the frontend calls the platform; empty is the platform's own name.
	// Keys of Metadata that are about one image end with it, and outputs with a folder
	// for each platform are named by it.
	ID   string
	Root llb.Edge
	// Config is the image config as JSON, without rootfs and with one history
	// entry for each instruction; the exporter completes it. Nil is a config of
	// the platform alone.
	Config []byte
	// BaseConfig is the config of the image that Root starts from; nil for scratch.
	BaseConfig []byte
	// Attestations are what the frontend says of the image.
	Attestations []Attestation
	// Call is the request that the image came from; nil is the build's own.
	Call *Call
}

// Name gives what the frontend calls the image's platform.
func (i ResultImage) Name() string { return cmp.Or(i.ID, platforms.FormatAll(i.Platform)) }

// Attestation is something that a frontend says of an image: a predicate in a file,
// or a bundle, which is a folder of in-toto statements.
type Attestation struct {
	Root   llb.Edge
	Path   string // in Root
	Bundle bool
	// PredicateType is the URL of the predicate's kind; a bundle may leave it out.
	PredicateType string
	// Subjects are what the predicate is about; none is the image.
	Subjects []Subject
	// SBOMCore is the name of the bundle's file, without what follows a dot, that
	// describes the image itself.
	SBOMCore string
	// InlineOnly says that the attestation does not make an index of one image.
	InlineOnly bool
}

// Subject is what an attestation is about: the image, or, where Raw is set,
// something else, which has digests.
type Subject struct {
	Raw     bool
	Name    string
	Digests []string
}
