package kiln

import (
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/dockerfile"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
)

// Event is something that happens in a build: one of package solver's events, or
// a FrontendWarning. What is no vertex of the graph, the export for one, is told
// of as if it were.
type Event = solver.Event

// FrontendWarning is a message about the build description.
type FrontendWarning struct {
	solver.Subject
	frontend.Warning
}

// Result is what a build made.
type Result struct {
	// Digest is that of the manifest, or of the index where there are several
	// platforms; empty where no output made one.
	Digest string
	// Metadata is what the outputs and the frontend tell, in BuildKit's names.
	Metadata map[string]string
	// Ran and Cached count the steps that ran, and those that did not have to.
	Ran, Cached int
	// Started and Completed are when the build did so.
	Started, Completed time.Time
	// Documents are the manifests and configs that outputs made, and Provenance says
	// what each image was built from, where the request asked for a Record.
	Documents  []Document
	Provenance []Provenance
}

// maxSolves is how often a build is solved before a layer that goes missing each
// time is an error.
const maxSolves = 5

// build is one build while it goes on.
type build struct {
	engine  *Engine
	session solver.SessionID
	lease   *cache.Lease
	// frontend and credentials are the request's, or else the Dockerfile frontend
	// and docker's.
	frontend    frontend.Frontend
	credentials registry.Credentials
	forward     func(context.Context, frontend.Bridge, string, string, frontend.Request) (*frontend.Result, bool, error)
	caches      caches
	imports     imports
	// cacheFolders are those of a session that is elsewhere.
	cacheFolders worker.CacheFolders
	attests      attests
	chronicle    chronicle
	made         *made           // by the last run
	finishing    *finishing      // of the caches; nil where it has not begun
	roots        []cache.ChainID // of its images
	guard        guard           // its set and check never change
	used         *measured       // nil where nobody wants to know
	nested       nested
	proxied      bool // the build has the proxy network
	packs        bool // an output holds the blobs of all layers

	mu     sync.Mutex // guards what is below, and orders the calls of events
	events func(Event)
	steps  map[llb.Digest]*llb.Vertex // those of the graph that are no sources
	edges  []llb.Edge                 // all that were solved
	given  []attributed               // graphs that frontends were given names for
	// exports are the remote caches that are being written.
	exports []*cacheExport
	results resultLayers
	result  Result
}

// Build builds what r asks for.
func (e *Engine) Build(ctx context.Context, r Request) (*Result, error) {
	b := e.newBuild(r.Events)
	defer b.end()
	req, release, err := b.open(&r)
	if err != nil {
		return nil, err
	}
	defer release()
	if answer, err := e.answer(req.Opts); answer != nil || err != nil {
		return answer, err
	}
	ctx, cancel, err := b.chronicled(ctx, &r, req.Opts)
	if err != nil {
		return nil, err
	}
	defer cancel()
	exporters, err := b.exporters(&r)
	if err != nil {
		return nil, err
	}
	b.packs = slices.ContainsFunc(r.Outputs, func(o Output) bool { return o.Type == "oci" || o.Type == "docker" })
	if b.caches, err = b.parseCaches(&r); err != nil {
		return nil, err
	}
	if b.attests, err = parseAttests(req.Opts); err != nil {
		return nil, err
	}
	defer b.openCaches(ctx, r.CacheFrom)()
	for range maxSolves {
		err = b.run(ctx, &r, req, exporters)
		var gone *cache.GoneError
		if !errors.As(err, &gone) {
			break
		}
		b.tellAgain(gone)
		e.worker.Doubt()
		b.refinishCaches(ctx)
		if err := e.solver.ForgetLayer(gone.Layer); err != nil {
			return nil, err
		}
	}
	if err == nil && !b.chronicle.dryRun {
		err = b.cachesFinished(ctx)
	}
	if err == nil && r.Exported != nil {
		err = r.Exported(ctx, b.result.Metadata)
	}
	b.tell(ctx, &r, err)
	err = b.hits(err)
	b.learn(ctx)
	if nerr := b.note(ctx, err); err == nil {
		err = nerr
	}
	if err != nil {
		return nil, err
	}
	b.result.Completed = e.clock()
	b.result.Digest = b.result.Metadata["containerimage.digest"]
	if r.Record && b.made != nil {
		b.result.Provenance = b.provenances(ctx, b.made)
	}
	return &b.result, nil
}

