package kiln

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/explain"
	"github.com/kiln-build/kiln/journal"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/request"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/source"
)

// What clients ask of the engine itself, and not of a frontend, as the attribute
// "requestid" has it. The answer is in the result's metadata.
const (
	callDryRun  = "frontend." + request.CallDryRun
	callExplain = "frontend." + request.CallExplain
)

// Explain says what became of a build's steps, and why those ran that did: of one
// that the journal has, by its name or the beginning of it, or of the "last".
func (e *Engine) Explain(ref string) (*explain.Explanation, error) {
	b, err := e.journal.Find(ref)
	if err != nil {
		return nil, err
	}
	r, err := e.journal.Report(b)
	if err != nil {
		return nil, err
	}
	return e.explainer().Explain(b, r)
}

// Builds lists the builds that the journal has, the oldest first.
func (e *Engine) Builds() ([]journal.Build, error) { return e.journal.Builds() }

func (e *Engine) explainer() *journal.Explainer {
	return &journal.Explainer{
		Journal: e.journal, Nodes: e.cache, Kept: e.cache.KeptTree,
		State: func(id cache.ChainID) (tree.Entry, error) { return e.worker.Known(id) }, Seen: worker.Seen,
	}
}

// chronicle is what a build notes for the journal and for explanations.
type chronicle struct {
	entry     journal.Build
	args      []string
	dryRun    bool
	explain   bool     // when it has ended somebody asks why
	failOn    []string // patterns
	fail      context.CancelCauseFunc
	collector journal.Collector // guarded by build.mu
	missed    error             // guarded by build.mu
}

// answer answers what is asked of the engine itself; nil where that is a build.
func (e *Engine) answer(attrs map[string]string) (*Result, error) {
	if attrs["requestid"] != callExplain {
		return nil, nil
	}
	x, err := e.Explain(attrs[request.AttrBuild])
	if err != nil {
		return nil, err
	}
	r := &Result{Metadata: map[string]string{}}
	return r, r.tell(x)
}

// tell puts an explanation into the metadata.
func (r *Result) tell(x *explain.Explanation) error {
	data, err := json.Marshal(x)
	r.Metadata[request.ExplanationKey] = string(data)
	return err
}

// chronicled takes out of a build's attributes what is the engine's, and gives the
// context in which the build goes on.
func (b *build) chronicled(ctx context.Context, r *Request, attrs map[string]string) (context.Context, context.CancelFunc, error) {
	c := &b.chronicle
	c.entry = journal.Build{ID: r.Ref, Started: b.result.Started, Project: project(r, attrs)}
	if !journal.IsName(c.entry.ID) {
		c.entry.ID = strings.ToLower(string(b.session))
	}
	b.result.Metadata[request.AttrBuild] = c.entry.ID
	if attrs["requestid"] == callDryRun {
		c.dryRun = true
		delete(attrs, "requestid")
	}
	_, c.explain = attrs[request.AttrExplain]
	c.explain = c.explain || r.Explain || c.dryRun
	delete(attrs, request.AttrExplain)
	c.failOn = r.FailOnMiss
	if v, ok := attrs[request.AttrFailOnMiss]; ok {
		delete(attrs, request.AttrFailOnMiss)
		if err := json.Unmarshal([]byte(v), &c.failOn); err != nil {
			return nil, nil, fmt.Errorf("attribute %s: %w", request.AttrFailOnMiss, err)
		}
	}
	if len(c.failOn) > maxPatterns || slices.ContainsFunc(c.failOn, func(p string) bool { return len(p) > maxPattern }) {
		return nil, nil, fmt.Errorf("--fail-on-miss takes %d patterns of %d bytes at most", maxPatterns, maxPattern)
	}
	for name := range attrs {
		if arg, ok := strings.CutPrefix(name, "build-arg:"); ok {
			c.args = append(c.args, arg)
		}
	}
	slices.Sort(c.args)
	ctx, fail := context.WithCancelCause(ctx)
	c.fail = fail
	return ctx, func() { fail(nil) }, nil
}

// What --fail-on-miss takes. Each pattern is tried with the name of each step.
const (
	maxPatterns = 64
	maxPattern  = 512
)

// project says what a build is of: nothing, where that is a folder of a client's.
func project(r *Request, attrs map[string]string) string {
	where := r.Context
	if r.Session != nil {
		where = attrs["context"]
	}
	switch dir, err := filepath.Abs(where); {
	case r.Session != nil && strings.HasPrefix(where, "http://"+source.SessionHost+"/"):
		return "" // a tarball of the client's
	case request.IsRemote(where):
		where = journal.BareAddress(where)
	case r.Session != nil:
		return ""
	case err == nil:
		where = dir
	}
	words := []string{where}
	if name := attrs["filename"]; name != "" && name != "Dockerfile" {
		words = append(words, "("+name+")")
	}
	if t := attrs["target"]; t != "" {
		words = append(words, "--target "+t)
	}
	return strings.Join(words, " ")
}

