package solver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

// model is what the solver is, slow and plain: the recursive function of the
// design, which runs one vertex at a time and knows keys as nested text.
type model struct {
	pins     map[string]string
	constant map[string]bool
	failing  map[string]bool
	records  map[string]bool // by key

	done map[*llb.Vertex]bool // of the build at hand
	runs map[string]int
	err  bool
}

func (m *model) definition(v *llb.Vertex) string {
	s := nameOf(v) + "@" + m.pins[nameOf(v)] + "("
	for _, in := range v.Inputs() {
		s += fmt.Sprintf("%s:%d,", m.definition(in.Vertex), in.Output)
	}
	return s + ")"
}

// chain is what an output holds, whether it was cached or not.
func (m *model) chain(e llb.Edge) cache.ChainID {
	if e.IsScratch() {
		return cache.ChainID{}
	}
	pin := ""
	if e.Vertex.Kind() == "source" {
		pin = nameOf(e.Vertex) + "@" + m.pins[nameOf(e.Vertex)]
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s/%s/%d", nameOf(e.Vertex), pin, e.Output)
	if !m.constant[nameOf(e.Vertex)] {
		for _, in := range e.Vertex.Inputs() {
			c := m.chain(in)
			h.Write(c[:])
		}
	}
	return cache.ChainID(h.Sum(nil))
}

func (m *model) content(v *llb.Vertex) string {
	s := "content " + nameOf(v)
	for _, in := range v.Inputs() {
		s += fmt.Sprintf(" %x", m.chain(in))
	}
	return s
}

func ignores(v *llb.Vertex) bool {
	for _, below := range llb.Walk(v.Output(0)) {
		if below.Meta().IgnoreCache {
			return true
		}
	}
	return false
}

func (m *model) solve(v *llb.Vertex) {
	if m.done[v] {
		return
	}
	m.done[v] = true
	source := v.Kind() == "source"
	dk, ck := m.definition(v), m.content(v)
	if !source && !ignores(v) && m.records[dk] {
		return
	}
	for _, in := range v.Inputs() {
		m.solve(in.Vertex)
	}
	if !source && !v.Meta().IgnoreCache && len(v.Inputs()) > 0 && m.records[ck] {
		m.records[dk] = true
		return
	}
	m.runs[nameOf(v)]++
	if m.failing[nameOf(v)] {
		m.err = true
		return
	}
	if !m.err && !source {
		m.records[dk] = true
		if len(v.Inputs()) > 0 {
			m.records[ck] = true
		}
	}
}

// build solves the edges of one build from nothing but the records.
func (m *model) build(es []llb.Edge) (runs map[string]int, fails bool) {
	m.done, m.runs, m.err = make(map[*llb.Vertex]bool), make(map[string]int), false
	for _, e := range es {
		m.solve(e.Vertex)
	}
	return m.runs, m.err
}

// randomGraph makes vertices each of which reads some of those before it.
func randomGraph(t *testing.T, rng *rand.Rand, w *fakeWorker, ignoring bool) []*llb.Vertex {
	t.Helper()
	vertices := make([]*llb.Vertex, 1+rng.IntN(14))
	for i := range vertices {
		if i == 0 || rng.IntN(6) == 0 {
			vertices[i] = source(t, fmt.Sprint("image", i)).Vertex
			continue
		}
		name := fmt.Sprint("v", i)
		w.constant[name] = rng.IntN(5) == 0
		meta := llb.Meta{Name: name, IgnoreCache: ignoring && rng.IntN(6) == 0}
		var inputs []llb.Edge
		for range 1 + rng.IntN(3) {
			v := vertices[rng.IntN(i)]
			inputs = append(inputs, v.Output(rng.IntN(v.Outputs())))
		}
		vertices[i] = stepMeta(t, name, meta, inputs...).Vertex
	}
	return vertices
}

func randomTargets(rng *rand.Rand, vertices []*llb.Vertex) []llb.Edge {
	var out []llb.Edge
	for range 1 + rng.IntN(2) {
		out = append(out, vertices[len(vertices)-1-rng.IntN(min(4, len(vertices)))].Output(0))
	}
	return out
}

const randomGraphs = 4000

func graphsToTry() int {
	if testing.Short() {
		return randomGraphs / 20
	}
	return randomGraphs
}

// TestRandomBuildsOneByOne compares what runs, exactly, where builds come one
// after the other and nothing fails before the last.
func TestRandomBuildsOneByOne(t *testing.T) {
	for seed := range uint64(graphsToTry()) {
		rng := rand.New(rand.NewPCG(seed, 1))
		c := newFakeCache()
		w := newFakeWorker(c)
		s := New(c, w, Options{Parallelism: 1 + rng.IntN(4)})
		vertices := randomGraph(t, rng, w, true)
		m := &model{pins: w.pins, constant: w.constant, failing: map[string]bool{}, records: map[string]bool{}}
		for build := range 5 {
			if rng.IntN(2) == 0 {
				w.pins[fmt.Sprint("image", rng.IntN(len(vertices)))] = fmt.Sprint("pin", rng.IntN(3))
			}
			if build == 4 {
				for _, v := range vertices {
					if v.Kind() != "source" && rng.IntN(5) == 0 {
						m.failing[nameOf(v)] = true
						w.onRun[nameOf(v)] = func(context.Context, *Job) error { return errors.New("exit code 1") }
					}
				}
			}
			targets := randomTargets(rng, vertices)
			want, fails := m.build(targets)
			clear(w.runs)
			out, err := s.Solve(context.Background(), Request{Edges: targets})
			if (err != nil) != fails {
				t.Fatalf("seed %d, build %d: error %v, want one: %v", seed, build, err, fails)
			}
			if err != nil {
				continue
			}
			if fmt.Sprint(w.runs) != fmt.Sprint(want) {
				t.Fatalf("seed %d, build %d: ran %v, want %v", seed, build, w.runs, want)
			}
			checkOutputs(t, seed, m, targets, out)
		}
		checkIdle(t, seed, s)
	}
}

// TestRandomBuildsAtOnce has several builds at once, of which some fail and some
// are cancelled, on a cache from which layers have gone.
func TestRandomBuildsAtOnce(t *testing.T) {
	for seed := range uint64(graphsToTry()) {
		rng := rand.New(rand.NewPCG(seed, 2))
		c := newFakeCache()
		w := newFakeWorker(c)
		s := New(c, w, Options{Parallelism: 1 + rng.IntN(4)})
		ignoring := rng.IntN(2) == 0
		vertices := randomGraph(t, rng, w, ignoring)
		m := &model{pins: w.pins, constant: w.constant, failing: map[string]bool{}, records: map[string]bool{}}
		for range rng.IntN(3) {
			targets := randomTargets(rng, vertices)
			m.build(targets)
			if _, err := s.Solve(context.Background(), Request{Edges: targets}); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		if rng.IntN(2) == 0 {
			w.pins["image0"] = "2"
		}
		losing := rng.IntN(3) == 0
		if losing {
			v := vertices[rng.IntN(len(vertices))]
			w.missing[m.chain(v.Output(0))] = true
		}
		cancelling := rng.IntN(3) == 0
		failing := rng.IntN(3) == 0
		setHooks(rng, w, m, vertices, failing)
		clear(w.runs)
		runAtOnce(t, seed, rng, s, w, m, vertices, cancelling)
		if !losing && !cancelling && !failing && !ignoring {
			for name, n := range w.runs {
				// A source has no record, and may be asked for by one build after the other.
				if n > 1 && !strings.HasPrefix(name, "image") {
					t.Fatalf("seed %d: %s ran %d times for builds at once", seed, name, n)
				}
			}
		}
		checkIdle(t, seed, s)
	}
}

// setHooks makes ops of a graph fail, and all of them give way to each other.
func setHooks(rng *rand.Rand, w *fakeWorker, m *model, vertices []*llb.Vertex, failing bool) {
	for _, v := range vertices {
		bad := failing && v.Kind() != "source" && rng.IntN(5) == 0
		m.failing[nameOf(v)] = bad
		yields := rng.IntN(20)
		w.onRun[nameOf(v)] = func(context.Context, *Job) error {
			for range yields {
				runtime.Gosched()
			}
			if bad {
				return errors.New("exit code 1")
			}
			return nil
		}
	}
}

func runAtOnce(t *testing.T, seed uint64, rng *rand.Rand, s *Solver, w *fakeWorker, m *model, vertices []*llb.Vertex, cancelling bool) {
	var group sync.WaitGroup
	gaveUp := errors.New("gave up")
	type build struct {
		targets []llb.Edge
		after   int64 // events, after which it is cancelled; 0 never
		fails   bool
		ordered orderChecker
		out     []cache.ChainID
		err     error
	}
	builds := make([]build, 2+rng.IntN(4))
	for i := range builds {
		b := &builds[i]
		b.targets = randomTargets(rng, vertices)
		before := map[string]bool{}
		for k := range m.records {
			before[k] = true
		}
		_, b.fails = m.build(b.targets)
		m.records = before
		if cancelling && rng.IntN(2) == 0 {
			b.after = 1 + rng.Int64N(10)
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		var events atomic.Int64
		observe := func(e Event) {
			b.ordered.see(e)
			if events.Add(1) == b.after {
				cancel(gaveUp)
			}
		}
		group.Go(func() {
			b.out, b.err = s.Solve(ctx, Request{Edges: b.targets, Observe: observe})
			cancel(nil)
		})
	}
	group.Wait()
	for i := range builds {
		b := &builds[i]
		if b.ordered.wrong != "" {
			t.Fatalf("seed %d, build %d: events out of order: %s", seed, i, b.ordered.wrong)
		}
		switch {
		case b.err == nil && b.fails:
			// What it needs fails, so it can only have been lucky in having asked
			// before: never, as nothing that fails is recorded.
			t.Fatalf("seed %d, build %d: no error, want one", seed, i)
		case b.err != nil && !b.fails && (b.after == 0 || !errors.Is(b.err, gaveUp)):
			if len(w.missing) == 0 || !anyFailing(m) {
				t.Fatalf("seed %d, build %d: %v", seed, i, b.err)
			}
			// A vertex that fails now, whose record was lost with its layer.
		case b.err == nil:
			checkOutputs(t, seed, m, b.targets, b.out)
		}
	}
}

func anyFailing(m *model) bool {
	for _, bad := range m.failing {
		if bad {
			return true
		}
	}
	return false
}

// orderChecker checks that a vertex completes only after it has started, and
// starts only once at a time.
type orderChecker struct {
	running map[llb.Digest]bool
	wrong   string
}

func (o *orderChecker) see(e Event) {
	if o.running == nil {
		o.running = make(map[llb.Digest]bool)
	}
	d := e.On().Vertex
	switch e.(type) {
	case VertexStarted:
		if o.running[d] {
			o.wrong = "started twice: " + e.On().Name
		}
		o.running[d] = true
	case VertexCompleted:
		if !o.running[d] {
			o.wrong = "completed without a start: " + e.On().Name
		}
		o.running[d] = false
	}
}

func checkOutputs(t *testing.T, seed uint64, m *model, targets []llb.Edge, out []cache.ChainID) {
	t.Helper()
	for i, e := range targets {
		if out[i] != m.chain(e) {
			t.Fatalf("seed %d: %s is %v, want %v", seed, nameOf(e.Vertex), out[i], m.chain(e))
		}
	}
}

// checkIdle checks that nothing is left of builds that have ended.
func checkIdle(t *testing.T, seed uint64, s *Solver) {
	t.Helper()
	s.Close()
	if len(s.tasks) != 0 || len(s.kept) != 0 || s.planning != 0 {
		t.Fatalf("seed %d: %d tasks, %d kept, %d planning are left", seed, len(s.tasks), len(s.kept), s.planning)
	}
	for c, q := range s.queues {
		if len(q.ready) != 0 || q.workers != 0 {
			t.Fatalf("seed %d: queue %d has %d tasks and %d workers", seed, c, len(q.ready), q.workers)
		}
	}
}
