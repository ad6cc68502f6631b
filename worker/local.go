package worker

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/pool"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/source"
	"github.com/kiln-build/kiln/worker/source/local"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sync/errgroup"
)

// localSource is "local://name": a folder that the session lends. Its pin is the
// identity of the folder's tree.
type localSource struct{ w *Worker }

var _ Source = (*localSource)(nil)

// localTree is a scanned folder of a session. Its chain is one layer, which has
// an identity of its own kind: while the files are not in the pool it must not
// be taken for the layer of the same tree that has them.
type localTree struct {
	name  string // what the folder is called in the build
	dir   string
	pin   string
	root  tree.Entry
	layer cache.LayerID
}

// ChangedError says that a file of a local folder changed while a build read it.
type ChangedError struct {
	Path string
	Err  error
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("%s changed while the build was reading it: %v", e.Path, e.Err)
}
func (e *ChangedError) Unwrap() error { return e.Err }

// localLayerID makes the identity of the layer that stands for a folder.
func localLayerID(root tree.Entry) cache.LayerID {
	id := root.ID()
	return sha256.Sum256(append([]byte("kiln local folder 1\x00"), id[:]...))
}

func filterOf(op *pb.SourceOp) (f Filter, err error) {
	f.Session = op.Attrs[pb.AttrLocalSessionID]
	for attr, list := range map[string]*[]string{
		pb.AttrIncludePatterns: &f.Include, pb.AttrExcludePatterns: &f.Exclude, pb.AttrFollowPaths: &f.Follow,
		pb.AttrMetadataTransferExclude: &f.Exceptions,
	} {
		if v, ok := op.Attrs[attr]; ok {
			if err := json.Unmarshal([]byte(v), list); err != nil {
				return f, fmt.Errorf("attribute %s of %s: %w", attr, op.Identifier, err)
			}
		}
	}
	if v := op.Attrs[pb.AttrMetadataTransfer]; v != "" {
		if f.MetadataOnly, err = strconv.ParseBool(v); err != nil {
			return f, fmt.Errorf("attribute %s of %s: %w", pb.AttrMetadataTransfer, op.Identifier, err)
		}
	}
	if !f.MetadataOnly {
		f.Exceptions = nil
	}
	switch f.Differ = Differ(op.Attrs[pb.AttrLocalDiffer]); f.Differ {
	case "", DifferMetadata, DifferNone:
		return f, nil
	}
	return f, fmt.Errorf("attribute %s of %s: %q is none of %s and %s", pb.AttrLocalDiffer, op.Identifier, f.Differ, DifferNone, DifferMetadata)
}

// scanned gives the tree of what a session gave for a filter.
func (s *localSource) scanned(ctx context.Context, dir string, f Filter) (tree.Entry, error) {
	if f.MetadataOnly {
		return s.w.scanner.Scan(ctx, dir, local.Filter{})
	}
	return s.w.scanner.Scan(ctx, dir, local.Filter{Include: f.Include, Exclude: f.Exclude, Follow: f.Follow})
}

// Pin scans the folder.
func (s *localSource) Pin(ctx context.Context, job *solver.Job, op *pb.SourceOp) (string, error) {
	f, err := filterOf(op)
	if err != nil {
		return "", err
	}
	name := refOf(op)
	for _, sess := range s.w.of(job) {
		if sess.Locals == nil {
			continue
		}
		sent := source.NewTransfer(job.Progress, "transferring "+name+":", "transferring")
		dir, err := sess.Locals.Local(ctx, name, f, sent.Add)
		sent.Done()
		if err != nil {
			return "", fmt.Errorf("local folder %q: %w", name, err)
		}
		root, err := s.scanned(ctx, dir, f)
		if err != nil {
			return "", err
		}
		t := &localTree{name: name, dir: dir, pin: solver.FolderPin(root), root: root, layer: localLayerID(root)}
		sess.mu.Lock()
		sess.locals = append(sess.locals, t)
		sess.mu.Unlock()
		return t.pin, nil
	}
	return "", fmt.Errorf("no local folder %q: the build lends none", name)
}

// Chain gives the chain that stands for the folder, whose files stay where they are.
func (s *localSource) Chain(_ context.Context, job *solver.Job, op *pb.SourceOp, pin string) (cache.ChainID, error) {
	for _, sess := range s.w.of(job) {
		for _, t := range sess.trees() {
			if t.pin != pin || t.name != refOf(op) {
				continue
			}
			if err := s.w.cache.PutLayer(cache.Layer{ID: t.layer, Root: t.root}); err != nil {
				return cache.ChainID{}, err
			}
			id, err := s.w.cache.Extend(cache.ChainID{}, t.layer)
			if err != nil {
				return id, err
			}
			// Another build may have left the state of a folder with other times.
			return id, s.w.cache.SetMerged(id, t.root)
		}
	}
	return cache.ChainID{}, fmt.Errorf("the build that lent the local folder %q has ended", refOf(op))
}

func (s *session) trees() []*localTree {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.locals[:len(s.locals):len(s.locals)]
}

// localOf gives the folder behind a chain, or nil for a chain that is none. Where no
// build has lent a folder the chain is not looked at.
func (w *Worker) localOf(job *solver.Job, id cache.ChainID) (*localTree, error) {
	var trees []*localTree
	for _, sessions := range [][]*session{w.of(job), w.of(nil)} {
		for _, s := range sessions {
			trees = append(trees, s.trees()...)
		}
	}
	if len(trees) == 0 {
		return nil, nil
	}
	c, err := w.cache.Chain(id)
	if err != nil || c.Depth != 1 {
		return nil, err
	}
	for _, t := range trees {
		if t.layer == c.Layer {
			return t, nil
		}
	}
	return nil, nil
}

