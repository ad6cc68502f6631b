package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
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
	Open    func(context.Context) (io.ReadCloser, error)
	// Created is when the layer was first exported in an image; zero is never.
	Created time.Time
}

// Forms gives the blob of a layer of a chain, making it if need be.
type Forms func(ctx context.Context, chain cache.ChainID, l cache.Layer) (Form, error)

// Stats are what an export did.
type Stats struct {
	Records, Layers int // those of this export that the cache has now
	Sent            int // layers that were sent there, or found to be there
	// Skipped counts the records that were left out, and Reason says why the last was.
	Skipped int
	Reason  string
	// Replaced says why nothing of what was there was kept; nil where all was.
	Replaced error
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
		if !slices.ContainsFunc(e.Record.Outputs, func(o cache.ChainID) bool { _, ok := below[o]; return !ok }) {
			out = append(out, e)
		}
	}
	return out, nil
}

// Export adds entries to the cache in a store. Layers that the cache holds already
// are neither made nor sent; of records that are there under the same keys the new
// ones stand.
func Export(ctx context.Context, c *cache.Cache, to Target, forms Forms, entries []Entry, now time.Time) (Stats, error) {
	stats, trusted, err := export(ctx, c, to, forms, entries, now, true)
	if err == nil || !trusted || ctx.Err() != nil {
		return stats, err
	}
	// What the cache lists may not be there any more, which a registry says when
	// it is to take the manifest. Nothing of it is counted on the second time.
	again, _, aerr := export(ctx, c, to, forms, entries, now, false)
	if aerr != nil {
		return stats, err
	}
	again.Replaced = err
	return again, nil
}

// exporter is an export under way.
type exporter struct {
	cache *cache.Cache
	to    Target
	forms Forms

	b      *builder
	held   map[id]layer // what the cache held when the export began
	places map[cache.LayerID]*place
	chains map[cache.ChainID]chainPlan
}

// place is a layer that records lead to.
type place struct {
	chain cache.ChainID
	known cache.Layer
	out   layer
	sent  bool
	err   error // why the layer cannot be had: records that need it are left out
}

// chainPlan is a chain with its layers bottom first.
type chainPlan struct {
	layers []*place
	err    error
}

// export is Export, counting on what the cache lists where trust is set. trusted
// says that it did, and that what failed may come of that.
func export(ctx context.Context, c *cache.Cache, to Target, forms Forms, entries []Entry, now time.Time, trust bool) (s Stats, trusted bool, err error) {
	x := &exporter{
		cache: c, to: to, forms: forms, b: newBuilder(), held: map[id]layer{},
		places: map[cache.LayerID]*place{}, chains: map[cache.ChainID]chainPlan{},
	}
	var old *index
	var name blob.Digest
	if trust {
		if old, name, err = load(ctx, to); err != nil {
			if !isReplaceable(err) {
				return s, false, err
			}
			if !isMissing(err) {
				s.Replaced = err
			}
			old, name = nil, blob.Digest{}
		}
	}
	if old != nil {
		for _, l := range old.Layers {
			if l.Held {
				x.held[l.ID] = l
			}
		}
	}
	x.plan(entries)
	if err := x.send(ctx); err != nil {
		return s, false, err
	}
	x.record(entries, now, &s)
	if s.Records == 0 && old == nil {
		return s, false, nil
	}
	if old != nil {
		// Another export may have come first meanwhile.
		if newer, _, err := load(ctx, to); err == nil {
			old = newer
		}
		x.b.merge(old, now.Add(-maxUnused).Unix())
	}
	return s, len(x.held) > 0, x.commit(ctx, name)
}

// isReplaceable tells a cache that is not there, or of no use, from one that could
// not be read this time.
func isReplaceable(err error) bool {
	var format *FormatError
	return isMissing(err) || errors.As(err, &format)
}

// plan finds the layers that entries lead to.
func (x *exporter) plan(entries []Entry) {
	for _, e := range entries {
		for _, o := range e.Record.Outputs {
			x.chain(o)
		}
	}
}

func (x *exporter) chain(at cache.ChainID) chainPlan {
	if p, ok := x.chains[at]; ok || at == (cache.ChainID{}) {
		return p
	}
	var p chainPlan
	layers, err := x.cache.Layers(at)
	p.err = err
	for _, l := range layers {
		pl, ok := x.places[l.ID]
		if !ok {
			pl = &place{chain: at, known: l}
			pl.err = exportable(l)
			x.places[l.ID] = pl
		}
		p.layers = append(p.layers, pl)
	}
	x.chains[at] = p
	return p
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

// send makes and sends the layers that the cache does not hold.
func (x *exporter) send(ctx context.Context) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(putsAtOnce)
	for _, p := range x.places {
		if p.err != nil {
			continue
		}
		p.out = layer{ID: id(p.known.ID), DiffID: p.known.DiffID, Size: p.known.Size, Blobs: p.known.Blobs, Origins: p.known.Origins}
		if held, ok := x.held[p.out.ID]; ok {
			p.out.DiffID, p.out.Blobs, p.out.Held, p.out.Created = held.DiffID, held.Blobs, true, held.Created
			continue
		}
		if p.out.isImage() && len(p.known.Origins) > 0 {
			continue // whoever builds on the image can have it from where it is
		}
		group.Go(func() error { return x.sendLayer(gctx, p) })
	}
	return group.Wait()
}

