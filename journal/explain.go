package journal

import (
	"slices"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/explain"
	"github.com/kiln-build/kiln/solver"
)

// Explainer explains builds by those that a journal has. Only Journal has to be set.
type Explainer struct {
	Journal *Journal
	// Nodes are where trees are read from, Kept gives those that KeepTree kept, and
	// State the state of a chain where that is known. Nil compares no files.
	Nodes tree.Nodes
	Kept  func(name string) (tree.Entry, bool)
	State func(cache.ChainID) (tree.Entry, error)
	// Seen gives what an op sees of an input whose state is root, by path, and
	// whether that is all of it.
	Seen func(n tree.Nodes, op *pb.Op, input int, root tree.Entry) (seen map[string]tree.Entry, all bool, err error)
}

// Explain explains a build, of which r says what became of its steps.
func (x *Explainer) Explain(b Build, r *Report) (*explain.Explanation, error) {
	pasts, err := x.pasts(b, r)
	if err != nil {
		return nil, err
	}
	e := &explain.Explanation{
		Build: explain.BuildInfo{ID: b.ID, Project: b.Project, Started: b.Started.UTC(), Completed: b.Completed.UTC(), Status: b.Status},
		Steps: make([]explain.StepExplanation, len(r.Steps)),
	}
	c := &comparison{x: x, report: r, pasts: pasts, ours: map[Sum]bool{}}
	for i := range r.Steps {
		c.ours[r.Steps[i].Op] = true
	}
	for i := range r.Steps {
		s := &r.Steps[i]
		out := describe(s)
		if s.Kind != "source" {
			count(&e.Build, s.Outcome)
		}
		if missed(s) {
			out.Miss = c.miss(s)
		}
		e.Steps[i] = out
	}
	return e, nil
}

// missed says whether there was no record of a step that was needed. Sources have
// none: their pins are their memory.
func missed(s *Step) bool {
	switch s.Outcome {
	case solver.Ran, solver.Failed, solver.Stopped, solver.WouldRun, solver.MightRun:
		return s.Kind != "source"
	}
	return false
}

func count(b *explain.BuildInfo, o solver.Outcome) {
	switch o {
	case solver.Hit, solver.Unneeded:
		b.Cached++
	case solver.Ran, solver.Failed:
		b.Ran++
	case solver.WouldRun:
		b.WouldRun++
	case solver.MightRun:
		b.MightRun++
	}
}

// outcomes are the words for what becomes of steps.
var outcomes = map[solver.Outcome]string{
	solver.Pending: "not-run", solver.Unneeded: "not-needed", solver.Hit: "cached", solver.Ran: "ran",
	solver.Failed: "failed", solver.WouldRun: "would-run", solver.MightRun: "might-run",
	solver.Stopped: "stopped",
}

func describe(s *Step) explain.StepExplanation {
	out := explain.StepExplanation{
		Name: s.Name, Vertex: "sha256:" + s.Vertex.String(), Kind: s.Kind, Outcome: outcomes[s.Outcome],
		Cached: s.Outcome == solver.Hit || s.Outcome == solver.Unneeded, Pin: s.Pin, Seconds: s.Took.Seconds(),
	}
	if s.Kind == "source" {
		out.Cached = false
		return out
	}
	out.DefinitionKey = s.Definition.String()
	if s.Outcome != solver.Hit {
		return out
	}
	switch s.Basis {
	case solver.ByAnother:
		out.Cache = "another build"
		return out
	case solver.BySession:
		out.Cache = "this build"
		return out
	case solver.ByDefinition:
		out.By = "definition"
	case solver.ByContent:
		out.By = "content"
	}
	out.Cache, out.Key = s.From, s.Key.String()
	if s.From == "" {
		out.Cache = "local"
	}
	return out
}

// comparison compares the steps of a report with those of earlier builds.
type comparison struct {
	x      *Explainer
	report *Report
	pasts  []*past
	ours   map[Sum]bool // the ops of the report's steps
}

