package solver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
)

// fakeCache keeps records and chains in memory. A chain is one layer, of the same
// name, on the empty chain.
type fakeCache struct {
	mu      sync.Mutex
	records map[cache.Key]cache.Record
	gone    map[cache.LayerID]bool
	lookups int
	fail    error // of Store
}

func newFakeCache() *fakeCache {
	return &fakeCache{records: make(map[cache.Key]cache.Record), gone: make(map[cache.LayerID]bool)}
}

func (c *fakeCache) Lookup(k cache.Key) (cache.Record, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookups++
	r, ok := c.records[k]
	if !ok {
		return r, &cache.MissError{Key: k, Reason: "nothing was recorded"}
	}
	for _, o := range r.Outputs {
		if c.gone[cache.LayerID(o)] {
			return cache.Record{}, &cache.MissError{Key: k, Reason: "a layer is gone"}
		}
	}
	return r, nil
}

func (c *fakeCache) Store(r cache.Record, keys ...cache.Key) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return c.fail
	}
	for _, k := range keys {
		c.records[k] = r
	}
	return nil
}

func (c *fakeCache) Chain(id cache.ChainID) (cache.Chain, error) {
	return cache.Chain{Layer: cache.LayerID(id), Depth: 1}, nil
}

func (c *fakeCache) ForgetLayer(id cache.LayerID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone[id] = true
	return nil
}

// restore undoes ForgetLayer: the layer was made again.
func (c *fakeCache) restore(id cache.LayerID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.gone, id)
}

// fakeWorker runs fake ops. What an op gives is a function of its arguments and of
// what it sees of its inputs. The words of an exec's arguments name it; hooks under
// that name do what a test wants.
type fakeWorker struct {
	cache *fakeCache

	mu    sync.Mutex
	pins  map[string]string // by name of the source
	runs  map[string]int    // by name
	order []string          // names in the order in which Run was called
	pinned, active,
	peak int

	// onRun is called for the op of that name, in Run, before its result is made.
	onRun map[string]func(ctx context.Context, job *Job) error
	// onPin likewise.
	onPin map[string]func(ctx context.Context, job *Job) error
	// constant are ops whose result is the same whatever they read.
	constant map[string]bool
	// missing are chains that a reader finds gone.
	missing map[cache.ChainID]bool
}

func newFakeWorker(c *fakeCache) *fakeWorker {
	return &fakeWorker{
		cache: c, pins: map[string]string{}, runs: map[string]int{},
		onRun:    map[string]func(context.Context, *Job) error{},
		onPin:    map[string]func(context.Context, *Job) error{},
		constant: map[string]bool{}, missing: map[cache.ChainID]bool{},
	}
}

func nameOf(v *llb.Vertex) string {
	if s := v.Op().GetSource(); s != nil {
		_, name, _ := strings.Cut(s.Identifier, "://")
		return name
	}
	if x := v.Op().GetExec(); x != nil {
		return x.Meta.Args[0]
	}
	return v.Describe()
}

func (w *fakeWorker) Pin(ctx context.Context, job *Job) (string, error) {
	name := nameOf(job.Vertex)
	w.mu.Lock()
	w.pinned++
	pin, hook := w.pins[name], w.onPin[name]
	w.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, job); err != nil {
			return "", err
		}
	}
	return name + "@" + pin, nil // as an image's digest, it is of one image only
}

// fakeContent is what ops see of a chain: of the fake ones, the chain itself.
func (w *fakeWorker) Content(_ context.Context, job *Job, input int) (cache.ContentID, error) {
	chain := job.Inputs[input]
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.missing[chain] {
		return cache.ContentID{}, &cache.GoneError{Layer: cache.LayerID(chain), Err: errors.New("deleted")}
	}
	return cache.ContentID(chain), nil
}

