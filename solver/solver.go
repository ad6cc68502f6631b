// Package solver runs graphs: what a record answers for is not run again, what is
// independent runs at the same time, what several builds want runs once.
package solver

import (
	"context"
	"io"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// SessionID names the build on whose behalf a worker acts: whose folders,
// secrets and credentials it may use.
type SessionID string

// Worker does what a solver cannot: it resolves sources, identifies contents, runs ops.
type Worker interface {
	// Pin says what the source vertex v stands for now, for that session: the
	// digest of an image, a commit, the identity of a folder's tree. Pins go into
	// definition keys. The job's Pin and Inputs are unset.
	Pin(ctx context.Context, job *Job) (string, error)
	// Content identifies what v sees of its input (an index into v.Inputs()),
	// which is chain, narrowed to the paths that v reads of it.
	Content(ctx context.Context, v *llb.Vertex, input int, chain cache.ChainID) (cache.ContentID, error)
	// Run runs a vertex and gives its outputs, complete in the cache. An error
	// that wraps a *cache.GoneError makes the solver forget that layer and go
	// back for it.
	Run(ctx context.Context, job *Job) ([]cache.ChainID, error)
}

// Job is a vertex that is to be run.
type Job struct {
	Vertex *llb.Vertex
	Pin    string          // of a source
	Inputs []cache.ChainID // one for each of Vertex.Inputs()
	// Sessions gives the builds that want the vertex at this moment, one at least.
	Sessions func() []SessionID
	// Lease holds what the job makes and uses until a record does.
	Lease *cache.Lease
	// Log takes the step's output: stream 1 is standard output, 2 standard error.
	Log func(stream int) io.Writer
	// Progress announces how far a part of the job is; it may be called often.
	Progress func(Progress)
}

// Progress is how far a part of a step is: a layer that is pulled, for one.
type Progress struct {
	ID             string // unique in the vertex
	Action         string // "downloading", "extracting", "transferring"
	Current, Total int64  // bytes or items; Total 0 is unknown
	Started        time.Time
	Completed      time.Time // zero while it goes on
}

// Event is something that happens to a vertex of a build: Started, Cached,
// Completed, Log, Status or Warning.
type Event interface{ event() }
