package remote

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// putsAtOnce is how many layers are made and sent at the same time. Registries
// answer slowly rather than send slowly; many more would make them answer slower.
const putsAtOnce = 4

// Entry is a record to be exported, with the keys that it is to be found under.
type Entry struct {
	Keys   []cache.Key
	Record cache.Record
}

// Form is a layer as a blob that can be read.
type Form struct {
	DiffID  blob.Digest
	Blob    blob.Descriptor
	Origins []string
	Aside   bool // no image of the build has the layer
	Open    func(context.Context) (io.ReadCloser, error)
}

// Forms gives the blob of a layer of a chain, making it if need be.
type Forms func(ctx context.Context, chain cache.ChainID, l cache.Layer) (Form, error)

// Variant is another blob of a layer: its files with the times, or in the
// compression, that an image wants. How says which, in the words of who makes images.
type Variant struct {
	How    string          `json:"how"`
	DiffID blob.Digest     `json:"diffID"`
	Blob   blob.Descriptor `json:"blob"`
}

// ExportOptions are the settings of an export; the zero value works but for Forms.
type ExportOptions struct {
	Forms Forms
	// Created gives when a layer was first exported in an image, zero for never; may
	// be nil. It is asked when the build's outputs are written, and so is Variants.
	Created func(id cache.LayerID) time.Time
	// Variants gives those that are known of a layer; may be nil.
	Variants func(l cache.Layer) []Variant
	// Copy gives another blob of an image's layer, which takes less to be unpacked than the
	// layer's own, where it can be made of what is here; ok is false where it cannot. The
	// cache holds it for machines that start empty. It may be nil.
	Copy func(ctx context.Context, chain cache.ChainID, l cache.Layer) (f Form, ok bool)
	// Packed gives the packed build, MaxBuild bytes at most, and nil for none; it may be
	// nil. It is asked when there is something to write.
	Packed func() []byte
	// Sign signs what is exported; nil signs nothing. Nothing of what the cache
	// holds is counted on then unless the same key has signed it.
	Sign ed25519.PrivateKey
	// Envelope is what a cache is written as that is written at all.
	Envelope Envelope
	// Parallel is how many blobs are sent at once; 0 is 4.
	Parallel int
	// Import reads the same cache, whose index is then not read again; may be nil.
	Import *Import
}

// Stats are what an export did.
type Stats struct {
	Records, Layers int // those of this export that the cache has now
	Sent            int // layers that were sent there, or found to be there
	// Skipped counts the records that were left out, and Reason says why the last was.
	Skipped int
	Reason  string
	// Replaced says why nothing of what was there was kept; nil where all was.
	Replaced error
	// Unsaved says why cache mounts were not saved.
	Unsaved []string
	// Manifest is that of the cache as it is now; its size is 0 where nothing is there.
	Manifest blob.Descriptor
}

// Toward gives the entries that lead to the results, or to chains below them.
func Toward(c *cache.Cache, entries []Entry, results []cache.ChainID) ([]Entry, error) {
	below := map[cache.ChainID]struct{}{{}: {}}
	for _, r := range results {
		for at := r; ; {
			if _, ok := below[at]; ok {
				break
			}
			below[at] = struct{}{}
			link, err := c.Chain(at)
			if err != nil {
				return nil, err
			}
			at = link.Parent
		}
	}
	var out []Entry
	for _, e := range entries {
		// One output of several is enough: a step is not run again for the sake of those
		// that nobody asked for. Scratch, which is below everything, leads nowhere.
		toward, made := false, false
		for _, o := range e.Record.Outputs {
			_, ok := below[o]
			made = made || o != (cache.ChainID{})
			toward = toward || ok && o != (cache.ChainID{})
		}
		if toward || !made {
			out = append(out, e)
		}
	}
	return out, nil
}

// Export adds entries to the cache in a store.
func Export(ctx context.Context, c *cache.Cache, to Target, o ExportOptions, entries []Entry, now time.Time) (Stats, error) {
	x := Begin(ctx, c, to, o)
	defer x.Close()
	return x.Finish(ctx, entries, nil, now)
}

// Exporter is an export to one cache while it goes on. Begin reads what the cache
// has, Add sends layers as they come to be, Finish writes the records down. Layers
// that the cache holds already are neither made nor sent. An Exporter is safe for
// concurrent use until Finish is called.
type Exporter struct {
	cache *cache.Cache
	to    Target
	opt   ExportOptions

	cancel context.CancelCauseFunc
	group  *errgroup.Group
	ctx    context.Context // of the export, which outlives the call that began it
	gctx   context.Context // of the group
	loaded chan struct{}   // closed when the fields of the next block are set

	old      *index          // nil where there is none that can be used
	name     blob.Descriptor // of the manifest that was there, of whatever kind
	loadErr  error
	replaced error
	held     map[id]layer // what the cache held when the export began
	copies   map[id]*layerCopy

	packed *sentBuild // once it was asked for

	mu     sync.Mutex // guards the maps
	places map[cache.LayerID]*place
	chains map[cache.ChainID]chainPlan
}