// collect takes what a solve reports.
func (b *build) collect(steps []solver.Step) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.chronicle.collector.Add(steps, func(v *llb.Vertex, pin string) (tree.Entry, bool) {
		return b.engine.worker.LocalTree(b.session, v, pin)
	})
	if len(b.chronicle.failOn) == 0 {
		return
	}
	for i := range steps {
		switch s := &steps[i]; s.Outcome {
		case solver.Ran, solver.Failed, solver.WouldRun, solver.MightRun:
			if s.Vertex.Kind() != "source" {
				b.mustHit(s.Vertex.Name())
			}
		}
	}
}

// mustHit fails the build if a step that runs is one of those that were to be
// cached. b.mu is held.
func (b *build) mustHit(name string) {
	c := &b.chronicle
	for _, pattern := range c.failOn {
		if c.missed == nil && explain.Matches(pattern, name) {
			c.missed = &explain.MissedError{Step: name, Pattern: pattern}
			c.fail(c.missed)
		}
	}
}

// hits gives the error of a step that was to be cached and was not, or of a
// pattern that no step's name is of.
func (b *build) hits(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &b.chronicle
	if c.missed != nil {
		return c.missed
	}
	if err != nil || b.steps == nil {
		return err
	}
	return b.patternsMatch()
}

// foreseen gives the error of a pattern that no step's name is of, before anything
// runs; it gives none where the graph has build operations, which may have such a step.
func (b *build) foreseen() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.steps {
		if v.Op().GetBuild() != nil {
			return nil
		}
	}
	return b.patternsMatch()
}

// patternsMatch says which pattern no step's name is of. b.mu is held.
func (b *build) patternsMatch() error {
	names := make([]string, 0, len(b.steps))
	for _, v := range b.steps {
		names = append(names, v.Name())
	}
	slices.Sort(names)
	like := func(pattern string) int {
		return slices.IndexFunc(names, func(name string) bool { return explain.Matches(pattern, name) })
	}
	for _, pattern := range b.chronicle.failOn {
		if like(pattern) >= 0 {
			continue
		}
		wide := "*" + strings.Trim(pattern, "*") + "*"
		if n := like(wide); n >= 0 {
			return fmt.Errorf("no step's whole name is like %q (--fail-on-miss); %q is like %q for one", pattern, wide, names[n])
		}
		return fmt.Errorf("no step's name is like %q (--fail-on-miss)", pattern)
	}
	return nil
}

// preview looks ahead at graphs.
func (b *build) preview(ctx context.Context, edges []llb.Edge) error {
	return b.placed(b.engine.solver.Preview(ctx, solver.Request{
		Session: b.session, Edges: edges, Lease: b.lease, Observe: b.emit, Report: b.collect,
	}))
}

// learnTimeout bounds what a build that has ended waits for what explains it.
const learnTimeout = 10 * time.Second

// learn takes over what the build's caches know of earlier builds, where it is to be
// explained: a machine that starts empty has none to compare it with.
func (b *build) learn(ctx context.Context) {
	b.mu.Lock()
	c := &b.chronicle
	wanted := (c.explain && ctx.Err() == nil || c.missed != nil) && c.collector.Report(c.args).Missed()
	b.mu.Unlock()
	if !wanted {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), learnTimeout) // --fail-on-miss has ended the build
	defer cancel()
	b.imports.mu.Lock()
	list := slices.Clip(b.imports.list)
	b.imports.mu.Unlock()
	for _, i := range list {
		for _, past := range i.Builds(ctx) {
			if err := b.engine.journal.Adopt(past.Data, i.Name()); err != nil {
				b.warn(fmt.Sprintf("the cache %s: %v", i.Name(), err))
			}
		}
	}
}

// packed gives the build, as far as it is known, for journals elsewhere; nil where it is
// too large.
func (b *build) packed() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	entry := b.chronicle.entry
	entry.Completed, entry.Status = b.engine.clock(), explain.Done
	data, err := b.engine.journal.Pack(entry, b.chronicle.collector.Report(b.chronicle.args), remote.MaxBuild)
	if err != nil {
		return nil // an explanation less
	}
	return data
}

// note writes the build into the journal, or, of one that was looked ahead at,
// explains it.
func (b *build) note(ctx context.Context, failed error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &b.chronicle
	if b.steps == nil {
		return nil // it has not come so far
	}
	c.entry.Completed = b.engine.clock()
	report := c.collector.Report(c.args)
	switch {
	case c.dryRun:
		c.entry.Status = explain.Previewed
		x, err := b.engine.explainer().Explain(c.entry, report)
		if err != nil {
			return err
		}
		return b.result.tell(x)
	case failed == nil:
		c.entry.Status = explain.Done
	case ctx.Err() != nil && c.missed == nil || errors.Is(failed, context.Canceled):
		c.entry.Status = explain.Interrupted
	default:
		c.entry.Status = explain.Failed
	}
	// A journal that cannot be written is no failure of the build.
	if err := b.engine.journal.Add(c.entry, report); err != nil {
		b.engine.warn(err.Error())
	}
	return nil
}
