package solver

import (
	"context"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// task is a vertex that is being solved, for all the builds that want it. Fields
// above the blank line are set when it is made; those below are guarded by
// Solver.mu. Whoever wants a task wants the unsolved tasks that it reads too.
type task struct {
	vertex *llb.Vertex // as the build that made the task has it
	op     opKey
	pin    string
	dk     cache.Key
	share  cache.Key
	fresh  bool
	why    string // why there was no record under dk
	seq    uint64
	inputs []input
	needs  []cache.Key // definition keys of inputs, for the record

	state   state
	ahead   time.Duration
	place   int // in the queue
	pending int // inputs that are not solved
	readers []*task
	wants   []want
	// outputs, by and took are set when the task is solved: by is what answered, nil
	// if it ran, and took how long it ran then.
	outputs []cache.ChainID
	by      *answered
	took    time.Duration
	// contents are what the vertex sees of its inputs, once identified.
	contents []cache.ContentID

	depth   int       // how many build ops the task is inside of
	started time.Time // when Run was called; zero before
	work    *work     // nil before a worker has begun with it, and when it has ended
	// last are the sessions that wanted the task when somebody last did, for a
	// worker that asks while it is being stopped.
	last []SessionID
}

// work is what there is of a task only while workers are at it: a graph has far
// more tasks than are at work. Solver.mu guards it, but for ctx, which the worker
// reads.
type work struct {
	ctx    context.Context // of the worker's calls
	cancel context.CancelCauseFunc
	log    backlog
	nested []*attempt // at the graphs that the task makes
	// stopper is the attempt that waits for a task that is stopping.
	stopper *attempt
}

// input is one input of a task: an output of another task, or, where there is
// none, a chain that was known when the task was made.
type input struct {
	task   *task
	output int
	chain  cache.ChainID
}

// want is one build's wanting a task, under its own name for it.
type want struct {
	attempt *attempt
	vertex  *llb.Vertex
}

// state is where a task stands.
type state uint8

const (
	// waiting: inputs are not solved. The last of them to be makes it toIdentify,
	// or toRun where there is nothing to look up. A failed one makes it dropped.
	waiting state = iota
	// toIdentify: in the queue of classTree. A worker makes it identifying.
	toIdentify
	// identifying: a worker finds out what the vertex sees of its inputs, and looks
	// for a record under the content key. A hit makes it solved, a miss toRun, or
	// running at once if its class is that of lookups, an error failed.
	identifying
	// toRun: in the queue of its class. A worker makes it running.
	toRun
	// running: the worker runs it, which makes it solved or failed.
	running
	// stopping: nobody wants it, and what a worker does for it is being cancelled.
	// When that has ended it is dropped.
	stopping
	// solved: its outputs are known. It stays among the tasks while a build that
	// wanted it goes on, unless it is fresh.
	solved
	// failed: the builds that wanted it were told.
	failed
	// dropped: nobody wanted it, or something that it reads failed.
	dropped
)

// class says in which queue a task is that is ready.
func (t *task) class() class {
	if t.state == toIdentify || t.state == identifying {
		return classTree
	}
	switch t.vertex.Kind() {
	case "exec":
		return classExec
	case "source":
		return classSource
	case "build":
		return classBuild
	default:
		return classTree
	}
}

// wantedBy finds the want of an attempt; nil is none.
func (t *task) wantedBy(a *attempt) *want {
	for i := range t.wants {
		if t.wants[i].attempt == a {
			return &t.wants[i]
		}
	}
	return nil
}

// wantedByBuild says whether any attempt of a build wants the task.
func (t *task) wantedByBuild(b *build) bool {
	for _, w := range t.wants {
		if w.attempt.build == b {
			return true
		}
	}
	return false
}

// ready makes a task whose inputs are solved ready for a worker. s.mu is held.
func (s *Solver) ready(t *task) {
	for i, in := range t.inputs {
		if in.task != nil {
			// A solved task's memory need not last as long as those who read it.
			t.inputs[i] = input{chain: in.task.outputs[in.output]}
		}
	}
	t.state = toIdentify
	if len(t.inputs) == 0 {
		t.state = toRun
	}
	s.push(t)
}

// begin notes that a worker takes t from its queue, and says for what. s.mu is held.
func (s *Solver) begin(t *task) state {
	if t.work == nil {
		t.work = new(work)
		t.work.ctx, t.work.cancel = context.WithCancelCause(s.base)
	}
	switch t.state {
	case toIdentify:
		t.state = identifying
	case toRun:
		s.start(t)
	}
	return t.state
}

// start makes t running and tells who wants it. s.mu is held.
func (s *Solver) start(t *task) {
	t.state = running
	t.started = s.o.Clock()
	for _, w := range t.wants {
		w.attempt.build.watch.started(w.vertex, t.started, t.why)
		s.runs(w.attempt, t)
	}
}

// solve ends a task well. by is empty if it ran, and says what answered otherwise.
// It reports false, and does nothing, where what answered lacks what is asked for.
func (s *Solver) solve(t *task, outputs []cache.ChainID, by answered) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped(t) {
		return true
	}
	for _, w := range t.wants {
		if w.attempt.plan.lacks(w.vertex, outputs) {
			return false
		}
	}
	t.rest()
	t.state, t.outputs = solved, outputs
	t.inputs, t.needs = nil, nil
	now := s.o.Clock()
	if by.basis != NoBasis {
		hit := by // what ran, as most does, makes no copy on the heap
		t.by, t.why, t.contents = &hit, "what it reads is as it was before", by.contents
	} else {
		t.took = now.Sub(t.started)
	}
	for _, w := range t.wants {
		w.attempt.stopFetching(t)
		w.attempt.build.hold(outputs)
		if t.fresh {
			w.attempt.build.session.results[t.share] = ran{outputs, t.started}
		}
		if by.basis != NoBasis {
			w.attempt.build.watch.cached(w.vertex, now, t.why)
		} else {
			w.attempt.build.watch.completed(w.vertex, t.started, now, nil)
		}
	}
	readers := t.readers
	t.readers = nil
	for _, r := range readers {
		if r.state != waiting {
			continue
		}
		switch r.pending--; {
		case r.pending == 0:
			s.ready(r)
		case t.vertex.Kind() == "source" || by.basis != NoBasis:
			s.foresee(r) // what ran here is here
		}
	}
	if t.fresh {
		// Who asks for it from now on asks for another run.
		s.remove(t)
	}
	for _, w := range t.wants {
		w.attempt.oneSolved()
	}
	return true
}

