package solver

import (
	"context"
	"slices"

	"github.com/kiln-build/kiln/cache"
)

// A Fetcher is what a Worker is besides, where chains can be known whose data is
// elsewhere.
type Fetcher interface {
	// Fetch brings here what is missing of a chain that the job's vertex will
	// probably read, and gives way to those who need something now. Its errors are
	// nobody's: who needs the chain meets them again. The job has the vertex and the
	// sessions, no more.
	Fetch(ctx context.Context, job *Job, chain cache.ChainID) error
}

// foresight is what an attempt fetches before somebody reads it. A task that waits for
// one input may know another, an image's layers or those of a remote cache, which it
// need not read if what it waits for turns out to be as it was before. Once a process
// runs, or files are written that one will read, that is unlikely, and there is time:
// from then on, those chains are fetched, one after the other. It is guarded by Solver.mu.
type foresight struct {
	tasks []*task // that wait while they know a chain; in the order in which they came
	begun bool    // a process of the attempt has run, or is to
	busy  bool    // a goroutine fetches
	// now is the task that is fetched for, and cancel ends that.
	now    *task
	cancel context.CancelFunc
	quiet  chan struct{} // closed when busy ends; nil before the first fetch
}

// foresee notes that t waits while it knows a chain that it will read. s.mu is held.
func (s *Solver) foresee(t *task) {
	if k := t.vertex.Kind(); s.fetcher == nil || k != "exec" && k != "file" {
		return
	}
	for _, w := range t.wants {
		f := &w.attempt.foresight
		f.tasks = append(f.tasks, t)
		if f.begun {
			s.fetchAhead(w.attempt)
		}
	}
}

// runs notes that a task runs which an attempt wants. s.mu is held.
func (s *Solver) runs(a *attempt, t *task) {
	k := t.vertex.Kind()
	if k == "exec" || k == "file" && slices.ContainsFunc(t.readers, func(r *task) bool { return r.vertex.Kind() == "exec" }) {
		a.foresight.begun = true
		s.fetchAhead(a)
	}
}

// fetchAhead begins to fetch what an attempt foresees. s.mu is held.
func (s *Solver) fetchAhead(a *attempt) {
	f := &a.foresight
	if f.busy || a.gone || len(f.tasks) == 0 {
		return
	}
	f.busy, f.quiet = true, make(chan struct{})
	s.group.Go(func() {
		for s.fetchNext(a) {
		}
	})
}

// fetchNext fetches for the next task that still waits, and reports false where there
// is none.
func (s *Solver) fetchNext(a *attempt) bool {
	f := &a.foresight
	s.mu.Lock()
	if f.cancel != nil {
		f.cancel()
	}
	f.now, f.cancel = nil, nil
	for f.now == nil && len(f.tasks) > 0 && !a.gone {
		if t := f.tasks[0]; t.state == waiting {
			f.now = t
		}
		f.tasks = f.tasks[1:]
	}
	t := f.now
	if t == nil {
		f.busy = false
		close(f.quiet)
		s.mu.Unlock()
		return false
	}
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(s.base)
	job := &Job{Vertex: t.vertex, Sessions: func() []SessionID { return s.wanting(t) }}
	chains := t.known()
	s.mu.Unlock()
	for _, c := range chains {
		_, _ = guarded(func() (struct{}, error) { return struct{}{}, s.fetcher.Fetch(ctx, job, c) }) // see Fetcher
	}
	return true
}

// known gives the chains that a waiting task knows. Solver.mu is held.
func (t *task) known() []cache.ChainID {
	var chains []cache.ChainID
	for _, in := range t.inputs {
		switch {
		case in.task != nil && in.task.state == solved:
			in.chain = in.task.outputs[in.output]
		case in.task != nil:
			continue
		}
		if in.chain != (cache.ChainID{}) {
			chains = append(chains, in.chain)
		}
	}
	return chains
}

// stopFetching ends what is fetched for t, or for any task where t is nil. s.mu is held.
func (a *attempt) stopFetching(t *task) {
	if f := &a.foresight; f.cancel != nil && (t == nil || t == f.now) {
		f.cancel()
	}
}

// fetched waits until nothing is fetched any more for an attempt that was left.
func (s *Solver) fetched(a *attempt) {
	s.mu.Lock()
	quiet := a.foresight.quiet
	s.mu.Unlock()
	if quiet != nil {
		<-quiet
	}
}