// place is a layer that records lead to. Its fields beyond known are set by the
// one goroutine that sends it, and read when the group has ended.
type place struct {
	chain    cache.ChainID
	known    cache.Layer
	out      layer
	standing standing
	err      error // why the layer cannot be had: records that need it are left out
}

// standing is how a layer stands with the store.
type standing uint8

const (
	// isUnsent is none of the others. Exporter.send moves it on.
	isUnsent standing = iota
	// isListed is counted on, since the cache lists it. What Exporter.ask does not find is gone.
	isListed
	// isGone is listed by the cache and not there. Exporter.send sends it.
	isGone
	// isSent was put there by this export, or found by it.
	isSent
)

// chainPlan is a chain with its layers bottom first.
type chainPlan struct {
	layers []*place
	err    error
}

// Begin begins an export. Close ends it, whatever became of it.
func Begin(ctx context.Context, c *cache.Cache, to Target, o ExportOptions) *Exporter {
	return begin(ctx, c, to, o, true)
}

// begin is Begin, counting on what the cache lists where trust is set.
func begin(ctx context.Context, c *cache.Cache, to Target, o ExportOptions, trust bool) *Exporter {
	x := &Exporter{
		cache: c, to: to, opt: o, loaded: make(chan struct{}), held: map[id]layer{}, copies: map[id]*layerCopy{},
		places: map[cache.LayerID]*place{}, chains: map[cache.ChainID]chainPlan{},
	}
	if x.opt.Parallel <= 0 {
		x.opt.Parallel = putsAtOnce
	}
	x.ctx, x.cancel = context.WithCancelCause(ctx)
	x.group, x.gctx = errgroup.WithContext(x.ctx)
	x.group.SetLimit(x.opt.Parallel)
	go func() {
		defer close(x.loaded)
		x.load(x.ctx, trust)
	}()
	return x
}

// load reads what the cache has.
func (x *Exporter) load(ctx context.Context, trust bool) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	old, name, err := x.read(ctx)
	x.name = name
	switch {
	case err != nil && !isReplaceable(err):
		x.loadErr = err
		return
	case err != nil && !isMissing(err):
		x.replaced = err
	}
	if old == nil || !trust {
		return
	}
	x.countOn(old)
}

// read gives what the cache has, from the import that has read it, if one has.
func (x *Exporter) read(ctx context.Context) (*index, blob.Descriptor, error) {
	if i := x.opt.Import; i != nil {
		select {
		case <-i.loaded:
		case <-ctx.Done():
			// A build that failed does not wait for a server that says nothing.
			return nil, blob.Descriptor{}, context.Cause(ctx)
		}
		if i.index != nil {
			return i.index, i.manifest, nil
		}
	}
	return load(ctx, x.to)
}

// isReplaceable tells a cache that is not there, or of no use, from one that could
// not be read this time.
func isReplaceable(err error) bool {
	var format *FormatError
	return isMissing(err) || errors.As(err, &format)
}

// Cancel cuts the export short: what goes on ends with cause.
func (x *Exporter) Cancel(cause error) { x.cancel(cause) }

// Close cuts the export short, if it is still under way, and waits for its end.
func (x *Exporter) Close() {
	x.cancel(context.Canceled)
	<-x.loaded
	_ = x.group.Wait() // its error is Finish's to tell
}

// Add begins to send the layers of a chain. It waits while many are under way.
func (x *Exporter) Add(at cache.ChainID) {
	x.mu.Lock()
	_, fresh := x.plan(at)
	x.mu.Unlock()
	for _, p := range fresh {
		x.group.Go(func() error { return x.send(x.gctx, p, false) })
	}
}

// plan finds the layers of a chain, and those of them that are new to the export.
func (x *Exporter) plan(at cache.ChainID) (p chainPlan, fresh []*place) {
	if p, ok := x.chains[at]; ok || at == (cache.ChainID{}) || at == cache.Absent {
		return p, nil
	}
	layers, err := x.cache.Layers(at)
	p.err = err
	for _, l := range layers {
		pl, ok := x.places[l.ID]
		if !ok {
			pl = &place{chain: at, known: l}
			pl.err = exportable(l)
			x.places[l.ID] = pl
			if pl.err == nil {
				fresh = append(fresh, pl)
			}
		}
		p.layers = append(p.layers, pl)
	}
	x.chains[at] = p
	return p, fresh
}

