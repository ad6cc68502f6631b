package solver

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"golang.org/x/sync/errgroup"
)

// plan is the graph of one call of Solve. Only that call's goroutine changes it.
type plan struct {
	// nodes are in topological order: inputs first.
	nodes   []node
	targets []target
	// forgotten is Solver.forgotten when the last lookup began.
	forgotten uint64
	// asked are the outputs of each vertex that somebody in the plan reads, made when
	// a record is met that has not all: see lacks.
	asked     map[llb.Digest][]int
	askedOnce sync.Once
}

// target is one of the edges to be solved; node is -1 for scratch.
type target struct{ node, output int }

// node is a vertex of a plan.
type node struct {
	vertex *llb.Vertex
	inputs []int // nodes, one for each of vertex.Inputs()
	level  int   // the longest way to a target

	op    opKey
	pin   string
	dk    cache.Key // definition key
	share cache.Key // what tasks are shared by; dk where fresh is false
	// fresh says that records under dk do not count: the vertex, or one below it,
	// is to be run whatever the cache holds.
	fresh bool

	found found
	// outputs are known where found is hit, and in previews where they are to be
	// had without a run.
	outputs []cache.ChainID
	// by is what answered where found is hit, contents what the vertex saw then.
	by       *answered
	contents []cache.ContentID
	preview  Outcome // of a miss, in a preview; else Pending
	why      string  // what answered, or why nothing did
	ahead    time.Duration
}

// found says what is known of a node in a round of lookups.
type found uint8

const (
	// unvisited is a node that nothing needs, as far as is known: what would need
	// it has an answer. It becomes one of the others when something needs it.
	unvisited found = iota
	// needed is a node that something needs; it is to be looked up.
	needed
	// hit is a node with an answer.
	hit
	// shared is a node of which there is a task.
	shared
	// miss is a node that is to be solved, and whose inputs are needed.
	miss
)

// newPlan numbers the vertices that edges reach.
func newPlan(edges []llb.Edge) *plan {
	vertices := llb.Walk(edges...)
	p := &plan{nodes: make([]node, len(vertices)), targets: make([]target, len(edges))}
	number := make(map[llb.Digest]int, len(vertices))
	total := 0
	for i, v := range vertices {
		number[v.Digest()] = i
		total += len(v.Inputs())
	}
	inputs := make([]int, 0, total)
	for i, v := range vertices {
		n := &p.nodes[i]
		n.vertex = v
		first := len(inputs)
		for _, in := range v.Inputs() {
			inputs = append(inputs, number[in.Vertex.Digest()])
		}
		n.inputs = inputs[first:len(inputs):len(inputs)]
	}
	for i, e := range edges {
		p.targets[i] = target{node: -1}
		if !e.IsScratch() {
			p.targets[i] = target{node: number[e.Vertex.Digest()], output: e.Output}
		}
	}
	for i := len(p.nodes) - 1; i >= 0; i-- {
		for _, in := range p.nodes[i].inputs {
			p.nodes[in].level = max(p.nodes[in].level, p.nodes[i].level+1)
		}
	}
	return p
}

// makeKeys makes the keys of all nodes, once their pins are known.
func (p *plan) makeKeys() {
	memory := make([]byte, 0, 4096)
	for i := range p.nodes {
		n := &p.nodes[i]
		n.op = keyOf(n.vertex, &memory)
		n.dk = p.definitionKey(n, &memory)
		n.share = n.dk
		n.fresh = always(n.vertex)
		for _, in := range n.inputs {
			n.fresh = n.fresh || p.nodes[in].fresh
		}
		if n.fresh {
			n.share = p.freshKey(n, &memory)
		}
	}
}

// lookUp goes down from the targets, level by level, and finds what has an answer
// already. The caller counts as planning.
func (s *Solver) lookUp(ctx context.Context, b *build, p *plan) error {
	levels := 0
	for i := range p.nodes {
		n := &p.nodes[i]
		n.found, n.outputs, n.why = unvisited, nil, ""
		n.by, n.contents = nil, nil
		levels = max(levels, n.level+1)
	}
	// Nodes by level, without a slice for each level.
	start := make([]int, levels+1)
	for i := range p.nodes {
		start[p.nodes[i].level+1]++
	}
	for l := range levels {
		start[l+1] += start[l]
	}
	byLevel := make([]int, len(p.nodes))
	next := append([]int(nil), start[:levels]...)
	for i := range p.nodes {
		l := p.nodes[i].level
		byLevel[next[l]] = i
		next[l]++
	}
	for _, t := range p.targets {
		if t.node >= 0 {
			p.nodes[t.node].found = needed
		}
	}
	for l := range levels {
		if err := s.lookUpLevel(ctx, b, p, byLevel[start[l]:start[l+1]]); err != nil {
			return err
		}
	}
	return nil
}

func (s *Solver) lookUpLevel(ctx context.Context, b *build, p *plan, level []int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.findShared(b, p, level)
	// One goroutine for a good many lookups: a lookup takes microseconds.
	const batch = 32
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for len(level) > batch {
		part := level[:batch]
		level = level[batch:]
		group.Go(func() error {
			s.lookUpNodes(b, p, part)
			return nil
		})
	}
	s.lookUpNodes(b, p, level)
	_ = group.Wait() // the functions give no errors
	return nil
}

