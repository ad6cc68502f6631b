package solver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// Request is what Solve is to do. Only Edges has to be set.
type Request struct {
	// Session is the build that asks. Within a session a source is pinned once, and
	// what ignores the cache runs once, however often Solve is called, until
	// EndSession, which must be called: it releases what holds the pinned trees. It
	// begins with BeginSession, or else with its first call. The empty Session is one
	// of its own for each call, and ends with it.
	Session SessionID
	// Edges are what is wanted; scratch may be among them.
	Edges []llb.Edge
	// Lease holds every chain that Solve finds or makes, so that the caller can use
	// them until it releases it. Nil makes one that lasts as long as the call.
	Lease Lease
	// Observe is given the events of the build, in order and one at a time, on a
	// goroutine that has ended when Solve returns. While it does not return, events
	// wait in a queue, from which output beyond a bound is left out with a notice.
	Observe func(Event)
	// Report is called once, before Solve returns, with what became of all that
	// Edges reach, inputs first; not where that did not become known. Nil costs nothing.
	Report func([]Step)
}

// build is a call of Solve.
type build struct {
	session *session
	lease   Lease
	own     bool // whether lease is to be released when the call ends
	watch   *watch
	// parent is the build op that makes the graph; nil where none does. depth is how
	// many build ops the graph is inside of.
	parent *task
	depth  int
	// marking guards the found states of nodes that a level of a lookup marks.
	marking sync.Mutex
	// targets are the tasks of the plan's targets; nil where the node was a hit.
	targets []*task
	byShare map[cache.Key]*llb.Vertex // made when first needed

	// For reports: the tasks of the plan's nodes, nil where there is none; those
	// that were solved when the build came to want them; and how long tasks of
	// earlier attempts took, by share key. Guarded by Solver.mu.
	tasks []*task
	late  map[*task]bool
	ran   map[cache.Key]time.Duration
}

// session is what a session remembers. Its fields are guarded by Solver.mu.
type session struct {
	id    SessionID
	began time.Time
	pins  map[llb.Digest]*pinning
	// results are of vertices that were run whatever the cache held, by share key.
	results map[cache.Key]ran
	// leases hold what pins were made of. They are released when the session has
	// ended and no call of Solve is under way in it.
	leases []Lease
	calls  int
	ended  bool
}

// ran is what a vertex gave that was run whatever the cache held.
type ran struct {
	outputs []cache.ChainID
	at      time.Time // when it was begun
}

func (b *build) hold(chains []cache.ChainID) {
	for _, c := range chains {
		b.lease.Hold(c)
	}
}

// vertexOf gives the vertex of the build's plan that a task solves.
func (b *build) vertexOf(p *plan, t *task) *llb.Vertex {
	if b.byShare == nil {
		b.byShare = make(map[cache.Key]*llb.Vertex, len(p.nodes))
		for i := range p.nodes {
			b.byShare[p.nodes[i].share] = p.nodes[i].vertex
		}
	}
	if v, ok := b.byShare[t.share]; ok {
		return v
	}
	return t.vertex
}

// found notes which tasks solve the targets.
func (b *build) found(p *plan, tasks []*task) {
	b.tasks = tasks
	b.targets = make([]*task, len(p.targets))
	for i, t := range p.targets {
		if t.node >= 0 {
			b.targets[i] = tasks[t.node]
		}
	}
}

// Solve gives the file systems that edges stand for. Its error is a *VertexError,
// or the cause of ctx's end. When it returns, nothing that it alone wanted is
// running any more.
//
// When a *cache.GoneError says that a layer of a result is not there after all,
// the caller hands the layer to ForgetLayer and calls Solve again.
func (s *Solver) Solve(ctx context.Context, r Request) ([]cache.ChainID, error) {
	b, err := s.open(r)
	if err != nil {
		return nil, err
	}
	defer s.finish(b)
	if err := b.nest(ctx); err != nil {
		return nil, err
	}
	p := newPlan(r.Edges)
	if err := s.pinAll(ctx, b, p); err != nil {
		return nil, err
	}
	p.makeKeys()
	err = s.solvePlan(ctx, b, p)
	if r.Report != nil {
		r.Report(s.report(b, p))
	}
	if err != nil {
		return nil, err
	}
	out := make([]cache.ChainID, len(p.targets))
	for i, t := range p.targets {
		switch {
		case t.node < 0: // scratch
		case b.targets[i] != nil:
			out[i] = b.targets[i].outputs[t.output]
		default:
			out[i] = p.nodes[t.node].outputs[t.output]
		}
	}
	return out, nil
}

func (s *Solver) open(r Request) (*build, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	s.solves.Add(1)
	b := &build{lease: r.Lease, session: s.sessions[r.Session]}
	if b.lease == nil {
		b.lease, b.own = s.o.Lease(), true
	}
	if b.session == nil {
		b.session = s.newSession(r.Session)
	}
	b.session.calls++
	b.watch = newWatch(r.Observe)
	return b, nil
}

