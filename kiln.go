// Package kiln builds container images.
//
// An Engine owns a state folder: the cache of what was built, and what it was
// built from. Open gives one; Build turns a Request, whose zero value builds the
// Dockerfile of the current folder, into a Result, and tells of its progress in
// events. Several builds may run at once in one engine; they share what they have
// in common, also while it runs.
package kiln

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/journal"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/cdi"
	"github.com/kiln-build/kiln/worker/executor/userns"
	"github.com/kiln-build/kiln/worker/source"
)

// Options are the settings of an engine. The zero value works.
type Options struct {
	// Root is the state folder; empty is the configuration's, or else DefaultRoot.
	Root string
	// ConfigFile is the configuration file; empty is kiln.toml in the user's
	// configuration folder or /etc/kiln, where there is one.
	ConfigFile string
	// Waiting is called when another process holds the state folder and Open waits
	// for it; nil says nothing.
	Waiting func(pid int, command string)
	// Warn takes what is worth knowing and no error; nil drops it.
	Warn func(message string)
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
}

var _ exporter.Source = worker.Reader{}

// Engine builds images in a state folder. It is safe for concurrent use.
type Engine struct {
	config   Config
	clock    func() time.Time
	warn     func(string)
	cache    *cache.Cache
	records  *records
	registry *registry.Client
	// cacheRegistry is for remote caches.
	cacheRegistry *registry.Client
	close         func() error // of the executor
	worker        *worker.Worker
	solver        *solver.Solver
	collector     collector
	journal       *journal.Journal
	makers        makers
	// cacheKeys gives those of the configuration, read when the first build asks.
	cacheKeys func() (cacheKeys, error)
	// provenanceEnv gives what provenances say of this machine, read when the first asks.
	provenanceEnv func() (map[string]any, error)
}

// Open opens a state folder, making it where it is missing. It waits while another
// process has it open, until ctx ends.
func Open(ctx context.Context, o Options) (*Engine, error) {
	config, err := loadConfig(o.ConfigFile)
	if err != nil {
		return nil, err
	}
	if o.Root == "" {
		o.Root = config.Root
	}
	if o.Root == "" {
		o.Root = DefaultRoot()
	}
	if o.Root, err = filepath.Abs(o.Root); err != nil {
		return nil, err
	}
	e := &Engine{config: config, clock: o.Clock, warn: o.Warn, registry: &registry.Client{Hosts: config.Registry, Uploads: new(registry.Uploads)}}
	if e.clock == nil {
		e.clock = time.Now
	}
	if e.warn == nil {
		e.warn = func(string) {}
	}
	for _, line := range config.Unknown {
		e.warn("the configuration, " + line)
	}
	ids, _ := userns.IDs()
	e.cacheRegistry = &registry.Client{Hosts: config.Registry, Limits: cacheLimits, Uploads: e.registry.Uploads}
	e.cache, err = cache.Open(ctx, o.Root, cache.Options{
		Clock: o.Clock, Waiting: o.Waiting, Warn: func(err error) { e.warn(err.Error()) }, SingleID: ids == 1, LazyClose: true,
	})
	if err != nil {
		return nil, err
	}
	if err := e.wire(); err != nil {
		return nil, errors.Join(err, e.cache.Close())
	}
	return e, nil
}

// wire puts the parts together.
func (e *Engine) wire() error {
	run, err := e.executor()
	if err != nil {
		return err
	}
	e.records = &records{Cache: e.cache}
	o := worker.Options{DeviceDirs: e.config.CDI.SpecDirs, DevicesAllowed: e.config.CDI.AutoAllowed, Clock: e.clock, Images: source.ImagesOptions{Remote: e.records}, Mounts: e.records}
	if e.config.CDI.Disabled {
		o.DeviceDirs = []string{}
	}
	if e.worker, err = worker.New(e.cache, e.registry, run, o); err != nil {
		return err
	}
	e.collector.engine = e
	e.provenanceEnv = sync.OnceValues(func() (map[string]any, error) { return readProvenanceEnv(e.config.ProvenanceEnvDir) })
	e.cacheKeys = sync.OnceValues(e.config.Cache.keys)
	e.journal = journal.Open(e.cache)
	e.solver = solver.New(e.records, roomy{e.worker, &e.collector}, solver.Options{
		Parallelism: e.config.Worker.OCI.MaxParallelism,
		Lease:       func() solver.Lease { return e.cache.Lease() },
		Lookup:      e.records.LookupFor,
		Durations:   e.cache.Bucket("time"),
		Clock:       e.clock,
	})
	e.records.forget = e.solver.ForgetLayer
	return nil
}

// Close ends the engine. Builds must have ended before.
func (e *Engine) Close() error {
	e.solver.Close()
	e.collector.close()
	return errors.Join(e.close(), e.cache.Close())
}

// Path gives the path of a file or folder in the state folder.
func (e *Engine) Path(elem ...string) string { return e.cache.Path(elem...) }

// Devices gives the devices of this machine that steps can ask for, by name.
func (e *Engine) Devices() ([]cdi.Device, error) { return e.worker.Devices() }

// Config is the configuration that the engine was opened with.
func (e *Engine) Config() Config { return e.config }

// Usage lists what the state folder holds, largest first.
func (e *Engine) Usage(ctx context.Context) ([]cache.Usage, error) { return e.cache.Usage(ctx) }

// Prune collects what no build holds, within the bounds of o, and gives what went.
func (e *Engine) Prune(ctx context.Context, o cache.PruneOptions) ([]cache.Usage, error) {
	return e.cache.Prune(ctx, o)
}

// Blobs are those of the state folder.
func (e *Engine) Blobs() *blob.Store { return e.cache.Blobs() }