// tellAgain warns of a layer that was missing when an output wanted it.
func (b *build) tellAgain(gone *cache.GoneError) {
	name := "building again what is gone"
	_ = b.step(name, func() error {
		b.warnIn(name, gone.Error()+"; the steps that it came from count as not cached")
		return nil
	})
}

// Compile gives the graphs that r's build description compiles to, and builds
// nothing but what the frontend asks for on the way.
func (e *Engine) Compile(ctx context.Context, r Request) ([]frontend.ResultImage, error) {
	b := e.newBuild(r.Events)
	defer b.end()
	req, release, err := b.open(&r)
	if err != nil {
		return nil, err
	}
	defer release()
	compiled, err := b.frontend.Build(frontend.WithCall(ctx, b.call(req)), req, b.bridge())
	if err != nil {
		return nil, err
	}
	return compiled.Images, nil
}

func (e *Engine) newBuild(events func(Event)) *build {
	b := &build{
		engine: e, session: newSessionID(), lease: e.cache.Lease(), events: events,
		result: Result{Metadata: map[string]string{}, Started: e.clock()},
	}
	e.solver.BeginSession(b.session)
	return b
}

func (b *build) end() {
	b.used.end()
	b.nested.end()
	b.forgetGiven()
	b.engine.solver.EndSession(b.session)
	b.engine.worker.CloseSession(b.session)
	b.lease.Release()
	b.engine.collector.after()
}

// open lends the worker what the request lends, and gives what the frontend gets.
func (b *build) open(r *Request) (req frontend.Request, release func(), err error) {
	in, err := r.inputs()
	if err == nil {
		err = b.openGuard(r)
	}
	if err != nil {
		return req, nil, err
	}
	release = func() {}
	b.frontend, b.credentials, b.forward = r.Frontend, new(registry.Docker), r.Forward
	if b.frontend == nil {
		b.frontend = dockerfile.New()
	}
	req = frontend.Request{Opts: in.attrs, Inputs: r.Inputs}
	if r.Session != nil {
		b.lend(r, in.attrs, *r.Session)
		return req, release, nil
	}
	if len(r.DockerfileText) > 0 {
		dir, err := os.MkdirTemp(b.engine.cache.Path("tmp"), "dockerfile-")
		if err != nil {
			return req, nil, err
		}
		release = func() { os.RemoveAll(dir) }
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), r.DockerfileText, 0o600); err != nil {
			release()
			return req, nil, err
		}
		in.locals["dockerfile"] = dir
	}
	locals, done := &lentFolders{folders: in.locals, temp: b.engine.cache.Path("tmp")}, release
	release = func() { locals.close(); done() }
	s := worker.Session{Locals: locals, Layouts: in.layouts, Secrets: secrets(r.Secrets), SSH: agents(r.SSH)}
	if len(in.uploads) > 0 {
		s.Uploads = in.uploads
	}
	b.lend(r, in.attrs, s)
	return req, release, nil
}

// lend opens the build's session.
func (b *build) lend(r *Request, attrs map[string]string, s worker.Session) {
	if s.Credentials == nil {
		s.Credentials = b.credentials
	}
	b.credentials, b.cacheFolders = s.Credentials, s.CacheFolders
	granted := maps.Clone(s.Entitlements)
	if granted == nil {
		granted = map[string]bool{}
	}
	for _, a := range r.Allow {
		granted[a] = true
	}
	s.Entitlements = granted
	s.Graphs = b
	if b.proxied = r.ProxyNetwork || b.engine.config.ProxyNetwork; b.proxied {
		s.Proxy = requests{b}
	}
	s.Usage = b.measure(r, attrs)
	s.Debug = s.Debug || r.OnError != nil
	b.engine.worker.OpenSession(b.session, s)
}

