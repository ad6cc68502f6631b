package daemon

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon/history"
	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/daemon/spans"
	"github.com/kiln-build/kiln/daemon/status"
)

const (
	// maxLog bounds the output of one build that is kept in memory, in bytes. Beyond
	// it, what has been kept longest goes to the disk (overflow).
	maxLog = 8 << 20
	// maxStatuses bounds how many messages of one build are kept in memory.
	maxStatuses = 100_000
	// arrival is how long a watcher waits for its build, whose request comes beside
	// the watcher's own.
	arrival = 10 * time.Second
	// maxRefused bounds how many requests that were refused are remembered for those
	// who would watch them.
	maxRefused = 64
	// maxRef bounds the names that are remembered so; clients' own are of 25 letters.
	maxRef = 256
	// maxJoined bounds the output in one message to a client that watches, in bytes.
	maxJoined = 512 << 10
)

// builds are the builds under way, and those whose records are still being written;
// the others are in the history. They are safe for concurrent use.
type builds struct {
	clock func() time.Time
	// kept is the history; nil keeps none.
	kept *history.Store
	// warn is told of records that cannot be written.
	warn    func(error)
	temp    string         // the folder of temporary files; empty is the system's
	writing sync.WaitGroup // for records, and their traces
	spans   *spans.Store   // what clients send of their own
	// draining is closed when the server ends, and traces wait for nobody any more.
	draining chan struct{}

	mu        sync.Mutex // guards what is below; taken before that of a build
	byRef     map[string]*build
	order     []*build      // oldest first
	refused   []string      // the refs of requests that became no build, oldest first
	changed   chan struct{} // closed and made anew when a build comes or ends or goes
	listeners map[*listener]bool
	traces    map[string]*tracing // of records that have none yet, by ref
}

// build is a build as the daemon knows it.
type build struct {
	ref     string
	request *controlapi.SolveRequest
	temp    string // as builds has it

	mu       sync.Mutex // guards what is below
	record   *controlapi.BuildHistoryRecord
	statuses []*client.SolveStatus
	dropped  int       // how many statuses were there before the first one in memory
	older    *overflow // those, or the first of them; nil where there are none
	users    int       // who may read older: the build itself, and watchers
	logged   int       // bytes of output in statuses
	done     bool
	news     chan struct{} // closed and made anew with every status
	steps    steps
	trace    traceParent
	claim    *spans.Claim // of the client's trace; nil is none

	recorded chan struct{} // closed when the history has it
}

// newBuilds takes where to keep records (nil keeps none), and whom to tell where
// one cannot be written.
func newBuilds(clock func() time.Time, kept *history.Store, warn func(error)) *builds {
	return &builds{
		clock: clock, kept: kept, warn: warn,
		byRef: make(map[string]*build), changed: make(chan struct{}), listeners: make(map[*listener]bool),
		spans: spans.NewStore(clock), draining: make(chan struct{}), traces: make(map[string]*tracing),
	}
}

// add begins a build. A ref names one build.
func (j *builds) add(req *controlapi.SolveRequest) (*build, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.byRef[req.Ref]; ok {
		return nil, fault.New(codes.AlreadyExists, fmt.Sprintf("job ID %s exists", req.Ref))
	}
	n := &build{ref: req.Ref, request: req, temp: j.temp, users: 1, news: make(chan struct{}), recorded: make(chan struct{})}
	n.record = newRecord(req, j.clock())
	j.byRef[req.Ref] = n
	j.order = append(j.order, n)
	if !req.Internal {
		j.tell(controlapi.BuildHistoryEventType_STARTED, n.snapshot())
	}
	j.bump()
	return n, nil
}

// refuse notes that a request became no build, so that its watcher, whom the client
// waits for before it shows the reason, does not wait for one.
func (j *builds) refuse(ref string) {
	if len(ref) > maxRef {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.refused = append(j.refused, ref)
	if len(j.refused) > maxRefused {
		j.refused = j.refused[1:]
	}
	j.bump()
}

// nothing is what a request that was refused has to show.
type nothing struct{}

func (nothing) watch(context.Context, func(*controlapi.StatusResponse) error) error { return nil }

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
		defer n.letGo()
		if j.kept == nil || n.request.Internal {
			j.forget(n, nil, nil)
			return
		}
		t := n.tracing()
		r, err := j.record(n, t, result, err)
		if err != nil {
			j.warn(err)
		}
		if t.claim != nil && r == nil {
			t.claim.Release()
			t.claim = nil
		}
		j.forget(n, r, t)
		if t.claim != nil {
			j.writing.Go(func() { j.follow(t) })
		}
		gone, err := j.kept.Collect()
		if err != nil {
			j.warn(err)
		}
		j.tellGone(gone)
	})
}

