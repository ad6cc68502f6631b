package journal

import (
	"cmp"
	"slices"

	"github.com/kiln-build/kiln/explain"
	"github.com/kiln-build/kiln/solver"
)

// past is a build of the journal that another one is compared with.
type past struct {
	build   Build
	report  *Report
	age     int  // 0 is the newest
	project bool // it is of the same project
	akin    bool // it is of that, or has much in common
	index   *index
}

// run is a step of such a build, and how near it is. The nearest is the least, by
// these fields in their order.
type run struct {
	class class
	// unfinished says that the step did not come to its end there.
	unfinished bool
	elsewhere  bool // of another project
	inputs     int  // how many inputs differ
	age        int

	past *past
	step *Step
}

// class says what an earlier run has in common with a step.
type class int

const (
	// same is the same definition, or the same op on the same contents: there was a record.
	same class = iota
	// sameOp does the same to other inputs.
	sameOp
	// samePlace is at the same place of the same stage, with the same instruction,
	// and is no step of the build itself.
	samePlace
	// alikeOp is of the same stage and instruction, and has half of its words.
	alikeOp
	// none has nothing in common that counts.
	none
)

// pasts gives the builds of before, the newest first, each report once.
func (x *Explainer) pasts(b Build, r *Report) ([]*past, error) {
	builds, err := x.Journal.all()
	if err != nil {
		return nil, err
	}
	// Those that ran elsewhere were heard of later.
	slices.SortStableFunc(builds, func(a, b Build) int { return a.Started.Compare(b.Started) })
	known := map[string]bool{}
	for i := range r.Steps {
		known[r.Steps[i].Name] = true
	}
	seen := map[name]bool{}
	var out []*past
	for _, old := range slices.Backward(builds) {
		if old.ID == b.ID || !old.Started.Before(b.Started) || seen[old.report] {
			continue
		}
		seen[old.report] = true
		report, err := x.Journal.Report(old)
		if err != nil {
			continue // it is kept no longer
		}
		p := &past{build: old, report: report, age: len(out), project: b.Project != "" && old.Project == b.Project}
		common := 0
		for i := range report.Steps {
			if known[report.Steps[i].Name] {
				common++
			}
		}
		p.akin = p.project || 2*common >= len(r.Steps)
		out = append(out, p)
	}
	return out, nil
}

// index finds the steps of a report that may be an earlier run of another step.
type index struct {
	definition, op map[Sum][]*Step
	number, stage  map[explain.Place][]*Step // by place and instruction; stage leaves the number out
}

func newIndex(r *Report) *index {
	x := &index{
		definition: map[Sum][]*Step{}, op: map[Sum][]*Step{},
		number: map[explain.Place][]*Step{}, stage: map[explain.Place][]*Step{},
	}
	for i := range r.Steps {
		s := &r.Steps[i]
		number, stage := spots(s)
		x.definition[s.Definition] = append(x.definition[s.Definition], s)
		x.op[s.Op] = append(x.op[s.Op], s)
		x.number[number] = append(x.number[number], s)
		x.stage[stage] = append(x.stage[stage], s)
	}
	return x
}

// spots gives what steps at one place with one instruction have in common.
func spots(s *Step) (number, stage explain.Place) {
	p := explain.PlaceOf(s.Name)
	stage = explain.Place{Stage: p.Stage, Rest: p.Instruction()}
	number = stage
	number.Number = p.Number
	return number, stage
}

const (
	// alikeBuilds is how many builds are looked through for a step that is alike,
	// and alikeSteps how many steps of a stage: every pair is compared by word.
	alikeBuilds = 4
	alikeSteps  = 200
)

// candidates gives the steps of a build that may be an earlier run of s.
func (p *past) candidates(s *Step) [][]*Step {
	if p.index == nil {
		p.index = newIndex(p.report)
	}
	number, stage := spots(s)
	lists := [][]*Step{p.index.definition[s.Definition], p.index.op[s.Op], p.index.number[number]}
	if alike := p.index.stage[stage]; p.age < alikeBuilds && len(alike) <= alikeSteps {
		lists = append(lists, alike)
	}
	return lists
}

// nearest finds the earlier run that a step differs from least; nil is none. A run
// of a build that has little in common counts only where it is the same. ours are
// the ops of the report's steps.
func nearest(r *Report, s *Step, pasts []*past, ours map[Sum]bool) *run {
	var best *run
	consider := func(p *past, t *Step) {
		c := none
		if t.Kind == s.Kind {
			c = classOf(s, t, ours)
		}
		if c == none || c != same && !p.akin {
			return
		}
		found := &run{
			class: c, unfinished: t.Outcome == solver.Pending || t.Outcome == solver.Failed || t.Outcome == solver.Stopped,
			elsewhere: !p.project, age: p.age, past: p, step: t,
		}
		if c == sameOp {
			found.inputs = differing(r, s, p.report, t)
		}
		if best == nil || found.compare(best) < 0 {
			best = found
		}
	}
	for _, p := range pasts {
		for _, list := range p.candidates(s) {
			for _, t := range list {
				consider(p, t)
			}
		}
	}
	return best
}

func (a *run) compare(b *run) int {
	order := func(x bool) int {
		if x {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(a.class, b.class), cmp.Compare(order(a.unfinished), order(b.unfinished)),
		cmp.Compare(order(a.elsewhere), order(b.elsewhere)), cmp.Compare(a.inputs, b.inputs), cmp.Compare(a.age, b.age))
}

func classOf(s, t *Step, ours map[Sum]bool) class {
	if s.Definition == t.Definition {
		return same
	}
	if s.Op == t.Op {
		if len(s.Contents) > 0 && slices.Equal(s.Contents, t.Contents) {
			return same
		}
		return sameOp
	}
	p, q := explain.PlaceOf(s.Name), explain.PlaceOf(t.Name)
	if p.Stage != q.Stage || p.Instruction() != q.Instruction() || ours[t.Op] {
		return none
	}
	switch likeness := alike(p.Rest, q.Rest); {
	case p.Number != "" && p.Number == q.Number && (p.Of == q.Of || likeness >= 0.3):
		return samePlace
	case likeness >= 0.5:
		return alikeOp
	}
	return none
}

// differing counts the inputs in which two steps differ by definition.
func differing(r *Report, s *Step, old *Report, t *Step) int {
	n := max(len(s.Inputs), len(t.Inputs)) - min(len(s.Inputs), len(t.Inputs))
	for k := range min(len(s.Inputs), len(t.Inputs)) {
		if r.Steps[s.Inputs[k].Step].Definition != old.Steps[t.Inputs[k].Step].Definition {
			n++
		}
	}
	return n
}