func (w *fakeWorker) Run(ctx context.Context, job *Job) ([]cache.ChainID, error) {
	name := nameOf(job.Vertex)
	w.mu.Lock()
	w.runs[name]++
	w.order = append(w.order, name)
	if job.Vertex.Kind() == "exec" {
		w.active++
		w.peak = max(w.peak, w.active)
		defer func() {
			w.mu.Lock()
			w.active--
			w.mu.Unlock()
		}()
	}
	hook := w.onRun[name]
	w.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, job); err != nil {
			return nil, err
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	out := make([]cache.ChainID, job.Vertex.Outputs())
	for i := range out {
		out[i] = w.result(name, job, i)
		w.mu.Lock()
		delete(w.missing, out[i])
		w.mu.Unlock()
		w.cache.restore(cache.LayerID(out[i]))
	}
	return out, nil
}

// result is the chain that an op gives.
func (w *fakeWorker) result(name string, job *Job, output int) cache.ChainID {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := sha256.New()
	fmt.Fprintf(h, "%s/%s/%d", name, job.Pin, output)
	if !w.constant[name] {
		for _, in := range job.Inputs {
			h.Write(in[:])
		}
	}
	return cache.ChainID(h.Sum(nil))
}

func (w *fakeWorker) ran(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.runs[name]
}

// fixture is a solver with fakes behind it.
type fixture struct {
	*Solver
	c *fakeCache
	w *fakeWorker
}

func newFixture(t testing.TB, o Options) *fixture {
	t.Helper()
	c := newFakeCache()
	w := newFakeWorker(c)
	f := &fixture{New(c, w, o), c, w}
	t.Cleanup(f.Close)
	return f
}

// source makes an image source of that name.
func source(t testing.TB, name string) llb.Edge {
	t.Helper()
	v, err := llb.Source("docker-image://"+name, nil, llb.WithName(name))
	if err != nil {
		t.Fatal(err)
	}
	return v.Output(0)
}

// step makes an exec of that name that mounts inputs, the first as its root.
func step(t testing.TB, name string, inputs ...llb.Edge) llb.Edge {
	t.Helper()
	return stepMeta(t, name, llb.Meta{Name: name}, inputs...)
}

func stepMeta(t testing.TB, name string, m llb.Meta, inputs ...llb.Edge) llb.Edge {
	t.Helper()
	x := llb.Exec{Meta: &pb.Meta{Args: []string{name}}}
	if len(inputs) == 0 {
		inputs = []llb.Edge{{}}
	}
	for i, in := range inputs {
		if i == 0 {
			x.Mounts = append(x.Mounts, llb.Root(in))
			continue
		}
		x.Mounts = append(x.Mounts, llb.Bind(in, "", fmt.Sprintf("/in%d", i)))
	}
	v, err := x.Vertex(llb.WithMeta(m))
	if err != nil {
		t.Fatal(err)
	}
	return v.Output(0)
}

// fresh is a step that ignores the cache.
func fresh(t testing.TB, name string, inputs ...llb.Edge) llb.Edge {
	t.Helper()
	return stepMeta(t, name, llb.Meta{Name: name, IgnoreCache: true}, inputs...)
}

// recorder notes events.
type recorder struct {
	mu     sync.Mutex
	events []Event
}

func (r *recorder) observe(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// lines gives the events as "kind name".
func (r *recorder) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, e := range r.events {
		line := ""
		switch e := e.(type) {
		case VertexStarted:
			line = "started "
		case VertexCached:
			line = "cached "
		case VertexCompleted:
			line = "completed "
			if e.Err != nil {
				line = "failed "
			}
		case VertexLog:
			line = "log " + strings.TrimSpace(string(e.Data)) + " "
		case VertexProgress:
			line = "progress "
		case Warning:
			line = "warning "
		}
		out = append(out, line+e.On().Name)
	}
	return out
}

func (r *recorder) has(t *testing.T, line string) {
	t.Helper()
	if got := r.lines(); !slices.Contains(got, line) {
		t.Errorf("no event %q among %q", line, got)
	}
}

func solve(t *testing.T, f *fixture, r Request) cache.ChainID {
	t.Helper()
	out, err := f.Solve(context.Background(), r)
	if err != nil {
		t.Fatalf("Solve: %v", err)
	}
	return out[0]
}
