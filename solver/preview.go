package solver

import (
	"context"
	"io"

	"github.com/kiln-build/kiln/cache"
)

// Peeker is what a worker is besides, where it can say what would happen without
// bringing anything in. Both methods report false for what they would have to
// fetch, or run, to know.
type Peeker interface {
	// Standing gives the output of a source.
	Standing(ctx context.Context, job *Job) (cache.ChainID, bool, error)
	// Peek is Worker.Content.
	Peek(ctx context.Context, job *Job, input int) (cache.ContentID, bool, error)
}

// Preview looks up what Solve would, and runs nothing: the report says what would
// be run. Sources are pinned. A worker that is no Peeker leaves open what a lookup
// by content would find. Request.Observe hears of pins only.
func (s *Solver) Preview(ctx context.Context, r Request) error {
	b, err := s.open(r)
	if err != nil {
		return err
	}
	defer s.finish(b)
	p := newPlan(r.Edges)
	if err := s.pinAll(ctx, b, p); err != nil {
		return err
	}
	p.makeKeys()
	s.mu.Lock()
	s.planning++
	s.mu.Unlock()
	err = s.lookUp(ctx, b, p)
	s.mu.Lock()
	s.planned()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	for i := range p.nodes {
		if n := &p.nodes[i]; n.found == miss || n.found == shared {
			if err := s.preview(ctx, b, p, n); err != nil {
				return err
			}
		}
	}
	p.unneed()
	if r.Report != nil {
		r.Report(s.report(b, p))
	}
	return nil
}

// preview says what would become of a node whose inputs have been gone through.
func (s *Solver) preview(ctx context.Context, b *build, p *plan, n *node) error {
	worker, _ := s.worker.(Peeker)
	job := &Job{
		Vertex: n.vertex, Pin: n.pin, Inputs: make([]cache.ChainID, len(n.inputs)), Lease: b.lease,
		Sessions: func() []SessionID { return []SessionID{b.session.id} },
		Log:      func(int) io.Writer { return io.Discard },
		Progress: func(Progress) {}, Warn: func(string) {},
	}
	n.preview = WouldRun
	if n.vertex.Kind() == "source" {
		if worker == nil {
			return nil
		}
		chain, ok, err := worker.Standing(ctx, job)
		if err != nil {
			return vertexError(n.vertex, err)
		}
		if ok {
			b.lease.Hold(chain)
			n.outputs = []cache.ChainID{chain}
		}
		return nil
	}
	known := worker != nil
	edges := n.vertex.Inputs()
	for k, in := range n.inputs {
		from := &p.nodes[in]
		if from.outputs == nil {
			known = false
			continue
		}
		job.Inputs[k] = from.outputs[edges[k].Output]
	}
	if always(n.vertex) || len(n.inputs) == 0 {
		return nil
	}
	for k := 0; known && k < len(n.inputs); k++ {
		id, ok, err := worker.Peek(ctx, job, k)
		if err != nil {
			return vertexError(n.vertex, err)
		}
		n.contents = append(n.contents, id)
		known = ok
	}
	if !known {
		n.contents, n.preview = nil, MightRun
		return nil
	}
	key := contentKey(n.op, n.contents)
	r, err := s.lookUpRecord(n.vertex, key, b.session.id)
	if err == nil && p.lacks(n.vertex, r.Outputs) {
		err = lacking(key)
	}
	if err != nil {
		n.why += "; by content: " + missReason(err)
		return nil
	}
	n.found, n.outputs, n.preview = hit, r.Outputs, Pending
	n.why = "what it reads is as it was before"
	n.by = &answered{basis: ByContent, key: key, from: r.From}
	b.hold(r.Outputs)
	return nil
}

// unneed goes down from the targets once more: what only hits would have read is
// not needed after all.
func (p *plan) unneed() {
	need := make([]bool, len(p.nodes))
	for _, t := range p.targets {
		if t.node >= 0 {
			need[t.node] = true
		}
	}
	for i := len(p.nodes) - 1; i >= 0; i-- {
		n := &p.nodes[i]
		if !need[i] {
			if n.found != hit {
				n.found, n.preview = unvisited, Pending
			}
			continue
		}
		if n.found == hit {
			continue
		}
		for _, in := range n.inputs {
			need[in] = true
		}
	}
}