// fail ends a task badly, and with it every attempt that wants it, unless a layer
// is gone: then the attempts are made anew.
func (s *Solver) fail(t *task, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped(t) {
		return
	}
	t.rest()
	s.dropReaders(t)
	t.state = failed
	s.remove(t)
	now := s.o.Clock()
	wants := t.wants
	t.wants, t.inputs = nil, nil
	for _, w := range wants {
		if !t.started.IsZero() {
			w.attempt.build.watch.completed(w.vertex, t.started, now, err)
		}
		w.attempt.oneFailed(w.vertex, err)
		if !w.attempt.retry() {
			// At once, so that nothing more is started for it.
			s.leave(w.attempt, w.attempt.err)
		}
	}
}

// dropReaders drops what reads a task that failed, directly and not: it will never
// be ready. s.mu is held.
func (s *Solver) dropReaders(t *task) {
	stack := t.readers
	t.readers = nil
	for len(stack) > 0 {
		r := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if r.state != waiting {
			continue
		}
		stack = append(stack, r.readers...)
		s.drop(r)
	}
}

// drop ends a task that is not at work. s.mu is held.
func (s *Solver) drop(t *task) {
	t.state = dropped
	t.readers, t.inputs, t.wants = nil, nil, nil
	t.rest()
	s.remove(t)
}

// rest notes that no worker is at t any more. s.mu is held.
func (t *task) rest() {
	if t.work != nil {
		t.work.cancel(nil)
		t.work = nil
	}
}

// remove takes t out of the tasks that can be joined. s.mu is held.
func (s *Solver) remove(t *task) {
	if s.tasks[t.share] == t {
		delete(s.tasks, t.share)
	}
}

// stopped ends a task that is stopping, and says whether it was. s.mu is held.
func (s *Solver) stopped(t *task) bool {
	if t.state != stopping {
		return false
	}
	t.state = dropped
	t.inputs = nil
	t.work.stopper.oneStopped()
	t.rest()
	return true
}