// forget takes a build out of those under way, now that r is its record in the
// history; nil is none. Its trace may be written later.
func (j *builds) forget(n *build, r *controlapi.BuildHistoryRecord, t *tracing) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.traces, n.ref) // of a build that had the ref before
	if t != nil && t.claim != nil {
		j.traces[n.ref] = t
	}
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

// watched is a build as one of those who watch it sees it, once.
type watched interface {
	watch(ctx context.Context, send func(*controlapi.StatusResponse) error) error
}

// find gives a build that is here or in the history, or comes within a moment.
func (j *builds) find(ctx context.Context, ref string) (watched, error) {
	timeout := time.NewTimer(arrival)
	defer timeout.Stop()
	for {
		j.mu.Lock()
		n, changed, refused := j.byRef[ref], j.changed, slices.Contains(j.refused, ref)
		if n != nil {
			n.hold() // before it is forgotten, and lets go itself
		}
		j.mu.Unlock()
		if n != nil {
			return held{n}, nil
		}
		if j.kept != nil {
			if r, ok := j.kept.Get(ref); ok {
				return ended{j.kept, r}, nil
			}
		}
		if refused {
			return nothing{}, nil
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
		n.overflow(n.statuses[0])
		n.statuses = n.statuses[1:]
		n.dropped++
	}
	close(n.news)
	n.news = make(chan struct{})
}

// overflow puts the oldest status that is in memory on the disk. n.mu is held.
func (n *build) overflow(s *client.SolveStatus) {
	if n.older == nil && n.dropped == 0 {
		var err error
		if n.older, err = newOverflow(n.temp); err != nil {
			return // a disk without room keeps no build from going on
		}
	}
	if n.older != nil {
		n.older.add(s)
	}
}

// noted is what was noted of a build from a position on.
type noted struct {
	older    io.Reader // what is on the disk; nil is nothing
	statuses []*client.SolveStatus
	next     int             // the position behind
	more     <-chan struct{} // closed when there is more; nil where there will be none
}

// held is a build with a hold on it, which watching it ends.
type held struct{ *build }

func (h held) watch(ctx context.Context, send func(*controlapi.StatusResponse) error) error {
	defer h.letGo()
	return h.build.watch(ctx, send)
}

// hold keeps what is on the disk, until letGo.
func (n *build) hold() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.users++
}

func (n *build) letGo() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.users--; n.users == 0 {
		n.older.close()
		n.older = nil
	}
}

// after gives what was noted from a position on.
func (n *build) after(pos int) noted {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out noted
	if pos < n.dropped {
		out.older = n.older.from(pos)
		pos = n.dropped
	}
	out.statuses = slices.Clone(n.statuses[pos-n.dropped:])
	out.next = pos + len(out.statuses)
	if !n.done {
		out.more = n.news
	}
	return out
}

// send gives all that was noted.
func (n *build) send(what noted, to func(*controlapi.StatusResponse) error) error {
	if what.older != nil {
		err := history.ReadStatuses(what.older, to)
		if err != nil {
			return err
		}
	}
	for _, s := range joined(what.statuses) {
		for _, m := range s.Marshal() {
			if err := to(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// watch sends all that happens in a build, from its beginning to its end. Somebody
// holds the build.
func (n *build) watch(ctx context.Context, send func(*controlapi.StatusResponse) error) error {
	for pos := 0; ; {
		part := n.after(pos)
		pos = part.next
		if err := n.send(part, send); err != nil {
			return err
		}
		if part.more == nil {
			return nil
		}
		select {
		case <-part.more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// joined makes few statuses of many, since each is a message to the client. Output is cut
// into several here, in its order with the steps' ends: where one is too long for a
// message, BuildKit's package sends all the ends that came with it before the rest.
func joined(all []*client.SolveStatus) []*client.SolveStatus {
	out := []*client.SolveStatus{{}}
	size := 0
	for _, s := range all {
		last := out[len(out)-1]
		if size > maxJoined {
			last, size = &client.SolveStatus{}, 0
			out = append(out, last)
		}
		last.Vertexes = append(last.Vertexes, s.Vertexes...)
		last.Statuses = append(last.Statuses, s.Statuses...)
		last.Logs = append(last.Logs, s.Logs...)
		last.Warnings = append(last.Warnings, s.Warnings...)
		for _, l := range s.Logs {
			size += len(l.Data)
		}
	}
	return out
}