// fits says whether a layer's tar stream holds all that is in its tree.
func (x *exporter) fits(ctx context.Context, l cache.Layer) error {
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

// sendLayer sends one layer. Its error is one of the store's; a layer that cannot
// be made costs the records that need it.
func (x *exporter) sendLayer(ctx context.Context, p *place) error {
	err := x.fits(ctx, p.known)
	var f Form
	if err == nil {
		f, err = x.forms(ctx, p.chain, p.known)
	}
	if err != nil {
		p.err = err
		return ctx.Err()
	}
	var unreadable error
	var mu sync.Mutex
	open := func(ctx context.Context) (io.ReadCloser, error) {
		r, err := f.Open(ctx)
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			unreadable = err
		}
		return r, err
	}
	if err := x.to.Put(ctx, f.Blob, f.Origins, open); err != nil {
		mu.Lock()
		defer mu.Unlock()
		if unreadable != nil && ctx.Err() == nil {
			p.err = unreadable
			return nil
		}
		return err
	}
	f.Blob.Annotations = nil
	if !f.Created.IsZero() {
		p.out.Created = max(f.Created.UnixNano(), 0)
	}
	p.out.DiffID, p.out.Blobs, p.out.Held, p.sent = f.DiffID, []blob.Descriptor{f.Blob}, true, true
	return nil
}

// record writes the entries down whose layers can all be had.
func (x *exporter) record(entries []Entry, now time.Time, s *Stats) {
	for _, e := range entries {
		if err := x.recordOne(e, now); err != nil {
			s.Skipped++
			s.Reason = fmt.Sprintf("%s: %v", e.Record.Name, err)
			continue
		}
		s.Records++
	}
	s.Layers = len(x.b.Layers)
	for _, p := range x.places {
		if p.sent {
			s.Sent++
		}
	}
}

func (x *exporter) recordOne(e Entry, now time.Time) error {
	for _, o := range e.Record.Outputs {
		p := x.chain(o)
		if p.err != nil {
			return p.err
		}
		if len(p.layers) > maxDepth {
			return fmt.Errorf("it has more than %d layers", maxDepth)
		}
		for _, l := range p.layers {
			if l.err != nil {
				return l.err
			}
		}
	}
	r := record{
		Keys: ids(e.Keys), Outputs: []int{}, Name: e.Record.Name, Vertex: e.Record.Vertex, Inputs: ids(e.Record.Inputs),
		Created: max(e.Record.Created.Unix(), 0), Duration: max(int64(e.Record.Duration), 0), Used: now.Unix(),
	}
	for _, o := range e.Record.Outputs {
		at := -1
		for _, l := range x.chain(o).layers {
			at = x.b.link(at, x.b.layer(l.out))
		}
		r.Outputs = append(r.Outputs, at)
	}
	x.b.record(r)
	return nil
}

// commit writes the index and the manifest, unless the cache has them as they are.
func (x *exporter) commit(ctx context.Context, old blob.Digest) error {
	data, err := json.Marshal(&x.b.index)
	if err != nil {
		return err
	}
	if len(data) > maxIndex {
		return fmt.Errorf("the index would have %d bytes, and %d at most are read", len(data), maxIndex)
	}
	config := descriptor(IndexType, data)
	m := document{SchemaVersion: 2, MediaType: manifestType, ArtifactType: ArtifactType, Config: &config, Layers: []blob.Descriptor{}}
	for _, l := range x.b.Layers {
		if l.Held {
			m.Layers = append(m.Layers, l.Blobs...)
		}
	}
	put := map[blob.Digest][]byte{config.Digest: data}
	descs := []blob.Descriptor{config}
	if len(m.Layers) == 0 {
		// A manifest is to have one layer at least.
		empty := []byte("{}")
		d := descriptor(emptyType, empty)
		m.Layers, descs, put[d.Digest] = append(m.Layers, d), append(descs, d), empty
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(manifest) > maxManifest {
		return fmt.Errorf("the manifest would have %d bytes, and registries take %d at most", len(manifest), maxManifest)
	}
	d := descriptor(manifestType, manifest)
	if d.Digest == old {
		return nil
	}
	for _, d := range descs {
		open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(put[d.Digest])), nil }
		if err := x.to.Put(ctx, d, nil, open); err != nil {
			return err
		}
	}
	return x.to.Commit(ctx, d, manifest)
}

func descriptor(mediaType string, data []byte) blob.Descriptor {
	return blob.Descriptor{MediaType: mediaType, Digest: sha256.Sum256(data), Size: int64(len(data))}
}