// run compiles, solves and exports once.
func (b *build) run(ctx context.Context, r *Request, req frontend.Request, exporters []shownExporter) error {
	call := b.call(req)
	call.Attribute(b.bridge())
	compiled, err := b.frontend.Build(frontend.WithCall(ctx, call), req, b.bridge())
	if err != nil {
		return err
	}
	question := req.Opts["requestid"] != "" && len(compiled.Images) == 0
	for k, v := range compiled.Metadata {
		if question || strings.HasPrefix(k, "frontend.") {
			b.result.Metadata[k] = string(v)
		}
	}
	if question {
		return nil
	}
	m, err := b.plan(ctx, call.Made(compiled))
	if err != nil {
		return err
	}
	if m.edges, err = b.admit(ctx, nil, m.edges); err != nil {
		return err
	}
	b.count(m.edges)
	if err := b.foreseen(); err != nil {
		return err
	}
	if b.chronicle.dryRun {
		return b.preview(ctx, m.edges)
	}
	if m.chains, err = b.solve(ctx, m.edges...); err != nil {
		return err
	}
	if err := b.hits(nil); err != nil {
		return err
	}
	b.warnPlatforms(req.Opts, m.Result)
	b.made, b.roots = m, m.chains[:len(m.images)]
	b.result.Documents = nil
	if exporters, err = b.allExporters(ctx, r, exporters, m); err != nil {
		return err
	}
	result := b.exported(ctx, m)
	b.addInline(ctx, &result)
	return b.writeOutputs(ctx, result, exporters)
}

// solve runs graphs for this build, and holds what they come to until it ends.
func (b *build) solve(ctx context.Context, edges ...llb.Edge) ([]cache.ChainID, error) {
	b.mu.Lock()
	b.edges = append(b.edges, edges...)
	b.mu.Unlock()
	chains, err := b.engine.solver.Solve(ctx, solver.Request{Session: b.session, Edges: edges, Lease: b.lease, Observe: b.emit, Report: b.collect})
	var failed *worker.StepError
	if errors.As(err, &failed) {
		for _, c := range slices.Concat(failed.Inputs, failed.Left) {
			b.lease.Hold(c)
		}
	}
	return chains, b.placed(err)
}

// count notes which vertices the result counts as steps.
func (b *build) count(edges []llb.Edge) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.steps = map[llb.Digest]*llb.Vertex{}
	b.result.Ran, b.result.Cached = 0, 0
	for _, v := range llb.Walk(edges...) {
		if v.Op().GetSource() == nil {
			b.steps[v.Digest()] = v
		}
	}
}

// emit passes an event on.
func (b *build) emit(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.steps[e.On().Vertex] != nil {
		switch e := e.(type) {
		case solver.VertexStarted:
			b.mustHit(e.Name)
		case solver.VertexCached:
			b.result.Cached++
			b.stepEnded(e.Vertex)
		case solver.VertexCompleted:
			if e.Err == nil {
				b.result.Ran++
				b.stepEnded(e.Vertex)
			}
		}
	}
	if b.events != nil {
		b.events(e)
	}
}

// step runs f, and tells of it as if it were a vertex.
func (b *build) step(name string, f func() error) error {
	done := steps{b}.Step(name)
	err := f()
	done(err)
	return err
}

// steps tells of what a build does outside of its graph.
type steps struct{ *build }

// Step begins one; done ends it.
func (s steps) Step(name string) (done func(error)) {
	started := s.engine.clock()
	subject := solver.Subject{Vertex: s.stepID(name), Name: name, Time: started}
	s.emit(solver.VertexStarted{Subject: subject})
	return func(err error) {
		subject.Time = s.engine.clock()
		s.emit(solver.VertexCompleted{Subject: subject, Started: started, Err: err})
	}
}

// stepID is what events call a step that is no vertex.
func (b *build) stepID(name string) llb.Digest {
	return sha256.Sum256([]byte(string(b.session) + name))
}

// warn tells the build's user of something that does not stop it.
func (b *build) warn(text string) { b.warnOf(llb.Digest{}, text) }

// warnIn warns of something in a step that is under way. BuildKit's clients print such
// warnings only.
func (b *build) warnIn(step, text string) { b.warnOf(b.stepID(step), text) }

func (b *build) warnOf(on llb.Digest, text string) {
	subject := solver.Subject{Vertex: on, Time: b.engine.clock()}
	b.emit(FrontendWarning{Subject: subject, Warning: frontend.Warning{Short: text, Level: 1}})
}
