// Package exporter writes results: OCI and docker tarballs, images in registries,
// folders and plain tarballs.
//
// What is written is a Result: a root file system, which is a chain of layers,
// and a config, for each platform. An Exporter writes it to a Target (a file or
// a folder of whoever asked for the build) or to registries. What an exporter
// needs of the engine is its Env. Package exporter/all knows the exporters by name.
package exporter

import (
	"cmp"
	"context"
	"io"
	"time"

	"github.com/containerd/platforms"
	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/registry"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Result is what is to be written: one image for each platform.
type Result struct {
	Images   []Image
	Metadata map[string][]byte // the frontend's; "annotation…" keys and the like
	// Multi says that the result is an index even where it has one image only.
	Multi bool
	// Came gives the blobs that layers came as in the images that the build read. Of
	// a layer that is known in several forms an image has that one, so that who has
	// the base image has the layer. It is asked when there is a choice; may be nil.
	Came func(ctx context.Context) map[blob.Digest]bool
	// Assembled is called once the image is known, with all its layers, while it is
	// still on its way. Exporters that write no image do not call it; it may be nil.
	Assembled func()
}

// Index reports whether the result is written as an index of images, or as
// folders by platform, rather than as the one image that it has.
func (r Result) Index() bool { return r.Multi || len(r.Images) > 1 }

// Image is a root file system and the config that goes with it.
type Image struct {
	Platform   ocispecs.Platform
	ID         string // as frontend.ResultImage has it
	Root       cache.ChainID
	Config     []byte // as frontend.ResultImage has it
	BaseConfig []byte
	// Attestations are what is said of the image; they are written beside it.
	Attestations []Attestation
}

// Name gives what the frontend calls the image's platform.
func (i Image) Name() string { return cmp.Or(i.ID, platforms.FormatAll(i.Platform)) }

// Attestation is something that is said of an image. Its predicate is in a file
// of a frontend's result, or what the engine itself says. See package attest.
type Attestation struct {
	// Path names the file; in folders and tarballs its last part is what the
	// attestation is called. Of a bundle it is the folder that the statements are in.
	Path   string
	Bundle bool
	// Root is the file system that Path is in, where Content is nil.
	Root cache.ChainID
	// Content gives the predicate when it is needed: once the image's layers are there.
	Content func(ctx context.Context, blobs Blobs) ([]byte, error)
	// PredicateType is the URL of the predicate's kind; a bundle may leave it out.
	PredicateType string
	// Subjects are what the predicate is about; none is the image.
	Subjects []Subject
	// SBOMCore is the name, without what follows a dot, of the file of a bundle
	// that describes the image itself.
	SBOMCore string
	// InlineOnly says that the attestation does not make an index of one image: it
	// is written where images go to registries, or where there is an index anyway.
	InlineOnly bool
}

// Blobs are those that an exporter wrote layers as; nil where it wrote none.
type Blobs map[cache.LayerID]blob.Descriptor

// Subject is what an attestation is about: the image, under a further name where
// there is one, or, where Raw is set, something else, which has digests.
type Subject struct {
	Raw     bool
	Name    string
	Digests []digest.Digest
}

// Exporter writes a result somewhere.
type Exporter interface {
	// Export writes r and gives what it tells of that, in BuildKit's names
	// ("containerimage.digest", "containerimage.config.digest", "image.name", ...).
	// An error that wraps a *cache.GoneError makes the engine solve again.
	Export(ctx context.Context, r Result, p Progress) (map[string]string, error)
}

// Progress takes what an exporter is doing. Step begins a part of it ("exporting
// layers", "pushing manifest for …") and gives what ends it. It is called from
// several goroutines at once.
type Progress interface {
	Step(name string) (done func(error))
}

// Source brings what the cache knows of and does not hold; the worker is one.
type Source interface {
	// Unpack makes every layer of a chain present: its tree known, its files in the pool.
	Unpack(ctx context.Context, id cache.ChainID) error
	// Blob reads a compressed form of an image's layer, here or at one of its origins.
	Blob(ctx context.Context, l cache.Layer, d blob.Descriptor) (io.ReadCloser, error)
}

// Target is where the caller of a build wants its output: files for tarballs, a
// folder for "local" and for layouts. Package exporter/dest has the one for paths
// of this machine.
type Target interface {
	// File opens the file that a tarball is written to. The attributes are those
	// of the response so far, "containerimage.digest" among them; those that are
	// known only when the tarball is complete are missing.
	File(ctx context.Context, attrs map[string]string) (File, error)
	// Folder opens the folder that a result is written into.
	Folder(ctx context.Context) (Folder, error)
}

// File takes a tarball. One of Commit and Abort is called, once: Commit makes
// what was written the output, Abort leaves nothing of it. A File whose Writer
// has a ReadFrom that copies in the kernel is used so.
type File interface {
	io.Writer
	Commit() error
	Abort() error
}

// Placer is a Target whose file may be one that can be written in any order: so
// what takes long to work out is written while what comes before it is not known yet.
type Placer interface {
	Target
	// Place opens the file; nil is one that takes its bytes in their order only,
	// which File opens.
	Place(ctx context.Context) (PlacedFile, error)
}

// PlacedFile is a File that is a regular one of this machine, empty at first.
type PlacedFile interface {
	File
	io.WriterAt
	io.Seeker
	Truncate(size int64) error
}

// Folder takes a folder. What was there stays there unless it is overwritten.
// One of Commit and Abort is called, once.
type Folder interface {
	// Path is an existing folder of this machine to write into.
	Path() string
	Commit() error
	Abort() error
}

// Env is what an exporter has of the engine. It is safe for concurrent use.
type Env struct {
	Cache  *cache.Cache
	Source Source
	// Target is nil where the caller gave none; exporters that need one say so.
	Target Target
	// Registry and Credentials are for pushing; nil is the zero client, and docker's config.
	Registry    *registry.Client
	Credentials registry.Credentials
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
	// Keep is given the documents of an image, its root last; nil is nobody who
	// keeps them.
	Keep func(Document)
}

// Document is a manifest, an index, a config, or what is said of an image. Root is
// the one that leads to the others.
type Document struct {
	MediaType string
	Data      []byte
	Root      bool
}

// Now gives the time.
func (e Env) Now() time.Time {
	if e.Clock != nil {
		return e.Clock()
	}
	return time.Now()
}
