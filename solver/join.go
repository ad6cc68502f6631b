package solver

import (
	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// join makes tasks of the nodes that have no answer, or finds those that others
// have made, and makes a new attempt want them, in place of the old one, if any.
// It reports false where a task that the lookup counted on has failed meanwhile, or
// a layer was forgotten: then there is nothing for it but to look again. It ends the planning.
func (s *Solver) join(b *build, p *plan, old *attempt) (*attempt, bool) {
	s.measure(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	need, ok := s.needed(p)
	if !ok || p.forgotten != s.forgotten {
		s.planned()
		return nil, false
	}
	a := newAttempt(b, p)
	tasks := make([]*task, len(p.nodes))
	for i := range p.nodes {
		if !need[i] {
			continue
		}
		n := &p.nodes[i]
		t := s.taskFor(p, n)
		switch {
		case t == nil:
			t = s.newTask(p, n, tasks)
			t.depth = b.depth
			s.want(a, t, n.vertex)
			s.tasks[n.share] = t
			switch {
			case t.pending == 0:
				s.ready(t)
			case t.pending < len(t.inputs):
				s.foresee(t)
			}
		case t.wantedBy(a) == nil:
			s.wantAll(a, p, t, n.vertex)
		}
		if n.ahead > t.ahead && t.state != solved {
			t.ahead = n.ahead
			s.raise(t)
		}
		tasks[i] = t
	}
	s.announce(b, p, a)
	if b.parent != nil {
		if w := b.parent.work; w != nil { // else it has ended without waiting for this
			w.nested = append(w.nested, a)
		}
		if b.parent.waitedForBy(a) {
			s.leave(a, errCircle)
		}
	}
	if old != nil {
		b.keepRan()
		s.leave(old, old.err)
	}
	s.planned()
	b.found(p, tasks)
	if a.left == 0 {
		a.end()
	}
	return a, true
}

// needed goes down from the targets once more, now that nothing changes, and ends
// at answers and at tasks.
func (s *Solver) needed(p *plan) (need []bool, ok bool) {
	need = make([]bool, len(p.nodes))
	for _, t := range p.targets {
		if t.node >= 0 {
			need[t.node] = true
		}
	}
	for i := len(p.nodes) - 1; i >= 0; i-- {
		n := &p.nodes[i]
		if !need[i] {
			continue
		}
		if n.found == hit {
			need[i] = false
			continue
		}
		if s.taskFor(p, n) != nil {
			continue
		}
		if n.found != miss {
			return nil, false
		}
		for _, in := range n.inputs {
			need[in] = true
		}
	}
	return need, true
}

// taskFor finds the task of a node that others have made. One that a record has
// solved which lacks what the plan asks for is none. s.mu is held.
func (s *Solver) taskFor(p *plan, n *node) *task {
	t := s.tasks[n.share]
	if t != nil && t.state == solved && p.lacks(n.vertex, t.outputs) {
		return nil
	}
	return t
}

// newTask makes the task of a node, whose needed inputs have theirs.
func (s *Solver) newTask(p *plan, n *node, tasks []*task) *task {
	s.seq++
	t := &task{
		vertex: n.vertex, op: n.op, pin: n.pin, dk: n.dk, share: n.share,
		fresh: n.fresh, why: n.why, ahead: n.ahead, seq: s.seq,
		inputs: make([]input, len(n.inputs)), needs: p.needs(n),
	}
	edges := n.vertex.Inputs()
	for k, in := range n.inputs {
		from, output := tasks[in], edges[k].Output
		switch {
		case from == nil:
			t.inputs[k].chain = p.nodes[in].outputs[output]
		case from.state == solved:
			t.inputs[k].chain = from.outputs[output]
		default:
			t.inputs[k] = input{task: from, output: output}
			t.pending++
			from.readers = append(from.readers, t)
		}
	}
	return t
}

// needs gives the definition keys of what a node reads. Sources and build ops have
// no records.
func (p *plan) needs(n *node) []cache.Key {
	var keys []cache.Key
	for _, in := range n.inputs {
		if below := &p.nodes[in]; recorded(below.vertex) {
			keys = append(keys, below.dk)
		}
	}
	return keys
}

// wantAll makes an attempt want a task of others, and what it waits for.
func (s *Solver) wantAll(a *attempt, p *plan, t *task, v *llb.Vertex) {
	s.want(a, t, v)
	stack := []*task{t}
	for len(stack) > 0 {
		t := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if t.state != waiting {
			continue
		}
		for _, in := range t.inputs {
			if in.task == nil || in.task.state == solved || in.task.wantedBy(a) != nil {
				continue
			}
			s.want(a, in.task, a.build.vertexOf(p, in.task))
			stack = append(stack, in.task)
		}
	}
}

// announce tells who watches of all that is answered for: the nodes with records,
// and everything that only they would have needed. Sources were told of when they
// were pinned, and that is all that happens to them.
func (s *Solver) announce(b *build, p *plan, a *attempt) {
	if !b.watch.on() {
		return
	}
	wanted := make(map[llb.Digest]bool, len(a.tasks))
	for _, t := range a.tasks {
		wanted[t.wantedBy(a).vertex.Digest()] = true
	}
	now := s.o.Clock()
	for i := range p.nodes {
		n := &p.nodes[i]
		if wanted[n.vertex.Digest()] || n.vertex.Kind() == "source" {
			continue
		}
		switch n.found {
		case hit:
			b.watch.cached(n.vertex, now, n.why)
		default:
			b.watch.cached(n.vertex, now, "nothing that runs needs it")
		}
	}
}
