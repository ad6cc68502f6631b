// Package exporter writes results: OCI and docker tarballs, images in registries,
// folders and plain tarballs.
package exporter

import (
	"context"
	"io"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Result is what is to be written: one image for each platform.
type Result struct {
	Images   []Image
	Metadata map[string][]byte // the frontend's; "annotation…" keys and the like
}

// Image is a root file system and the config that goes with it.
type Image struct {
	Platform   ocispecs.Platform
	Root       cache.ChainID
	Config     []byte // as frontend.ResultImage has it
	BaseConfig []byte
}

// Exporter writes a result somewhere.
type Exporter interface {
	// Export writes r and gives what it tells of that, in BuildKit's names
	// ("containerimage.digest", "containerimage.config.digest", "image.name", ...).
	// An error that wraps a *cache.GoneError makes the engine solve again.
	Export(ctx context.Context, r Result, p Progress) (map[string]string, error)
}

// Progress takes what an exporter is doing. Step begins a part of it ("exporting
// layers", "pushing manifest for …") and gives what ends it.
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

// Target opens what the caller of a build gave for its output: a file, a pipe, a
// folder of a client. It is for tarballs; done commits what was written.
type Target interface {
	Create(ctx context.Context, attrs map[string]string) (io.WriteCloser, error)
}
