package solver

import (
	"context"
	"io"
	"time"

	"github.com/kiln-build/kiln/llb"
	"golang.org/x/sync/errgroup"
)

// pinsAtOnce bounds the pins that one build has under way. They wait for
// registries, and for disks when a folder is scanned.
const pinsAtOnce = 64

// pinning is a pin that is being asked for, or is known, in a session. The fields
// below the blank line are set before done is closed; waiters is guarded by Solver.mu.
type pinning struct {
	done    chan struct{}
	cancel  context.CancelCauseFunc
	waiters int

	pin string
	err error
}

// pinAll pins the sources of a plan.
func (s *Solver) pinAll(ctx context.Context, b *build, p *plan) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pinsAtOnce)
	for i := range p.nodes {
		n := &p.nodes[i]
		if n.vertex.Kind() != "source" {
			continue
		}
		group.Go(func() (err error) {
			n.pin, err = s.pin(ctx, b, n.vertex)
			return err
		})
	}
	return group.Wait()
}

// pin gives the pin of a source, asking the worker if the session has not before.
func (s *Solver) pin(ctx context.Context, b *build, v *llb.Vertex) (string, error) {
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	d := v.Digest()
	s.mu.Lock()
	p := b.session.pins[d]
	if p == nil {
		p = &pinning{done: make(chan struct{})}
		var pinCtx context.Context
		pinCtx, p.cancel = context.WithCancelCause(s.base)
		b.session.pins[d] = p
		s.group.Go(func() { s.askPin(pinCtx, b, v, p) })
	}
	p.waiters++
	s.mu.Unlock()

	var err error
	select {
	case <-p.done:
		err = p.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	s.mu.Lock()
	p.waiters--
	last := p.waiters == 0 && err != nil
	if last && b.session.pins[d] == p {
		delete(b.session.pins, d)
	}
	s.mu.Unlock()
	if last {
		p.cancel(err)
		<-p.done
	}
	if err != nil {
		return "", err
	}
	return p.pin, nil
}

// askPin asks the worker.
func (s *Solver) askPin(ctx context.Context, b *build, v *llb.Vertex, p *pinning) {
	started := s.o.Clock()
	b.watch.started(v, started, "")
	lease := s.o.Lease()
	job := &Job{
		Vertex:   v,
		Sessions: func() []SessionID { return []SessionID{b.session.id} },
		Lease:    lease,
		Log: func(stream int) io.Writer {
			return writerFunc(func(data []byte) { b.watch.log(v, s.o.Clock(), stream, data) })
		},
		Progress: func(pr Progress) { b.watch.progress(v, s.o.Clock(), pr) },
		Warn:     func(text string) { b.watch.warn(v, s.o.Clock(), text) },
	}
	pin, err := guarded(func() (string, error) { return s.worker.Pin(ctx, job) })
	if err != nil {
		err = vertexError(v, err)
	}
	told := err
	if err != nil && ctx.Err() != nil {
		told = context.Canceled // what failed is something else
	}
	b.watch.completed(v, started, s.o.Clock(), told)
	p.pin, p.err = pin, err
	p.cancel(nil)
	s.mu.Lock()
	if err == nil {
		// What the pin was made of, a scanned tree for one, is needed when the
		// source is brought in.
		b.session.leases = append(b.session.leases, lease)
	} else if b.session.pins[v.Digest()] == p {
		delete(b.session.pins, v.Digest()) // failures are not remembered
	}
	s.mu.Unlock()
	if err != nil {
		lease.Release()
	}
	close(p.done)
}

// writerFunc is a writer that cannot fail. The function must not keep the bytes.
type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) {
	if len(p) > 0 {
		f(p)
	}
	return len(p), nil
}

// since is how long ago a time was, by the solver's clock.
func (s *Solver) since(t time.Time) time.Duration { return s.o.Clock().Sub(t) }
