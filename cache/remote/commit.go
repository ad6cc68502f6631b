package remote

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
)

var (
	// ErrChanged says that a cache's name stands for another manifest by now.
	ErrChanged = errors.New("another export came first")
	// ErrRefused says that a store does not take a manifest, which registries do where
	// blobs that it names are gone. Target.Commit wraps it.
	ErrRefused = errors.New("the manifest was refused")
	// ErrTaken says that a blob was not put there, since somebody else has begun to write
	// it and has not come to an end. Target.Put wraps it.
	ErrTaken = errors.New("somebody else has begun to write it")
)

const (
	// maxCommits bounds how often an export begins again because others were quicker.
	maxCommits = 100
	// usedGrain is how precise the time is at which a record was last met. Without
	// it a build of which everything hit would write the index anew.
	usedGrain = 24 * time.Hour
	// minLook is the least time before a store that knows no conditions is looked
	// at again, see Exporter.settle.
	minLook = 30 * time.Millisecond
)

// Changed reports whether a cache's name stands for another manifest than the one
// called old, for stores that know no conditions. One that cannot be read is nothing
// that could be kept.
func Changed(ctx context.Context, s Store, old blob.Digest) bool {
	now, err := s.Manifest(ctx, blob.Digest{})
	return err == nil && sha256.Sum256(now) != old
}

// Finish writes entries, and cache mounts, down and waits for the layers that they
// lead to. Of records that are there under the same keys the new ones stand.
func (x *Exporter) Finish(ctx context.Context, entries []Entry, mounts []Mount, now time.Time) (Stats, error) {
	stop := context.AfterFunc(ctx, func() { x.cancel(context.Cause(ctx)) })
	defer stop()
	stats, err := x.finish(ctx, entries, mounts, now)
	if !errors.Is(err, ErrRefused) || x.old == nil || ctx.Err() != nil {
		return stats, err
	}
	// What the cache lists is not there any more, and which of it the registry does not
	// tell. Nothing of it is counted on the second time, nor kept; so other errors, which
	// may pass, are none to begin again for.
	again := begin(ctx, x.cache, x.to, x.opt, false)
	defer again.Close()
	second, aerr := again.finish(ctx, entries, mounts, now)
	if aerr != nil {
		return stats, err
	}
	second.Replaced = err
	return second, nil
}

// finish is Finish once.
func (x *Exporter) finish(ctx context.Context, entries []Entry, mounts []Mount, now time.Time) (s Stats, err error) {
	if err := x.sendAll(entries); err != nil {
		return s, err
	}
	<-x.loaded
	if x.loadErr != nil {
		return s, x.loadErr
	}
	if err := x.askAgain(entries, now); err != nil {
		return s, err
	}
	s.Replaced = x.replaced
	saved, err := x.sendMounts(ctx, mounts, now, &s)
	if err != nil {
		return s, err
	}
	if err := x.commit(ctx, entries, saved, now, &s); err != nil {
		return s, err
	}
	for _, p := range x.places {
		if p.standing == isSent {
			s.Sent++
		}
	}
	return s, nil
}