// exportable says what is in the way of a layer's being brought back from its tar stream.
func exportable(l cache.Layer) error {
	if !l.DiffID.IsZero() && (l.ID == cache.ImageLayerID(l.DiffID) || l.Root.Kind == tree.None) {
		return nil
	}
	if l.Root.Kind != tree.Dir || l.ID != cache.TreeLayerID(l.Root) {
		return errors.New("it stands on a folder of the machine that built it")
	}
	// A layer's tar stream has no entry for the root.
	r := l.Root
	if r.Mode != 0o755 || r.UID != 0 || r.GID != 0 || len(r.Xattrs) > 0 {
		return errors.New("it changes the owner, mode or attributes of the root directory, which image layers cannot hold")
	}
	return nil
}

// send sends one layer unless the cache holds it. Its error is one of the store's;
// a layer that cannot be made, or read, costs the records that need it. While the build
// goes on, which atEnd is not, a layer that turned out to be gone waits: the step may be
// running again, and Forms is to be asked for what comes of that.
func (x *Exporter) send(ctx context.Context, p *place, atEnd bool) error {
	select {
	case <-x.loaded:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if x.loadErr != nil {
		return x.loadErr
	}
	if p.err = exportable(p.known); p.err != nil {
		return nil
	}
	if p.standing != isGone {
		p.standing = isUnsent
	}
	p.out = layer{ID: id(p.known.ID), DiffID: p.known.DiffID, Size: p.known.Size, Blobs: p.known.Blobs, Origins: p.known.Origins}
	held, listed, lacking := x.holds(p)
	if listed && !lacking {
		p.standing = isListed
		p.out.DiffID, p.out.Blobs, p.out.Held, p.out.Created = held.DiffID, held.Blobs, true, held.Created
		p.out.Variants, p.out.Aside = held.Variants, held.Aside
		return nil
	}
	if lacking && !atEnd && p.known.Root.Kind == tree.None {
		p.err = errLost
		return nil
	}
	if p.out.isImage() && len(p.known.Origins) > 0 {
		return x.sendCopy(ctx, p) // whoever builds on the image can have it from where it is
	}
	err := x.fits(ctx, p.known)
	var f Form
	if err == nil {
		f, err = x.opt.Forms(ctx, p.chain, p.known)
	}
	if err != nil {
		p.err = err
		return context.Cause(ctx)
	}
	return x.put(ctx, p, f)
}

// sendCopy sends another blob of an image's layer, if there is one and the cache
// lacks it.
func (x *Exporter) sendCopy(ctx context.Context, p *place) error {
	if c, ok := x.holdsCopy(p); ok {
		p.out.Copy, p.standing = c, isListed
		return nil
	}
	if x.opt.Copy == nil {
		return nil
	}
	f, ok := x.opt.Copy(ctx, p.chain, p.known)
	if !ok || f.DiffID != p.out.DiffID {
		return context.Cause(ctx)
	}
	copied := *p
	if err := x.put(ctx, &copied, f); err != nil || copied.err != nil {
		return err // a copy that could not be read is none
	}
	c := &layerCopy{Blob: copied.out.Blobs[0]}
	if x.opt.Sign != nil {
		c.Signatures = []signature{sign(x.opt.Sign, c.message(f.DiffID))}
	}
	p.out.Copy = c
	return nil
}

// fits says whether a layer's tar stream holds all that is in its tree.
func (x *Exporter) fits(ctx context.Context, l cache.Layer) error {
	if l.Root.Kind != tree.Dir {
		return nil // it came from one
	}
	return tree.Walk(x.cache, l.Root, func(path string, e tree.Entry) error {
		if e.Kind == tree.Socket || strings.HasPrefix(e.Name, ".wh.") {
			return fmt.Errorf("image layers cannot hold %q", "/"+path)
		}
		return ctx.Err()
	})
}

// put puts a layer's blob into the store.
func (x *Exporter) put(ctx context.Context, p *place, f Form) error {
	s := &supply{form: f}
	if err := x.to.Put(ctx, f.Blob, f.Origins, s.open); err != nil {
		if p.err = s.fault(ctx, err); p.err != nil {
			return nil
		}
		return err
	}
	f.Blob.Annotations = nil
	p.out.DiffID, p.out.Blobs, p.out.Held, p.out.Aside, p.standing = f.DiffID, []blob.Descriptor{f.Blob}, true, f.Aside, isSent
	return nil
}
