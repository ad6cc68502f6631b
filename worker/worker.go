package worker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/cdi"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/kiln-build/kiln/worker/layer"
	"github.com/kiln-build/kiln/worker/source"
	"github.com/kiln-build/kiln/worker/source/local"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options are the settings of a worker; the zero value works.
type Options struct {
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
	// Images are the settings of the image source.
	Images source.ImagesOptions
	// Mounts knows the cache mounts of other machines; nil knows none.
	Mounts Mounts
	// Keyring is the folder in which secrets are laid out for steps, in memory;
	// empty is /dev/shm or the run folder, where those are a tmpfs, else the state
	// folder.
	Keyring string
	// DeviceDirs are the folders with specifications of devices, those that count
	// more coming later; nil is cdi.DefaultDirs, and none that there are no devices.
	DeviceDirs []string
	// DevicesAllowed are devices and kinds of them that need not be granted.
	DevicesAllowed []string
}

// Worker runs operations. It is safe for concurrent use.
type Worker struct {
	cache   *cache.Cache
	images  *source.Images
	layouts *source.Layout
	exec    executor.Executor
	folders *layer.Folders
	scanner *local.Scanner
	mounts  cacheMounts
	afar    Mounts // nil where there are none
	clock   func() time.Time
	keyring string
	sources map[string]Source
	git     *source.Git
	web     *source.HTTP
	proxies *proxies
	doubt   atomic.Bool // see Doubt
	// deviceDirs have the specifications of devices.
	deviceDirs, devicesAllowed []string

	mu       sync.Mutex
	sessions []*session // in the order in which they were opened
}

var (
	_ solver.Worker  = (*Worker)(nil)
	_ solver.Fetcher = (*Worker)(nil)
)

// New makes a worker on a state folder.
func New(c *cache.Cache, reg *registry.Client, ex executor.Executor, o Options) (*Worker, error) {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.DeviceDirs == nil {
		o.DeviceDirs = cdi.DefaultDirs
	}
	w := &Worker{
		cache: c, images: source.NewImages(c, reg, o.Images), exec: ex,
		folders: layer.NewFolders(c), clock: o.Clock, keyring: keyring(c, o.Keyring), deviceDirs: o.DeviceDirs, devicesAllowed: o.DevicesAllowed,
		afar:    o.Mounts,
		proxies: newProxies(c),
		scanner: &local.Scanner{Nodes: c, Stats: c.Bucket("stat"), Clock: o.Clock},
	}
	w.addSources(reg)
	return w, nil
}

// addSources fills the table of sources.
func (w *Worker) addSources(reg *registry.Client) {
	git, web, layout := source.NewGit(w.cache), source.NewHTTP(w.cache), source.NewLayout(w.cache)
	blob := source.NewBlob(w.cache, reg)
	blob.Store, blob.Credentials = w.layoutOf, w.credentials
	git.Secret, web.Secret = w.secretOf, w.secretOf
	git.SSH, git.Blobs = w.dialAgent, blob
	web.Upload = w.uploadOf
	layout.Store = w.layoutOf
	w.layouts, w.git, w.web = layout, git, web
	w.sources = map[string]Source{
		"docker-image":      &imageSource{w},
		"docker-image+blob": blob,
		"local":             &localSource{w},
		"git":               git,
		"http":              web,
		"https":             web,
		"oci-layout":        layout,
		"oci-layout+blob":   blob,
	}
}

// AddSource makes s the source of a scheme. It is to be called before the worker
// is used.
func (w *Worker) AddSource(scheme string, s Source) { w.sources[scheme] = s }

// Images is the worker's image source.
func (w *Worker) Images() *source.Images { return w.images }

// ResolveLayout finds an image in an image layout that a session lends under the
// name store. The reference carries the image's digest.
func (w *Worker) ResolveLayout(ctx context.Context, id solver.SessionID, store, ref string, p ocispecs.Platform) (source.Image, error) {
	job := &solver.Job{Sessions: func() []solver.SessionID { return []solver.SessionID{id} }}
	op := &pb.SourceOp{Identifier: "oci-layout://" + ref, Attrs: map[string]string{pb.AttrOCILayoutStoreID: store}}
	return w.layouts.Resolve(ctx, job, op, p)
}

// session is an open Session and what the worker remembers for it.
type session struct {
	Session
	id solver.SessionID

	mu     sync.Mutex
	images map[string]source.Image // by reference, platform and pin
	locals []*localTree

	// renewed are the folders of cache mounts that were emptied for the build; guarded by
	// cacheMounts.mu.
	renewed map[string]bool
}

// OpenSession lends s to the steps of a build, until CloseSession.
func (w *Worker) OpenSession(id solver.SessionID, s Session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sessions = append(w.sessions, &session{Session: s, id: id, images: make(map[string]source.Image)})
}