// ranWhy is what is said of a vertex that may not use the cache and was run before.
var ranWhy = map[Basis]string{
	BySession: "it ran in this build before",
	ByAnother: "another build has run it since this one began",
}

// findShared marks the nodes that need no lookup: there is a task of them, or the
// session, or one beside it, has run them.
func (s *Solver) findShared(b *build, p *plan, level []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range level {
		n := &p.nodes[i]
		if n.found != needed {
			continue
		}
		if n.fresh {
			if r, by := s.ranFor(b, n.share); by != NoBasis && !p.lacks(n.vertex, r.outputs) {
				n.found, n.outputs, n.why = hit, r.outputs, ranWhy[by]
				n.by = &answered{basis: by}
				b.hold(r.outputs)
				continue
			}
		}
		if s.taskFor(p, n) != nil {
			n.found = shared
		}
	}
}

func (s *Solver) lookUpNodes(b *build, p *plan, nodes []int) {
	for _, i := range nodes {
		if n := &p.nodes[i]; n.found == needed {
			s.lookUpNode(b, p, n)
		}
	}
	// Nodes of one level share inputs, which other batches mark at the same time.
	b.marking.Lock()
	defer b.marking.Unlock()
	for _, i := range nodes {
		n := &p.nodes[i]
		if n.found != miss {
			continue
		}
		for _, in := range n.inputs {
			if p.nodes[in].found == unvisited {
				p.nodes[in].found = needed
			}
		}
	}
}

func (s *Solver) lookUpNode(b *build, p *plan, n *node) {
	n.found = miss
	switch {
	case n.vertex.Kind() == "build":
		n.why = "the graph that it makes is looked up by itself"
		return
	case always(n.vertex):
		n.why = "the build asks to run it whatever the cache holds"
		return
	case n.fresh:
		n.why = "something that it reads is run whatever the cache holds"
		return
	case n.vertex.Kind() == "source":
		return // their pins are their memory
	}
	r, err := s.lookUpRecord(n.vertex, n.dk, b.session.id)
	if err == nil && p.lacks(n.vertex, r.Outputs) {
		err = lacking(n.dk)
	}
	if err != nil {
		n.why = "by definition: " + missReason(err)
		return
	}
	n.found, n.outputs, n.why = hit, r.Outputs, "the same definition was built before"
	n.by, n.contents = &answered{basis: ByDefinition, key: n.dk, from: r.From}, r.Inputs
	b.hold(r.Outputs)
}

// lookUpRecord looks for a record under a key, on behalf of one session or of several.
// One that does not fit the vertex is none: a cache can only miss.
func (s *Solver) lookUpRecord(v *llb.Vertex, k cache.Key, sessions ...SessionID) (r cache.Record, err error) {
	for _, id := range sessions {
		if r, err = s.o.Lookup(id, k); err == nil && r.Whole() {
			break
		}
	}
	if err == nil && len(r.Outputs) != v.Outputs() {
		err = &cache.MissError{Key: k, Reason: fmt.Sprintf("the record has %d outputs, and the vertex %d", len(r.Outputs), v.Outputs())}
	}
	return r, err
}

// lacks reports whether the plan asks for an output of a vertex that is absent from
// what a record, or a task that was solved by one, has. A vertex that the plan does
// not have is asked for all of them.
func (p *plan) lacks(v *llb.Vertex, outputs []cache.ChainID) bool {
	if !slices.Contains(outputs, cache.Absent) {
		return false
	}
	p.askedOnce.Do(p.findAsked)
	asked, ok := p.asked[v.Digest()]
	if !ok {
		return true
	}
	return slices.ContainsFunc(asked, func(o int) bool { return outputs[o] == cache.Absent })
}

func (p *plan) findAsked() {
	p.asked = make(map[llb.Digest][]int, len(p.nodes))
	ask := func(d llb.Digest, output int) {
		if !slices.Contains(p.asked[d], output) {
			p.asked[d] = append(p.asked[d], output)
		}
	}
	for i := range p.nodes {
		v := p.nodes[i].vertex
		p.asked[v.Digest()] = p.asked[v.Digest()] // also where nobody asks
		for _, e := range v.Inputs() {
			ask(e.Vertex.Digest(), e.Output)
		}
	}
	for _, t := range p.targets {
		if t.node >= 0 {
			ask(p.nodes[t.node].vertex.Digest(), t.output)
		}
	}
}

func lacking(k cache.Key) error {
	return &cache.MissError{Key: k, Reason: "the record has other outputs than those that are asked for"}
}

func missReason(err error) string {
	var m *cache.MissError
	if errors.As(err, &m) {
		return m.Reason
	}
	return err.Error()
}

// measure works out the longest path that is ahead of each node that is to be solved.
func (s *Solver) measure(p *plan) {
	for i := range p.nodes {
		p.nodes[i].ahead = 0
	}
	for i := len(p.nodes) - 1; i >= 0; i-- {
		n := &p.nodes[i]
		if n.found != miss {
			continue
		}
		n.ahead += s.expect(n)
		for _, in := range n.inputs {
			p.nodes[in].ahead = max(p.nodes[in].ahead, n.ahead)
		}
	}
}
