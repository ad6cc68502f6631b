package daemon

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon/history"
	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/daemon/status"
)

const (
	// maxLog bounds the output that is kept of one build, in bytes. Beyond it, what
	// has been kept longest goes: whoever watches has seen it, unless they are slow.
	maxLog = 8 << 20
	// maxStatuses bounds how many messages are kept of one build.
	maxStatuses = 100_000
	// arrival is how long a watcher waits for its build, whose request comes beside
	// the watcher's own.
	arrival = 10 * time.Second
)

// builds are the builds under way, and those whose records are still being written;
// the others are in the history. They are safe for concurrent use.
type builds struct {
	clock func() time.Time
	// kept is the history; nil keeps none.
	kept *history.Store
	// warn is told of records that cannot be written.
	warn    func(error)
	writing sync.WaitGroup // for records

	mu        sync.Mutex // guards what is below; taken before that of a build
	byRef     map[string]*build
	order     []*build      // oldest first
	changed   chan struct{} // closed and made anew when a build comes or ends or goes
	listeners map[*listener]bool
}

// build is a build as the daemon knows it.
type build struct {
	ref     string
	request *controlapi.SolveRequest

	mu       sync.Mutex // guards what is below
	record   *controlapi.BuildHistoryRecord
	statuses []*client.SolveStatus
	dropped  int // how many statuses were there before the first one kept
	logged   int // bytes of output in statuses
	done     bool
	news     chan struct{} // closed and made anew with every status
	steps    steps
	trace    traceParent

	recorded chan struct{} // closed when the history has it
}

// newBuilds takes where to keep records (nil keeps none), and whom to tell where
// one cannot be written.
func newBuilds(clock func() time.Time, kept *history.Store, warn func(error)) *builds {
	return &builds{
		clock: clock, kept: kept, warn: warn,
		byRef: make(map[string]*build), changed: make(chan struct{}), listeners: make(map[*listener]bool),
	}
}

// add begins a build. A ref names one build.
func (j *builds) add(req *controlapi.SolveRequest) (*build, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.byRef[req.Ref]; ok {
		return nil, fault.New(codes.AlreadyExists, fmt.Sprintf("job ID %s exists", req.Ref))
	}
	n := &build{ref: req.Ref, request: req, news: make(chan struct{}), recorded: make(chan struct{})}
	n.record = newRecord(req, j.clock())
	j.byRef[req.Ref] = n
	j.order = append(j.order, n)
	if !req.Internal {
		j.tell(controlapi.BuildHistoryEventType_STARTED, n.snapshot())
	}
	j.bump()
	return n, nil
}

// bump wakes those who wait for a change. j.mu is held.
func (j *builds) bump() {
	close(j.changed)
	j.changed = make(chan struct{})
}

// end ends a build. Its record is written beside the answer to its client.
func (j *builds) end(n *build, result *kiln.Result, err error) {
	n.finish(j.clock(), err)
	j.writing.Go(func() {
		defer close(n.recorded)
		if j.kept == nil || n.request.Internal {
			j.forget(n, nil)
			return
		}
		r, err := j.record(n, result, err)
		if err != nil {
			j.warn(err)
		}
		j.forget(n, r)
		gone, err := j.kept.Collect()
		if err != nil {
			j.warn(err)
		}
		j.tellGone(gone)
	})
}

// forget takes a build out of those under way, now that r is its record in the
// history; nil is none.
func (j *builds) forget(n *build, r *controlapi.BuildHistoryRecord) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.byRef, n.ref)
	j.order = slices.DeleteFunc(j.order, func(o *build) bool { return o == n })
	switch {
	case r != nil:
		j.tell(controlapi.BuildHistoryEventType_COMPLETE, r)
	case !n.request.Internal:
		j.tell(controlapi.BuildHistoryEventType_DELETED, &controlapi.BuildHistoryRecord{Ref: n.ref})
	}
	j.bump()
}

// watched is a build as those who watch it see it.
type watched interface {
	watch(ctx context.Context, send func(*controlapi.StatusResponse) error) error
}

// find gives a build that is here or in the history, or comes within a moment.
func (j *builds) find(ctx context.Context, ref string) (watched, error) {
	timeout := time.NewTimer(arrival)
	defer timeout.Stop()
	for {
		j.mu.Lock()
		n, changed := j.byRef[ref], j.changed
		j.mu.Unlock()
		if n != nil {
			return n, nil
		}
		if j.kept != nil {
			if r, ok := j.kept.Get(ref); ok {
				return ended{j.kept, r}, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timeout.C:
			return nil, fault.New(codes.NotFound, fmt.Sprintf("no such job %s", ref))
		}
	}
}

// event notes what happened.
func (n *build) event(e kiln.Event) {
	s := status.Of(e)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.steps.add(s)
	n.statuses = append(n.statuses, s)
	for _, l := range s.Logs {
		n.logged += len(l.Data)
	}
	for n.logged > maxLog || len(n.statuses) > maxStatuses {
		for _, l := range n.statuses[0].Logs {
			n.logged -= len(l.Data)
		}
		n.statuses = n.statuses[1:]
		n.dropped++
	}
	close(n.news)
	n.news = make(chan struct{})
}

// after gives what was noted from a position on, the position behind that, and a
// channel that is closed when there is more; nil where there will be no more.
func (n *build) after(pos int) (statuses []*client.SolveStatus, next int, more <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	pos = max(pos, n.dropped)
	statuses = slices.Clone(n.statuses[pos-n.dropped:])
	next = pos + len(statuses)
	if n.done {
		return statuses, next, nil
	}
	return statuses, next, n.news
}

// watch sends all that happens in a build, from its beginning to its end.
func (n *build) watch(ctx context.Context, send func(*controlapi.StatusResponse) error) error {
	for pos := 0; ; {
		statuses, next, more := n.after(pos)
		pos = next
		for _, m := range joined(statuses).Marshal() {
			if err := send(m); err != nil {
				return err
			}
		}
		if more == nil {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// joined makes one status of many, since each is a message to the client.
func joined(all []*client.SolveStatus) *client.SolveStatus {
	var out client.SolveStatus
	for _, s := range all {
		out.Vertexes = append(out.Vertexes, s.Vertexes...)
		out.Statuses = append(out.Statuses, s.Statuses...)
		out.Logs = append(out.Logs, s.Logs...)
		out.Warnings = append(out.Warnings, s.Warnings...)
	}
	return &out
}