// CloseSession ends what OpenSession began, and forgets the build's folders.
func (w *Worker) CloseSession(id solver.SessionID) {
	w.git.Forget(id)
	w.web.Forget(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := make([]*session, 0, len(w.sessions))
	for _, s := range w.sessions {
		if s.id != id {
			kept = append(kept, s)
		}
	}
	w.sessions = kept
}

// of gives the open sessions of a job. A nil job is all sessions.
func (w *Worker) of(job *solver.Job) []*session {
	w.mu.Lock()
	all := w.sessions
	w.mu.Unlock()
	if job == nil {
		return all
	}
	var out []*session
	for _, id := range job.Sessions() {
		for _, s := range all {
			if s.id == id {
				out = append(out, s)
			}
		}
	}
	return out
}

// credentials finds logins in the sessions of a job, the first one that has any
// for a host.
func (w *Worker) credentials(job *solver.Job) registry.Credentials {
	return credentials(w.of(job))
}

type credentials []*session

// Credential makes credentials registry.Credentials.
func (c credentials) Credential(ctx context.Context, host string) (user, secret string, err error) {
	asked := false
	for _, s := range c {
		var from registry.Credentials = s.Credentials
		if s.Credentials == nil {
			from = new(registry.Docker)
		}
		asked = true
		if user, secret, err = from.Credential(ctx, host); err == nil && (user != "" || secret != "") {
			return user, secret, nil
		}
	}
	if !asked {
		return new(registry.Docker).Credential(ctx, host)
	}
	return user, secret, err
}

// Run runs a vertex.
func (w *Worker) Run(ctx context.Context, job *solver.Job) ([]cache.ChainID, error) {
	outs, err := w.run(ctx, job)
	if err != nil {
		return nil, err
	}
	for _, out := range outs {
		job.Lease.Hold(out)
	}
	return outs, nil
}

func (w *Worker) run(ctx context.Context, job *solver.Job) ([]cache.ChainID, error) {
	switch op := job.Vertex.Op().Op.(type) {
	case *pb.Op_Source:
		return w.runSource(ctx, job, op.Source)
	case *pb.Op_Exec:
		return w.runExec(ctx, job, op.Exec)
	case *pb.Op_File:
		return w.runFile(ctx, job, op.File)
	case *pb.Op_Merge:
		return w.runMerge(ctx, job, op.Merge)
	case *pb.Op_Diff:
		return w.runDiff(ctx, job, op.Diff)
	case *pb.Op_Build:
		return w.runBuild(ctx, job, op.Build)
	default:
		return nil, fmt.Errorf("unknown op type %T", op)
	}
}

// Source brings in what the sources of a scheme stand for.
type Source interface {
	// Pin says what op stands for now, for the sessions of the job.
	Pin(ctx context.Context, job *solver.Job, op *pb.SourceOp) (string, error)
	// Chain gives the chain of what a pin of op stands for.
	Chain(ctx context.Context, job *solver.Job, op *pb.SourceOp, pin string) (cache.ChainID, error)
}

// A Dater is what a Source is besides, where it can tell when its content was made.
type Dater interface {
	// Time gives that time for what op stands for now; zero where nobody knows it.
	Time(ctx context.Context, job *solver.Job, op *pb.SourceOp) (time.Time, error)
}

var _, _ Dater = (*source.Git)(nil), (*source.HTTP)(nil)

// SourceTime gives the time of the content that a source vertex stands for, asked
// for with what a session lends; zero where nobody knows it.
func (w *Worker) SourceTime(ctx context.Context, id solver.SessionID, v *llb.Vertex) (time.Time, error) {
	op, ok := v.Op().Op.(*pb.Op_Source)
	if !ok {
		return time.Time{}, fmt.Errorf("vertex %s is no source and has no time", v.Digest())
	}
	s, err := w.source(op.Source)
	if err != nil {
		return time.Time{}, err
	}
	d, ok := s.(Dater)
	if !ok {
		return time.Time{}, nil
	}
	job := &solver.Job{Vertex: v, Sessions: func() []solver.SessionID { return []solver.SessionID{id} }}
	return d.Time(ctx, job, op.Source)
}

// Pin says what a source vertex stands for now.
func (w *Worker) Pin(ctx context.Context, job *solver.Job) (string, error) {
	op, ok := job.Vertex.Op().Op.(*pb.Op_Source)
	if !ok {
		return "", fmt.Errorf("vertex %s is no source and has no pin", job.Vertex.Digest())
	}
	s, err := w.source(op.Source)
	if err != nil {
		return "", err
	}
	return s.Pin(ctx, job, op.Source)
}

func (w *Worker) runSource(ctx context.Context, job *solver.Job, op *pb.SourceOp) ([]cache.ChainID, error) {
	s, err := w.source(op)
	if err != nil {
		return nil, err
	}
	id, err := s.Chain(ctx, job, op, job.Pin)
	if err != nil {
		return nil, err
	}
	return []cache.ChainID{id}, nil
}

func (w *Worker) source(op *pb.SourceOp) (Source, error) {
	scheme, _, ok := strings.Cut(op.Identifier, "://")
	if !ok {
		return nil, fmt.Errorf("failed to parse source identifier %q: it has no scheme", op.Identifier)
	}
	s, ok := w.sources[scheme]
	if !ok {
		return nil, fmt.Errorf("unknown source scheme %q in %q", scheme, op.Identifier)
	}
	return s, nil
}

// refOf gives what stands behind the scheme of a source's identifier.
func refOf(op *pb.SourceOp) string {
	_, ref, _ := strings.Cut(op.Identifier, "://")
	return ref
}

// inputOf gives the chain of an input index of an op; -1 is scratch.
func inputOf(v *llb.Vertex, chains []cache.ChainID, index int64) (cache.ChainID, error) {
	if index == int64(pb.Empty) {
		return cache.ChainID{}, nil
	}
	if index < 0 || index >= int64(len(chains)) {
		return cache.ChainID{}, fmt.Errorf("invalid input index %d of %s: it has %d inputs", index, v.Digest(), len(chains))
	}
	return chains[index], nil
}