// capture copies the files of a folder, below the tree root, into the pool, each
// under the entry that the tree has of it.
func (w *Worker) capture(ctx context.Context, t *localTree, path string, root tree.Entry) error {
	b := newBringer(ctx, w.cache.Pool(), func(int) *localTree { return t })
	err := tree.Walk(w.cache, root, func(p string, e tree.Entry) error {
		if e.Kind != tree.File {
			return nil
		}
		return b.bring(transfer{input: 0, path: filepath.Join(path, p), from: e, to: e})
	})
	if settled := b.settle(); settled != nil {
		return settled
	}
	return err
}

// solid gives a chain that is whole for one that a folder may stand behind: what
// the folder holds is captured, and becomes a layer like any other.
func (w *Worker) solid(ctx context.Context, job *solver.Job, id cache.ChainID) (cache.ChainID, error) {
	t, err := w.localOf(job, id)
	if t == nil || err != nil {
		return id, err
	}
	return w.captured(ctx, t, "", t.root)
}

// captured gives the chain of what the folder has at a path, whose files can be had
// from the pool or from its layer's folder afterwards. A build that mounts a folder as
// the build before left it looks at none of its files: to find each of 15,000 in the
// pool took 20 ms. A layer that is known promises its files as any other does, and by
// its own folder they were there; whoever misses one all the same calls Doubt.
func (w *Worker) captured(ctx context.Context, t *localTree, path string, root tree.Entry) (cache.ChainID, error) {
	if !w.hasFolder(root) {
		if err := w.capture(ctx, t, path, root); err != nil {
			return cache.ChainID{}, err
		}
	}
	return w.single(root)
}

// hasFolder says whether the layer that is the state root is known, and has a folder.
// Having asked for both, in this order, the caller's lease keeps them and what they
// lead to.
func (w *Worker) hasFolder(root tree.Entry) bool {
	if w.doubt.Load() {
		return false
	}
	l, err := w.cache.Layer(cache.TreeLayerID(root))
	if err != nil || !l.Root.Equal(root) {
		return false
	}
	_, ok := w.folders.Have(l)
	return ok
}

// single gives the chain of one layer that is a state of its own.
func (w *Worker) single(root tree.Entry) (cache.ChainID, error) {
	l := cache.Layer{ID: cache.TreeLayerID(root), Root: root}
	if err := w.cache.PutLayer(l); err != nil {
		return cache.ChainID{}, err
	}
	id, err := w.cache.Extend(cache.ChainID{}, l.ID)
	if err != nil {
		return id, err
	}
	return id, w.cache.SetMerged(id, root)
}

// transfer is a file that is to be in the pool.
type transfer struct {
	input    int // of which folder; -1 is the pool
	path     string
	from, to tree.Entry
}

// bringer runs transfers, many at a time. bring and settle are for one goroutine.
type bringer struct {
	ctx     context.Context
	pool    *pool.Pool
	local   func(input int) *localTree
	group   *errgroup.Group
	queue   chan transfer
	mu      sync.Mutex
	folders map[*localTree]*local.Folder
}

func newBringer(ctx context.Context, p *pool.Pool, folder func(int) *localTree) *bringer {
	return &bringer{ctx: ctx, pool: p, local: folder, folders: make(map[*localTree]*local.Folder)}
}

// bring begins a transfer. Its error may be that of an earlier one.
func (b *bringer) bring(t transfer) error {
	if b.group == nil {
		var ctx context.Context
		b.group, ctx = errgroup.WithContext(b.ctx)
		b.queue = make(chan transfer, 256)
		queue := b.queue
		for range 2 * runtime.GOMAXPROCS(0) {
			b.group.Go(func() error {
				var first error
				for t := range queue {
					if ctx.Err() != nil {
						continue // the queue must not stay full
					}
					if err := b.run(ctx, t); err != nil && first == nil {
						first = err
					}
				}
				return first
			})
		}
	}
	b.queue <- t
	return nil
}

// settle waits for all transfers that were begun.
func (b *bringer) settle() error {
	if b.group == nil {
		return nil
	}
	close(b.queue)
	err := b.group.Wait()
	b.group = nil
	for _, f := range b.folders {
		f.Close()
	}
	clear(b.folders)
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	return err
}

func (b *bringer) run(ctx context.Context, t transfer) error {
	if t.input < 0 {
		return b.pool.Copy(ctx, t.from, t.to)
	}
	if b.pool.Has(t.to) {
		return nil
	}
	l := b.local(t.input)
	folder, err := b.folder(l)
	if err != nil {
		return err
	}
	f, err := folder.Open(t.path)
	if err != nil {
		return &ChangedError{Path: filepath.Join(l.dir, t.path), Err: err}
	}
	defer f.Close()
	err = b.pool.Put(ctx, t.to, f)
	var differs *pool.ContentError
	if errors.As(err, &differs) {
		return &ChangedError{Path: filepath.Join(l.dir, t.path), Err: differs}
	}
	return err
}

func (b *bringer) folder(l *localTree) (*local.Folder, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, ok := b.folders[l]
	if !ok {
		var err error
		if f, err = local.OpenFolder(l.dir); err != nil {
			return nil, err
		}
		b.folders[l] = f
	}
	return f, nil
}
