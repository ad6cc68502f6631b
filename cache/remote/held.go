package remote

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/cache/blob"
)

// What an index lists may be gone from the store: buckets and caches drop what is old.
// A build that needed it, and did not get it, has run the step again, and its export
// sends the layer anew (see Import.mayLack). Those that need none of it would never find
// out, so an export asks for what it counts on once a day.

// countOn notes what of an index the export counts on.
func (x *Exporter) countOn(old *index) {
	x.old = old
	for _, l := range old.Layers {
		if l.Held && len(l.Blobs) > 0 && (x.opt.Sign == nil || l.signedBy(x.opt.Sign)) {
			x.held[l.ID] = l
		}
		if c := l.Copy; c != nil && (x.opt.Sign == nil || verified(x.opt.Sign.Public().(ed25519.PublicKey), c.Signatures, c.message(l.DiffID))) {
			x.copies[l.ID] = c
		}
	}
}

// holds gives what the cache lists of a layer that it holds, and whether that may be gone.
func (x *Exporter) holds(p *place) (l layer, listed, lacking bool) {
	l, listed = x.held[id(p.known.ID)]
	return l, listed, p.standing == isGone || x.opt.Import.mayLack(p.known.ID, l.Blobs...)
}

// holdsCopy gives the copy that the cache lists of an image's layer, unless it may be gone.
func (x *Exporter) holdsCopy(p *place) (*layerCopy, bool) {
	c, ok := x.copies[id(p.known.ID)]
	return c, ok && p.standing != isGone && !x.opt.Import.mayLack(p.known.ID, c.Blob)
}

// counted gives the blobs of a layer that are counted on since the cache lists them.
func (p *place) counted() []blob.Descriptor {
	switch {
	case p.standing != isListed:
		return nil
	case p.out.Copy != nil:
		return []blob.Descriptor{p.out.Copy.Blob}
	}
	return p.out.Blobs
}

// turnedOutGone reports whether a layer was counted on, and the build found it missing since.
func (x *Exporter) turnedOutGone(p *place) bool {
	return p.standing == isListed && x.opt.Import.mayLack(p.known.ID, p.counted()...)
}

// askAgain asks the store for layers that the export counts on: those of records that no
// export has met for a day. So a store that drops what is old learns that they are in
// use, and what it has dropped is sent again. In the builds of one day one asks.
func (x *Exporter) askAgain(entries []Entry, now time.Time) error {
	group, ctx := errgroup.WithContext(x.ctx)
	group.SetLimit(x.opt.Parallel)
	for _, p := range x.due(entries, now) {
		group.Go(func() error { return x.ask(ctx, p) })
	}
	return group.Wait()
}

// due gives the layers that are to be asked for.
func (x *Exporter) due(entries []Entry, now time.Time) (out []*place) {
	if x.old == nil {
		return nil
	}
	recent, has := usedOf(x.old, now), map[id]bool{}
	for _, r := range x.old.Records {
		for _, k := range r.Keys {
			has[k] = true
		}
	}
	seen := map[*place]bool{}
	for _, e := range entries {
		k := id(e.Keys[0])
		if _, ok := recent[k]; ok || !has[k] {
			continue
		}
		for _, o := range e.Record.Outputs {
			for _, p := range x.chains[o].layers {
				if !seen[p] && p.err == nil && p.standing == isListed {
					seen[p] = true
					out = append(out, p)
				}
			}
		}
	}
	return out
}

// ask asks for a layer, and sends it again where it is gone. One that cannot be made here
// costs the records that need it.
func (x *Exporter) ask(ctx context.Context, p *place) error {
	x.learn(p)
	for _, d := range p.counted() {
		s := &supply{form: Form{Blob: d, Open: x.again(p, d)}}
		err := x.to.Put(ctx, d, nil, s.open)
		switch {
		case err == nil:
		case s.fault(ctx, err) == nil:
			return err
		default:
			// What is made here is another blob, or none.
			p.standing = isGone
			return x.send(ctx, p, true)
		}
	}
	return nil
}

// again opens a blob that the cache lists, if what is here makes the same one.
func (x *Exporter) again(p *place, d blob.Descriptor) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		f, err := x.form(ctx, p)
		if err == nil && f.Blob.Digest != d.Digest {
			err = fmt.Errorf("what is here of layer %.12s makes another blob than %s", p.known.ID, d.Digest)
		}
		if err != nil {
			return nil, err
		}
		return f.Open(ctx)
	}
}

var errNoCopy = errors.New("the copy cannot be made here")

// form makes the blob that the cache is to hold of a layer: its own, or a copy.
func (x *Exporter) form(ctx context.Context, p *place) (Form, error) {
	if p.out.Copy == nil {
		return x.opt.Forms(ctx, p.chain, p.known)
	}
	if x.opt.Copy == nil {
		return Form{}, errNoCopy
	}
	f, ok := x.opt.Copy(ctx, p.chain, p.known)
	if !ok {
		return f, errNoCopy
	}
	return f, nil
}

// learn looks a layer up again: more may be known of it than when it was added.
func (x *Exporter) learn(p *place) {
	if l, err := x.cache.Layer(p.known.ID); err == nil {
		p.known = l
	}
}
