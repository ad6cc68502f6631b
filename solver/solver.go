// Package solver runs graphs: what a record answers for is not run again, what is
// independent runs at the same time, what several builds want runs once.
//
// A call of Solve goes through these steps, each in a file of its own:
//
//   - plan: every vertex gets a number, in topological order; sources are pinned
//     (pins.go); definition keys are made from the sources up (keys.go);
//   - lookup: from the targets down, a record under a definition key ends the
//     descent: what lies below it is not looked at;
//   - join: what is left becomes tasks, or joins the tasks that other builds have
//     made of the same definitions;
//   - schedule: a task whose inputs are solved has its content key looked up, and
//     on a miss is run. Ready tasks wait in queues, those first that have the
//     longest way to the end still ahead of them.
//
// A task lives as long as somebody wants it. When the last build that does has
// gone, it is cancelled, and nothing remembers that it failed.
//
// A Solver is safe for concurrent use. It has one lock, Solver.mu, which guards
// the tasks, the queues and who wants what; the lock of an observer's queue may be
// taken under it, and no other.
package solver

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// SessionID names the build on whose behalf a worker acts: whose folders,
// secrets and credentials it may use.
type SessionID string

// Worker does what a solver cannot: it resolves sources, identifies contents, runs ops.
// Its methods are called concurrently. Passthrough ops never reach it.
type Worker interface {
	// Pin says what the source vertex v stands for now, for that session: the
	// digest of an image, a commit, the identity of a folder's tree. Pins go into
	// definition keys. The job's Pin and Inputs are unset. A pin is asked for once
	// in a session.
	Pin(ctx context.Context, job *Job) (string, error)
	// Content identifies what the job's vertex sees of one of its inputs (an index
	// into Vertex.Inputs()), narrowed to the paths that it reads of it. The job has
	// no lease, and nobody to tell of progress.
	Content(ctx context.Context, job *Job, input int) (cache.ContentID, error)
	// Run runs a vertex and gives its outputs, complete in the cache. An error
	// that wraps a *cache.GoneError makes the solver forget that layer and go
	// back for it. When ctx ends, so must Run.
	Run(ctx context.Context, job *Job) ([]cache.ChainID, error)
}

// Job is a vertex that is to be run.
type Job struct {
	Vertex *llb.Vertex
	Pin    string          // of a source
	Inputs []cache.ChainID // one for each of Vertex.Inputs()
	// Sessions gives the builds that want the vertex at this moment, one at least.
	Sessions func() []SessionID
	// Lease holds what the job makes and uses. The solver releases it once a
	// record leads to the outputs and the builds that want them hold them.
	Lease Lease
	// Log takes the step's output: stream 1 is standard output, 2 standard error.
	// Writes never fail and never wait for those who watch.
	Log func(stream int) io.Writer
	// Progress announces how far a part of the job is; it may be called often.
	Progress func(Progress)
	// Warn tells the builds that want the vertex something.
	Warn func(text string)
}

// Lease keeps what it holds from being collected, until Release. *cache.Lease is
// one. Hold is called under the solver's lock and must be quick.
type Lease interface {
	Hold(id cache.ChainID)
	Release()
}

// Records is where results are looked up and stored; *cache.Cache is one.
type Records interface {
	// Lookup finds the record under a key; *cache.MissError says why there is
	// none. Any other error is a miss too.
	Lookup(k cache.Key) (cache.Record, error)
	Store(r cache.Record, keys ...cache.Key) error
}

// Layers is what the solver needs to know of the layers that records lead to;
// *cache.Cache is one.
type Layers interface {
	// Chain gives the top link of a chain.
	Chain(id cache.ChainID) (cache.Chain, error)
	// ForgetLayer makes every record that leads to the layer a miss.
	ForgetLayer(id cache.LayerID) error
}

// Cache is both.
type Cache interface {
	Records
	Layers
}

