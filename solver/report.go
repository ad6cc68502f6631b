package solver

import (
	"errors"
	"fmt"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// Step is what became of a vertex in a call of Solve or Preview: what builds are
// explained by.
type Step struct {
	Vertex *llb.Vertex
	Inputs []int // of the same report's steps, one for each of Vertex.Inputs()
	// Op is the identity of what the vertex does, its inputs left out, and Pin what
	// a source stood for.
	Op  [32]byte
	Pin string
	// Definition is the definition key. Fresh says that no record counted, because
	// the build asks so of the vertex or of one below it.
	Definition cache.Key
	Fresh      bool

	Outcome Outcome
	Basis   Basis     // of a Hit
	Key     cache.Key // of a Hit by definition or by content: the key of the record
	From    string    // of such a Hit: the remote cache that had the record; empty is the local one
	// Why says why there was no record, or what answered.
	Why string
	// Contents are what the vertex saw of its inputs, where that was found out.
	Contents []cache.ContentID
	Outputs  []cache.ChainID // where they are known
	Took     time.Duration   // of a vertex that Ran
}

// Outcome is what became of a vertex.
type Outcome uint8

const (
	// Pending is a vertex that was needed, and that the call did not come to.
	Pending Outcome = iota
	// Unneeded is one that nothing which ran reads.
	Unneeded
	// Hit is one with an answer.
	Hit
	// Ran is one that was run, or, of a source, brought in.
	Ran
	// Failed is one that was run and failed.
	Failed
	// WouldRun, in a preview, is one of which there is no record.
	WouldRun
	// MightRun, in a preview, is one that is run unless something below it, which
	// would run, comes out as it did before.
	MightRun
	// Stopped is one that was begun, and given up when the build ended.
	Stopped
)

// Basis says what answered for a Hit.
type Basis uint8

const (
	// NoBasis is that of what is no Hit.
	NoBasis Basis = iota
	// ByDefinition is a record under the definition key.
	ByDefinition
	// ByContent is a record under the content key.
	ByContent
	// BySession is an earlier run in the same session.
	BySession
	// ByAnother is a build that ran it at the same time.
	ByAnother
)

// answered is what answered for a vertex, and where.
type answered struct {
	basis Basis
	key   cache.Key
	from  string
	// contents are what a vertex saw that was found by content.
	contents []cache.ContentID
}

// report says what became of the vertices of a plan, inputs first.
func (s *Solver) report(b *build, p *plan) []Step {
	steps := make([]Step, len(p.nodes))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range p.nodes {
		n := &p.nodes[i]
		steps[i] = Step{
			Vertex: n.vertex, Inputs: n.inputs, Op: n.op, Pin: n.pin, Definition: n.dk, Fresh: n.fresh,
			Why: n.why, Contents: n.contents, Outputs: n.outputs,
		}
		st := &steps[i]
		switch {
		case i < len(b.tasks) && b.tasks[i] != nil:
			b.tasks[i].report(st, b.late[b.tasks[i]])
		case n.found == hit:
			st.Outcome, st.Basis, st.Key, st.From = Hit, n.by.basis, n.by.key, n.by.from
		case n.found == unvisited:
			st.Outcome = Unneeded
		case n.preview != Pending:
			st.Outcome = n.preview
		}
		if took, ok := b.ran[n.share]; ok && (st.Outcome == Hit || st.Outcome == Unneeded) {
			st.Outcome, st.Basis, st.Key, st.From, st.Took = Ran, NoBasis, cache.Key{}, "", took
		}
	}
	return steps
}

// report says what became of a task; late says that it was solved when the build
// came to want it. Solver.mu is held.
func (t *task) report(st *Step, late bool) {
	st.Why, st.Contents, st.Outputs = t.why, t.contents, t.outputs
	switch {
	case t.state == solved && late:
		st.Outcome, st.Basis = Hit, ByAnother
	case t.state == solved && t.by != nil:
		st.Outcome, st.Basis, st.Key, st.From = Hit, t.by.basis, t.by.key, t.by.from
	case t.state == solved:
		st.Outcome, st.Took = Ran, t.took
	case t.state == failed && !t.started.IsZero():
		st.Outcome = Failed
	case !t.started.IsZero():
		st.Outcome = Stopped
	}
}

// tellGone warns of a layer that could not be had, in the vertex that wanted it: a build
// that goes on as if nothing was the matter would not say why it took so long.
func (b *build) tellGone(p *plan, err error, at time.Time) {
	var failed *VertexError
	if !errors.As(err, &failed) {
		return
	}
	for i := range p.nodes {
		if v := p.nodes[i].vertex; v.Digest() == failed.Vertex {
			b.watch.warn(v, at, fmt.Sprintf("%v; the steps that it came from count as not cached", failed.Err))
			return
		}
	}
}

// keepRan notes what an attempt ran that another one is made for: to that one it
// is a hit, or what it need not look at. s.mu is held.
func (b *build) keepRan() {
	for _, t := range b.tasks {
		if t == nil || t.state != solved || t.by != nil || b.late[t] {
			continue
		}
		if b.ran == nil {
			b.ran = make(map[cache.Key]time.Duration)
		}
		b.ran[t.share] = t.took
	}
}

// cameLate notes a task that was solved when the build came to want it. s.mu is held.
func (b *build) cameLate(t *task) {
	if b.late == nil {
		b.late = make(map[*task]bool)
	}
	b.late[t] = true
}
