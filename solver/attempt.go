package solver

import (
	"context"
	"errors"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// attempt is a build's wanting the tasks of its plan. A build makes another one
// when a layer turned out to be gone. Its fields are guarded by Solver.mu.
type attempt struct {
	build *build
	plan  *plan
	tasks []*task // all that it wants
	left  int     // how many of them are not solved
	// err ends the attempt. Where it wraps a *cache.GoneError there is another.
	err error
	// ended is closed when left is 0 or err is set.
	ended    chan struct{}
	finished bool
	// stopping counts the tasks that are being cancelled because this attempt, the
	// last that wanted them, has gone; quiet is closed when it is 0 after that.
	stopping int
	gone     bool
	quiet    chan struct{}

	foresight foresight
}

func newAttempt(b *build, p *plan) *attempt {
	return &attempt{build: b, plan: p, ended: make(chan struct{}), quiet: make(chan struct{})}
}

func (a *attempt) end() {
	if !a.finished {
		a.finished = true
		close(a.ended)
	}
}

// oneSolved counts a task that is solved.
func (a *attempt) oneSolved() {
	if a.left--; a.left == 0 {
		a.end()
	}
}

// oneFailed takes the failure of a task; the first one counts.
func (a *attempt) oneFailed(v *llb.Vertex, err error) {
	if a.err == nil {
		a.err = vertexError(v, err)
	}
	a.end()
}

// retry says whether the attempt failed in a way that another one may not.
func (a *attempt) retry() bool {
	var gone *cache.GoneError
	return errors.As(a.err, &gone)
}

// oneStopped counts a task that was cancelled and has come to its end.
func (a *attempt) oneStopped() {
	if a.stopping--; a.stopping == 0 && a.gone {
		close(a.quiet)
	}
}

// want makes an attempt want a task. s.mu is held.
func (s *Solver) want(a *attempt, t *task, v *llb.Vertex) {
	ours := t.wantedByBuild(a.build) // by an attempt before
	t.wants = append(t.wants, want{attempt: a, vertex: v})
	a.tasks = append(a.tasks, t)
	if t.state == solved {
		a.build.hold(t.outputs)
		if !ours {
			a.build.cameLate(t)
		}
		a.build.watch.cached(v, s.o.Clock(), "another build has just run it")
		return
	}
	a.left++
	if t.state == running {
		s.runs(a, t)
		// The build comes late: tell it what the others have seen.
		if a.build.watch.started(v, t.started, t.why) {
			t.work.log.replay(a.build.watch, v)
		}
	}
}

// leave ends an attempt's wanting. Tasks that nobody wants then are dropped, and
// cancelled for the given cause where a worker is at them. s.mu is held.
func (s *Solver) leave(a *attempt, cause error) {
	if a.gone {
		return
	}
	a.gone = true
	a.stopFetching(nil)
	if a.err == nil && a.left > 0 {
		a.err = cause
	}
	a.end()
	for _, t := range a.tasks {
		s.unwant(t, a, cause)
	}
	a.tasks = nil
	if a.stopping == 0 {
		close(a.quiet)
	}
}

func (s *Solver) unwant(t *task, a *attempt, cause error) {
	w := t.wantedBy(a)
	if w == nil {
		return // it was dropped or has failed
	}
	if len(t.wants) == 1 {
		t.last = sessionsOf(t.wants)
	}
	vertex := w.vertex
	*w = t.wants[len(t.wants)-1]
	t.wants[len(t.wants)-1] = want{}
	t.wants = t.wants[:len(t.wants)-1]
	if t.state == running && !t.wantedByBuild(a.build) {
		a.build.watch.completed(vertex, t.started, s.o.Clock(), context.Canceled)
	}
	if len(t.wants) > 0 {
		return
	}
	switch t.state {
	case toIdentify, toRun:
		s.unqueue(t)
		s.drop(t)
	case waiting:
		s.drop(t)
	case identifying, running:
		t.state = stopping
		t.work.stopper = a
		a.stopping++
		s.remove(t)
		t.work.cancel(cause)
	case solved:
		// Somebody who looks things up at this moment may have missed the record
		// by a hair, and counts on the task.
		if s.planning > 0 {
			s.kept = append(s.kept, t)
			return
		}
		s.remove(t)
	}
}

// planned ends a lookup that was begun by counting s.planning up. s.mu is held.
func (s *Solver) planned() {
	if s.planning--; s.planning > 0 {
		return
	}
	for _, t := range s.kept {
		if len(t.wants) == 0 {
			s.remove(t)
		}
	}
	s.kept = nil
}

func sessionsOf(wants []want) []SessionID {
	out := make([]SessionID, 0, len(wants))
	for _, w := range wants {
		id := w.attempt.build.session.id
		known := false
		for _, o := range out {
			known = known || o == id
		}
		if !known {
			out = append(out, id)
		}
	}
	return out
}