// sendAll waits for what is being sent, and sends what has not been: what could not be
// made while the build went on, and what turned out to be gone from the cache.
func (x *Exporter) sendAll(entries []Entry) error {
	for _, e := range entries {
		for _, o := range e.Record.Outputs {
			x.Add(o)
		}
	}
	if err := x.group.Wait(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(x.ctx)
	group.SetLimit(x.opt.Parallel)
	for _, p := range x.places {
		if p.err == nil && !x.turnedOutGone(p) {
			continue
		}
		group.Go(func() error {
			x.learn(p)
			return x.send(ctx, p, true)
		})
	}
	return group.Wait()
}

// index puts together what the cache is to hold: the export's own records, and,
// where they are not nil, those of old.
func (x *Exporter) index(entries []Entry, mounts []mount, old *index, now time.Time, s *Stats) *builder {
	b := newBuilder()
	s.Records, s.Skipped = 0, 0
	used := usedOf(old, now)
	signed := x.signedOf(old)
	for _, e := range entries {
		if !e.Record.Whole() {
			continue // it came from an inline cache, which has only what is in its image
		}
		if err := x.record(b, e, now, used, signed); err != nil {
			s.Skipped++
			s.Reason = fmt.Sprintf("%s: %v", e.Record.Name, err)
			continue
		}
		s.Records++
	}
	s.Layers = len(b.Layers)
	b.Mounts = slices.Clone(mounts)
	return b
}

// usedOf gives the times at which records were last met, where they are recent.
func usedOf(old *index, now time.Time) map[id]int64 {
	used := map[id]int64{}
	if old == nil {
		return used
	}
	for _, r := range old.Records {
		if r.Used > now.Add(-usedGrain).Unix() && r.Used <= now.Unix() {
			for _, k := range r.Keys {
				used[k] = r.Used
			}
		}
	}
	return used
}

// signedOf gives the keys of records that are signed, where the export signs
// nothing: it takes nothing away from those who want signatures.
func (x *Exporter) signedOf(old *index) map[id]bool {
	signed := map[id]bool{}
	if old == nil || x.opt.Sign != nil {
		return signed
	}
	for _, r := range old.Records {
		for _, k := range r.Keys {
			signed[k] = len(r.Signatures) > 0
		}
	}
	return signed
}

// record adds an entry whose layers can all be had.
func (x *Exporter) record(b *builder, e Entry, now time.Time, used map[id]int64, signed map[id]bool) error {
	plans := make([]chainPlan, len(e.Record.Outputs))
	for i, o := range e.Record.Outputs {
		p := x.chains[o]
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
		plans[i] = p
	}
	r := record{
		Keys: ids(e.Keys), Outputs: []int{}, Name: e.Record.Name, Vertex: e.Record.Vertex, Inputs: ids(e.Record.Inputs),
		Created: max(e.Record.Created.Unix(), 0), Duration: max(int64(e.Record.Duration), 0), Used: now.Unix(),
	}
	if at, ok := used[r.Keys[0]]; ok {
		r.Used = at
	}
	r.Keys = slices.DeleteFunc(r.Keys, func(k id) bool {
		if signed[k] {
			b.met[k] = r.Used
		}
		return signed[k]
	})
	if len(r.Keys) == 0 {
		return nil
	}
	for _, p := range plans {
		at := -1
		for _, l := range p.layers {
			at = b.link(at, b.layer(x.described(l)))
		}
		r.Outputs = append(r.Outputs, at)
	}
	if x.opt.Sign != nil {
		outputs := b.outputsOf(r)
		for _, k := range r.Keys {
			r.Signatures = append(r.Signatures, sign(x.opt.Sign, r.message(k, outputs)))
		}
	}
	b.record(r)
	return nil
}

// described is a layer as the index has it.
func (x *Exporter) described(p *place) layer {
	l := p.out
	if x.opt.Created != nil && l.Held && l.Created == 0 {
		if at := x.opt.Created(p.known.ID); !at.IsZero() {
			l.Created = max(at.UnixNano(), 0)
		}
	}
	if x.opt.Variants != nil {
		known := p.known
		if now, err := x.cache.Layer(known.ID); err == nil {
			known = now // an output may have made blobs of it since
		}
		if !known.DiffID.IsZero() && known.DiffID == l.DiffID {
			l.Variants = addVariants(l.Variants, x.variants(known, l.Blobs))
		}
	}
	if x.opt.Sign != nil {
		l.Signatures = []signature{sign(x.opt.Sign, l.message())}
	}
	return l
}

// variants gives what is known of a layer's variants, signed, without those that are
// the layer's own blobs.
func (x *Exporter) variants(l cache.Layer, own []blob.Descriptor) (out []variant) {
	for _, v := range x.opt.Variants(l) {
		if slices.ContainsFunc(own, func(d blob.Descriptor) bool { return d.Digest == v.Blob.Digest }) {
			continue
		}
		w := variant{Variant: v}
		if x.opt.Sign != nil {
			w.Signatures = []signature{sign(x.opt.Sign, w.message(l.DiffID))}
		}
		out = append(out, w)
	}
	return out
}

// commit makes the cache's name stand for an index that has the export's records,
// and all that others have put there.
func (x *Exporter) commit(ctx context.Context, entries []Entry, mounts []mount, now time.Time, s *Stats) error {
	old, name := x.old, x.name
	for try := range maxCommits {
		b := x.index(entries, mounts, old, now, s)
		s.Manifest = name
		if len(b.Records)+len(b.Mounts)+len(b.met) == 0 || old != nil && old.covers(b, now) {
			return nil // there is nothing to add
		}
		packed, err := x.packedBuild(now)
		if err != nil {
			return err
		}
		if packed != nil {
			b.Builds = []listedBuild{packed.listedBuild}
		}
		if old != nil {
			b.merge(old, now.Add(-maxUnused).Unix())
		}
		d, manifest, err := x.write(ctx, b)
		if err != nil {
			return err
		}
		if s.Manifest = d; d.Digest == name.Digest {
			return nil
		}
		began := time.Now()
		sure, err := x.to.Commit(ctx, d, manifest, name.Digest)
		switch {
		case errors.Is(err, ErrChanged):
			if err := pause(ctx, jitter(minLook/2, try)); err != nil {
				return err
			}
			if old, name, err = x.reread(ctx, old, name); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case sure:
			return nil
		}
		if old, name, err = x.settle(ctx, b, d, time.Since(began), try); err != nil {
			return err
		}
		if name.Digest == d.Digest {
			return nil
		}
	}
	return fmt.Errorf("%w, %d times over", ErrChanged, maxCommits)
}

// settle looks at a store that knows no conditions a while after it was written.
// Whoever looked at it before we wrote, and has not written yet, will take what we
// wrote away; from the look to the writing, Target.Commit, takes others about as long
// as it took us, which is the window. So after several times as long those have
// written, and the later ones have kept ours. Only those who have met others once wait
// for as long as it comes, so as not to meet them again: most are alone, and wait at
// the end of a build.
func (x *Exporter) settle(ctx context.Context, b *builder, d blob.Descriptor, window time.Duration, try int) (*index, blob.Descriptor, error) {
	wait := minLook + 2*window
	if try > 0 {
		wait = jitter(wait, try)
	}
	if err := pause(ctx, wait); err != nil {
		return nil, blob.Descriptor{}, err
	}
	return x.reread(ctx, &b.index, d)
}

// jitter gives between d and 2d, and more of it the more often it was tried.
func jitter(d time.Duration, try int) time.Duration {
	return d + rand.N(d*time.Duration(1+min(try, 8)))
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// reread gives what the cache has now, given what its name stood for before.
func (x *Exporter) reread(ctx context.Context, old *index, name blob.Descriptor) (*index, blob.Descriptor, error) {
	data, err := x.to.Manifest(ctx, blob.Digest{})
	switch {
	case isMissing(err):
		return nil, blob.Descriptor{}, nil
	case err == nil && sha256.Sum256(data) == name.Digest:
		return old, name, nil
	case err == nil:
		// A manifest whose index is gone is what is to be replaced all the same.
		if old, name, err = loadManifest(ctx, x.to, data); err == nil {
			return old, name, nil
		}
	}
	if isReplaceable(err) {
		return nil, name, nil
	}
	return nil, name, err
}

// write puts the index and what it holds of builds into the store, and gives the
// manifest that is to be committed.
func (x *Exporter) write(ctx context.Context, b *builder) (d blob.Descriptor, manifest []byte, err error) {
	data, err := json.Marshal(&b.index)
	if err != nil {
		return d, nil, err
	}
	if len(data) > maxIndex {
		return d, nil, fmt.Errorf("the index would have %d bytes, and %d at most are read", len(data), maxIndex)
	}
	if data, err = packSmall(data); err != nil {
		return d, nil, err
	}
	config := descriptor(IndexType, data)
	blobs := b.holds()
	put := map[blob.Digest][]byte{config.Digest: data}
	descs := []blob.Descriptor{config}
	if len(blobs) == 0 && x.opt.Envelope == Image {
		// A manifest is to have one layer at least.
		empty := []byte("{}")
		d := descriptor(emptyType, empty)
		blobs, descs, put[d.Digest] = append(blobs, d), append(descs, d), empty
	}
	mediaType, manifest, err := x.opt.Envelope.manifest(config, blobs)
	if err != nil {
		return d, nil, err
	}
	if len(manifest) > maxManifest {
		return d, nil, fmt.Errorf("the manifest would have %d bytes, and registries take %d at most", len(manifest), maxManifest)
	}
	if x.packed != nil {
		descs, put[x.packed.Blob.Digest] = append(descs, x.packed.Blob), x.packed.blob
	}
	group, gctx := errgroup.WithContext(ctx)
	for _, c := range descs {
		group.Go(func() error { return x.to.Put(gctx, c, nil, opener(put[c.Digest])) })
	}
	return descriptor(mediaType, manifest), manifest, group.Wait()
}

// holds lists the blobs that the cache holds itself, each once.
func (b *builder) holds() []blob.Descriptor {
	out := []blob.Descriptor{}
	seen := map[blob.Digest]struct{}{}
	add := func(d blob.Descriptor) {
		if _, ok := seen[d.Digest]; !ok {
			seen[d.Digest] = struct{}{}
			out = append(out, d)
		}
	}
	for _, l := range b.Layers {
		if l.Held {
			for _, d := range l.Blobs {
				add(d)
			}
		}
		if l.Copy != nil {
			add(l.Copy.Blob)
		}
	}
	for _, m := range b.Mounts {
		add(m.List)
		for _, p := range m.Pieces {
			add(p.Blob)
		}
	}
	for _, o := range b.Builds {
		add(o.Blob)
	}
	return out
}

func descriptor(mediaType string, data []byte) blob.Descriptor {
	return blob.Descriptor{MediaType: mediaType, Digest: sha256.Sum256(data), Size: int64(len(data))}
}

// outputsOf gives the layers of a record's outputs, each chain bottom first.
func (x *index) outputsOf(r record) [][]id {
	out := make([][]id, len(r.Outputs))
	for i, at := range r.Outputs {
		if at == absent {
			out[i] = []id{id(cache.Absent)} // which is no layer's: it is not scratch
		}
		for ; at >= 0; at = x.Chains[at].Parent {
			out[i] = append(out[i], x.Layers[x.Chains[at].Layer].ID)
		}
		slices.Reverse(out[i])
	}
	return out
}

// covers reports whether x has all of b, and has met its records not long ago.
func (x *index) covers(b *builder, now time.Time) bool {
	records, layers := map[id]int{}, map[id]layer{}
	for i, r := range x.Records {
		for _, k := range r.Keys {
			records[k] = i
		}
	}
	for _, l := range x.Layers {
		layers[l.ID] = l
	}
	for _, l := range b.Layers {
		if !layers[l.ID].covers(l) {
			return false
		}
	}
	for k := range b.met {
		if x.Records[records[k]].Used < now.Add(-usedGrain).Unix() {
			return false
		}
	}
	for _, r := range b.Records {
		for _, k := range r.Keys {
			i, ok := records[k]
			if !ok || x.Records[i].Used < now.Add(-usedGrain).Unix() || !signaturesCover(x.Records[i].Signatures, r.Signatures) ||
				!slices.EqualFunc(x.outputsOf(x.Records[i]), b.outputsOf(r), slices.Equal[[]id]) {
				return false
			}
		}
	}
	return !slices.ContainsFunc(b.Mounts, func(m mount) bool {
		return !slices.ContainsFunc(x.Mounts, func(o mount) bool { return o.covers(m, now) })
	})
}

// covers reports whether l says all that o says.
func (l layer) covers(o layer) bool {
	if l.ID != o.ID || o.Held && (!l.Held || !l.sameBlobs(o)) || !signaturesCover(l.Signatures, o.Signatures) {
		return false
	}
	if o.Copy != nil && (l.Copy == nil || l.DiffID != o.DiffID || l.Copy.Blob.Digest != o.Copy.Blob.Digest || !signaturesCover(l.Copy.Signatures, o.Copy.Signatures)) {
		return false
	}
	for _, v := range o.Variants {
		if !slices.ContainsFunc(l.Variants, func(w variant) bool { return v.same(w) && signaturesCover(w.Signatures, v.Signatures) }) {
			return false
		}
	}
	return true
}
