package solver

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/kiln-build/kiln/cache"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sync/errgroup"
)

// identify finds out what a task's vertex sees of its inputs, and ends the task if
// there is a record of that. Otherwise the task is run, by this goroutine if it has
// the place for it.
func (s *Solver) identify(t *task) {
	contents, err := s.contents(t)
	if err != nil {
		s.fail(t, err)
		return
	}
	why := t.why
	if !always(t.vertex) {
		key := contentKey(t.op, contents)
		r, err := s.lookUpRecord(t.vertex, key, s.wanting(t)...)
		if err == nil {
			s.aliasRecord(t, r)
			if s.solve(t, r.Outputs, answered{ByContent, key, r.From, contents}) {
				return
			}
			err = lacking(key)
		}
		why += "; by content: " + missReason(err)
	}
	s.mu.Lock()
	if s.stopped(t) {
		s.mu.Unlock()
		return
	}
	t.contents, t.why = contents, why
	t.state = toRun
	if t.class() != classTree {
		s.push(t)
		s.mu.Unlock()
		return
	}
	s.start(t)
	s.mu.Unlock()
	s.run(t)
}

// contents asks the worker what the vertex sees of each input.
func (s *Solver) contents(t *task) ([]cache.ContentID, error) {
	out := make([]cache.ContentID, len(t.inputs))
	job := s.job(t)
	if len(out) == 1 {
		return out, s.content(t.work.ctx, job, 0, out)
	}
	group, ctx := errgroup.WithContext(t.work.ctx)
	group.SetLimit(2 * runtime.GOMAXPROCS(0))
	for i := range out {
		group.Go(func() error { return s.content(ctx, job, i, out) })
	}
	return out, group.Wait()
}

func (s *Solver) content(ctx context.Context, job *Job, i int, out []cache.ContentID) error {
	id, err := guarded(func() (cache.ContentID, error) { return s.worker.Content(ctx, job, i) })
	out[i] = id
	return err
}

// aliasRecord makes the definition key lead to a record that was found by content.
// That it cannot be stored costs the next build a lookup, and no more.
func (s *Solver) aliasRecord(t *task, r cache.Record) {
	if err := s.cache.Store(r, t.dk); err != nil {
		s.warn(t, fmt.Sprintf("the record of %s was not stored: %v", t.vertex.Name(), err))
	}
}

// run runs a task and makes the record of it.
func (s *Solver) run(t *task) {
	lease := s.o.Lease()
	defer lease.Release()
	outputs, err := guarded(func() ([]cache.ChainID, error) { return s.outputs(t, lease) })
	if err == nil && len(outputs) != t.vertex.Outputs() {
		err = fmt.Errorf("the worker gave %d outputs of %d", len(outputs), t.vertex.Outputs())
	}
	if err != nil {
		s.fail(t, err)
		return
	}
	for _, c := range outputs {
		lease.Hold(c)
	}
	s.record(t, outputs)
	s.solve(t, outputs, answered{})
}

// job gives what the worker is told of a task whose inputs are solved.
func (s *Solver) job(t *task) *Job {
	job := &Job{
		Vertex:   t.vertex,
		Pin:      t.pin,
		Inputs:   make([]cache.ChainID, len(t.inputs)),
		Sessions: func() []SessionID { return s.wanting(t) },
		Log: func(stream int) io.Writer {
			return writerFunc(func(data []byte) { s.log(t, stream, data) })
		},
		Warn: func(text string) { s.warn(t, text) },
	}
	for i, in := range t.inputs {
		job.Inputs[i] = in.chain
	}
	return job
}

// wanting gives the builds that want a task, or that did last.
func (s *Solver) wanting(t *task) []SessionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(t.wants) == 0 {
		return t.last
	}
	return sessionsOf(t.wants)
}

// outputs runs the vertex. A passthrough has nothing to run.
func (s *Solver) outputs(t *task, lease Lease) ([]cache.ChainID, error) {
	job := s.job(t)
	job.Lease, job.Progress = lease, func(p Progress) { s.progress(t, p) }
	if o, ok := t.vertex.Op().Op.(*pb.Op_Passthrough); ok {
		out := make([]cache.ChainID, len(o.Passthrough.Outputs))
		for i, in := range o.Passthrough.Outputs {
			out[i] = job.Inputs[in]
		}
		return out, nil
	}
	return s.worker.Run(t.nesting(), job)
}

// record stores what a task gave under both its keys. Sources have no records: their
// pins are their memory. Neither have build ops, see always. A cache that cannot be
// written is a warning: the result is there.
func (s *Solver) record(t *task, outputs []cache.ChainID) {
	took := s.since(t.started)
	s.remember(t, took)
	if !recorded(t.vertex) {
		return
	}
	r := cache.Record{
		Outputs:  outputs,
		Name:     t.vertex.Name(),
		Vertex:   t.vertex.Digest(),
		Inputs:   t.contents,
		Needs:    t.needs,
		Created:  s.o.Clock(),
		Duration: took,
	}
	keys := []cache.Key{t.dk}
	if len(t.contents) > 0 {
		keys = append(keys, contentKey(t.op, t.contents))
	}
	if err := s.cache.Store(r, keys...); err != nil {
		s.warn(t, fmt.Sprintf("the record of %s was not stored: %v", t.vertex.Name(), err))
	}
}

// guarded calls the worker, and makes an error of a panic.
func guarded[T any](f func() (T, error)) (out T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{value: p, stack: debug.Stack()}
		}
	}()
	return f()
}

func (s *Solver) log(t *task, stream int, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.state != running {
		return
	}
	now := s.o.Clock()
	t.work.log.add(now, stream, data)
	for _, w := range t.wants {
		w.attempt.build.watch.log(w.vertex, now, stream, data)
	}
}

func (s *Solver) progress(t *task, p Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock()
	for _, w := range t.wants {
		w.attempt.build.watch.progress(w.vertex, now, p)
	}
}

func (s *Solver) warn(t *task, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock()
	for _, w := range t.wants {
		w.attempt.build.watch.warn(w.vertex, now, text)
	}
}