// miss says why there was no record of a step.
func (c *comparison) miss(s *Step) *explain.Miss {
	m := &explain.Miss{Lookup: s.Why}
	if s.NoCache {
		m.Reasons = []explain.Reason{{Kind: explain.NoCache}}
		return m
	}
	n := nearest(c.report, s, c.pasts, c.ours)
	if n == nil {
		if m.Reasons = c.fresh(s); m.Reasons == nil {
			m.Reasons = []explain.Reason{{Kind: explain.NeverSeen}}
		}
		return m
	}
	m.Nearest = &explain.Nearest{Build: n.past.build.ID, Started: n.past.build.Started.UTC(), Step: n.step.Name, Cache: n.past.build.From}
	switch {
	case n.class != same:
		m.Reasons = c.differences(s, n)
	case s.Fresh:
		m.Reasons = c.fresh(s)
	case n.unfinished:
		m.Reasons = []explain.Reason{{Kind: explain.NotFinished, Old: outcomes[n.step.Outcome]}}
	case s.Outcome == solver.MightRun:
		// There may be a record of it: what it reads is not known.
		m.Reasons = c.pending(s)
	}
	if len(m.Reasons) == 0 {
		m.Reasons = []explain.Reason{{Kind: explain.Evicted}}
	}
	return m
}

// fresh gives the inputs of a step that run whatever the cache holds.
func (c *comparison) fresh(s *Step) (out []explain.Reason) {
	for _, in := range s.Inputs {
		if below := &c.report.Steps[in.Step]; s.Fresh && below.Fresh {
			out = append(out, explain.Reason{Kind: explain.Input, Step: below.Name})
		}
	}
	return out
}

// pending gives the inputs of a step that would run.
func (c *comparison) pending(s *Step) (out []explain.Reason) {
	for _, in := range s.Inputs {
		if below := &c.report.Steps[in.Step]; missed(below) {
			out = append(out, explain.Reason{Kind: explain.Input, Step: below.Name})
		}
	}
	return out
}

// differences compares a step with its nearest earlier run, of another definition.
func (c *comparison) differences(s *Step, n *run) []explain.Reason {
	var out []explain.Reason
	if s.Op != n.step.Op {
		out = c.compareOps(s, n.step)
		if len(out) == 0 {
			out = []explain.Reason{{Kind: explain.Unknown}}
		}
	}
	for k := range min(len(s.Inputs), len(n.step.Inputs)) {
		out = append(out, c.compareInput(s, n, k)...)
	}
	if len(out) == 0 {
		out = append(out, c.fresh(s)...)
	}
	if len(out) == 0 {
		out = []explain.Reason{{Kind: explain.Unknown}}
	}
	return dedupe(out)
}

// dedupe leaves out what is said twice: a step that reads another one twice.
func dedupe(in []explain.Reason) []explain.Reason {
	var out []explain.Reason
	for _, r := range in {
		again := func(o explain.Reason) bool {
			return o.Kind == r.Kind && o.Name == r.Name && o.Step == r.Step && r.Kind != explain.Command
		}
		if !slices.ContainsFunc(out, again) {
			out = append(out, r)
		}
	}
	return out
}

// compareInput compares what two steps read as their input k.
func (c *comparison) compareInput(s *Step, n *run, k int) []explain.Reason {
	a, b := s.Inputs[k], n.step.Inputs[k]
	in, was := &c.report.Steps[a.Step], &n.past.report.Steps[b.Step]
	known := k < len(s.Contents) && k < len(n.step.Contents)
	switch {
	case known && s.Contents[k] == n.step.Contents[k]:
		return nil
	case !known && c.sameOutput(a, n.past.report, b):
		return nil
	case in.Definition == was.Definition && a.Output == b.Output:
		// The same as far as its definition goes: it was run again.
		if missed(in) && (known || in.Fresh || s.Outcome == solver.MightRun) {
			return append([]explain.Reason{{Kind: explain.Input, Step: in.Name}}, c.chainFiles(s, n, k)...)
		}
		return nil
	case in.Kind == "source" && was.Kind == "source":
		return c.compareSources(s, n, k)
	}
	r := explain.Reason{Kind: explain.Input, Step: in.Name}
	if in.Op != was.Op && explain.PlaceOf(in.Name).Rest != explain.PlaceOf(was.Name).Rest {
		r.Old = was.Name
	}
	return append([]explain.Reason{r}, c.chainFiles(s, n, k)...)
}