// newSession makes a session that lasts until EndSession, or, without a name, for a
// call. s.mu is held.
func (s *Solver) newSession(id SessionID) *session {
	sn := &session{
		id: id, began: s.o.Clock(), ended: id == "",
		pins: make(map[llb.Digest]*pinning), results: make(map[cache.Key]ran),
	}
	if id != "" {
		s.sessions[id] = sn
	}
	s.live[sn] = struct{}{}
	return sn
}

// ranFor finds a run of a vertex that may not use the cache: in the build's session, or
// in another that has not ended, where it was begun when the build's had begun. So builds
// that run side by side share it, whichever of them comes to it first; and those that
// linked targets of a bake file are can count on the secrets of the one that has them.
// s.mu is held.
func (s *Solver) ranFor(b *build, key cache.Key) (r ran, by Basis) {
	if r, ok := b.session.results[key]; ok {
		return r, BySession
	}
	for _, sn := range s.sessions {
		if r, ok := sn.results[key]; ok && !r.at.Before(b.session.began) {
			return r, ByAnother
		}
	}
	return ran{}, NoBasis
}

func (s *Solver) finish(b *build) {
	b.watch.close()
	if b.own {
		b.lease.Release()
	}
	s.mu.Lock()
	b.session.calls--
	leases := s.endIfDone(b.session)
	s.mu.Unlock()
	releaseAll(leases)
	s.solves.Done()
}

// endIfDone gives the leases of a session, if it is over. s.mu is held.
func (s *Solver) endIfDone(sn *session) []Lease {
	if !sn.ended || sn.calls > 0 {
		return nil
	}
	delete(s.live, sn)
	leases := sn.leases
	sn.leases = nil
	return leases
}

func releaseAll(leases []Lease) {
	for _, l := range leases {
		l.Release()
	}
}

// BeginSession makes a session: what ignores the cache and is run in another from now
// on need not run in this one again.
func (s *Solver) BeginSession(id SessionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && id != "" && s.sessions[id] == nil {
		s.newSession(id)
	}
}

// EndSession forgets what was pinned and run for a session. Calls of Solve that
// are under way are not disturbed.
func (s *Solver) EndSession(id SessionID) {
	s.mu.Lock()
	sn := s.sessions[id]
	if sn == nil {
		s.mu.Unlock()
		return
	}
	delete(s.sessions, id)
	sn.ended = true
	leases := s.endIfDone(sn)
	s.mu.Unlock()
	releaseAll(leases)
}

// How often a build goes back for layers that are gone: for the same one, which
// says that going back does not help, and for any.
const (
	maxGoneSame = 5
	maxGone     = 64
)

// solvePlan looks up, joins and waits, until all targets are solved.
func (s *Solver) solvePlan(ctx context.Context, b *build, p *plan) (err error) {
	var a *attempt
	var all []*attempt
	defer func() {
		if a != nil {
			s.mu.Lock()
			s.leave(a, err)
			s.mu.Unlock()
		}
		for _, a := range all {
			<-a.quiet
			s.fetched(a)
		}
	}()
	gone := make(map[cache.LayerID]int)
	for {
		next, err := s.lookUpAndJoin(ctx, b, p, a)
		if err != nil {
			return err
		}
		a = next
		all = append(all, a)
		if err = s.await(ctx, a); err == nil {
			return nil
		}
		var g *cache.GoneError
		if !errors.As(err, &g) {
			return err
		}
		if gone[g.Layer]++; gone[g.Layer] > maxGoneSame || len(all) > maxGone {
			return fmt.Errorf("solved %d times over because of layers that are gone: %w", len(all), err)
		}
		b.tellGone(p, err, s.o.Clock())
		if err := s.ForgetLayer(g.Layer); err != nil {
			return fmt.Errorf("forgetting layer %.12s: %w", g.Layer, err)
		}
	}
}

func (s *Solver) lookUpAndJoin(ctx context.Context, b *build, p *plan, old *attempt) (*attempt, error) {
	for {
		s.mu.Lock()
		s.planning++
		p.forgotten = s.forgotten
		s.mu.Unlock()
		if err := s.lookUp(ctx, b, p); err != nil {
			s.mu.Lock()
			s.planned()
			s.mu.Unlock()
			return nil, err
		}
		if a, ok := s.join(b, p, old); ok {
			return a, nil
		}
	}
}

// await waits for the end of an attempt. If ctx ends first, that is its end.
func (s *Solver) await(ctx context.Context, a *attempt) error {
	var cause error
	select {
	case <-a.ended:
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case <-s.base.Done():
		cause = errClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cause != nil && !a.finished {
		s.leave(a, cause)
	}
	return a.err
}