// Durations remembers how long ops took, by what they do; a *cache.Bucket is one.
type Durations interface {
	Get(key []byte) (value []byte, ok bool)
	Put(key, value []byte) error
}

var (
	_ Cache     = (*cache.Cache)(nil)
	_ Lease     = (*cache.Lease)(nil)
	_ Durations = (*cache.Bucket)(nil)
)

// Options are the settings of a solver; the zero value works.
type Options struct {
	// Parallelism is how many exec ops run at once; 0 is 4 for each processor, 16
	// at least: steps wait for disks and networks more than they compute. Sources
	// have four times as many places, file operations and lookups four for each
	// processor, 16 at least. Build ops only wait for graphs of their own, which
	// are solved in other calls, and so are not counted: were they, they could
	// take all the places that those graphs wait for.
	Parallelism int
	// Lease makes the leases of jobs, and of builds that bring none; nil holds nothing.
	Lease func() Lease
	// Lookup is Records.Lookup on behalf of a session, which may know of records that
	// others are not to be given; nil asks the cache, whoever asks. What it gives is in
	// the cache from then on.
	Lookup func(id SessionID, k cache.Key) (cache.Record, error)
	// Durations orders the work; nil orders it by the kinds of ops alone.
	Durations Durations
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
}

// Solver runs graphs on a worker.
type Solver struct {
	cache   Cache
	worker  Worker
	fetcher Fetcher // nil where the worker is none
	o       Options

	base   context.Context // of tasks; ends with Close
	cancel context.CancelCauseFunc
	group  sync.WaitGroup // the goroutines that work on tasks

	mu     sync.Mutex
	closed bool
	tasks  map[cache.Key]*task // by share key
	queues [classes]queue
	seq    uint64 // numbers tasks in the order in which they came to be
	solves sync.WaitGroup
	// forgotten counts the layers that were forgotten: what was looked up before the
	// last of them may lead to it.
	forgotten uint64
	planning  int     // calls of Solve between the start of lookup and join
	kept      []*task // solved, and wanted by nobody; they go when planning is 0
	sessions  map[SessionID]*session
	// live are those that have not ended, or have calls of Solve under way.
	live map[*session]struct{}
}

// errClosed is the cause of what Close ends.
var errClosed = errors.New("the solver is closed")

// New makes a solver.
func New(c Cache, w Worker, o Options) *Solver {
	cpus := runtime.GOMAXPROCS(0)
	if o.Parallelism <= 0 {
		o.Parallelism = max(16, 4*cpus)
	}
	if o.Lease == nil {
		o.Lease = func() Lease { return noLease{} }
	}
	if o.Lookup == nil {
		o.Lookup = func(_ SessionID, k cache.Key) (cache.Record, error) { return c.Lookup(k) }
	}
	if o.Durations == nil {
		o.Durations = noDurations{}
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	s := &Solver{
		cache: c, worker: w, o: o,
		tasks:    make(map[cache.Key]*task),
		sessions: make(map[SessionID]*session),
		live:     make(map[*session]struct{}),
	}
	s.fetcher, _ = w.(Fetcher)
	s.base, s.cancel = context.WithCancelCause(context.Background())
	s.queues[classExec].places = o.Parallelism
	s.queues[classSource].places = 4 * o.Parallelism
	s.queues[classTree].places = max(16, 4*cpus)
	s.queues[classBuild].places = llb.MaxVertices
	return s
}

// Close ends whatever runs, with the calls of Solve that wait for it, and every
// session, and returns when nothing runs any more.
func (s *Solver) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel(errClosed)
	s.solves.Wait()
	s.group.Wait()
	s.mu.Lock()
	var leases []Lease
	for _, sn := range s.sessions {
		sn.ended = true
		leases = append(leases, s.endIfDone(sn)...)
	}
	clear(s.sessions)
	s.mu.Unlock()
	releaseAll(leases)
}

type noLease struct{}

func (noLease) Hold(cache.ChainID) {}
func (noLease) Release()           {}
