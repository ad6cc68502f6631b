package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/worker/layer"
)

// pulled is a layer that was fetched and unpacked.
type pulled struct {
	root     tree.Entry
	size     int64
	implicit []string // see layer.UnpackOptions; the root left out
}

// Unpack makes every layer of a chain present: its tree known, its files in the
// pool. Those that are not are fetched and unpacked at the same time. A layer
// whose data nobody has any more is a *cache.GoneError.
func (s *Images) Unpack(ctx context.Context, cred registry.Credentials, id cache.ChainID, report Progress) error {
	return s.unpack(ctx, cred, id, report, -1)
}

// Fetch is Unpack for a chain that will probably be needed: its layers come one by one,
// so that they leave room for those that are needed now.
func (s *Images) Fetch(ctx context.Context, cred registry.Credentials, id cache.ChainID) error {
	return s.unpack(ctx, cred, id, nil, 1)
}

// unpack is Unpack of so many layers at once; -1 sets no limit of this chain's own.
func (s *Images) unpack(ctx context.Context, cred registry.Credentials, id cache.ChainID, report Progress, limit int) error {
	layers, err := s.cache.Layers(id)
	if err != nil {
		return err
	}
	results := make([]*pulled, len(layers))
	first := make(map[cache.LayerID]int)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(limit)
	for i, l := range layers {
		if _, again := first[l.ID]; again || l.Root.Kind != tree.None {
			continue
		}
		first[l.ID] = i
		group.Go(func() error {
			p, err := s.unpackShared(gctx, cred, l, report)
			results[i] = &p
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if len(first) == 0 {
		return nil
	}
	return s.settle(layers, results)
}

// unpackShared unpacks one layer, or waits for another build that does.
func (s *Images) unpackShared(ctx context.Context, cred registry.Credentials, l cache.Layer, report Progress) (pulled, error) {
	unpack := func(ctx context.Context, report Progress) (pulled, error) {
		if err := s.slots.Acquire(ctx, 1); err != nil {
			return pulled{}, context.Cause(ctx)
		}
		defer s.slots.Release(1)
		return s.unpackLayer(ctx, cred, l, report)
	}
	p, led, err := s.unpacking.do(ctx, l.ID, report, unpack)
	if err != nil && !led && ctx.Err() == nil {
		// The other build may have had other credentials.
		p, _, err = s.unpacking.do(ctx, l.ID, report, unpack)
	}
	return p, err
}

// unpackLayer fetches and unpacks a layer from the first of its blobs that can be
// had and turns out to be the layer.
func (s *Images) unpackLayer(ctx context.Context, cred registry.Credentials, l cache.Layer, report Progress) (pulled, error) {
	// Another build may have unpacked it since.
	if now, err := s.cache.Layer(l.ID); err == nil && now.Root.Kind != tree.None {
		return pulled{root: now.Root, size: now.Size}, nil
	}
	if len(l.Blobs) == 0 {
		return pulled{}, &cache.GoneError{Layer: l.ID, Err: errors.New("no registry is known that has it")}
	}
	if p, ok := s.unpackPassing(ctx, l, report); ok {
		if len(p.implicit) > 0 {
			return p, nil
		}
		return p, s.put(l, p.root, p.size)
	}
	if ctx.Err() != nil {
		return pulled{}, context.Cause(ctx)
	}
	var wrong []blob.Descriptor // blobs that are another layer's
	var first error
	for _, d := range l.Blobs {
		p, err := s.unpackBlob(ctx, cred, l, d, report)
		if err == nil {
			if err := s.disown(l, wrong); err != nil || len(p.implicit) > 0 {
				return p, err
			}
			return p, s.put(l, p.root, p.size)
		}
		if ctx.Err() != nil {
			return pulled{}, context.Cause(ctx)
		}
		var differs *diffError
		if errors.As(err, &differs) {
			wrong = append(wrong, d)
		}
		if first == nil {
			first = err
		}
	}
	return pulled{}, s.goneIfMade(ctx, l, first)
}

// unpackPassing unpacks the blob that a remote cache holds for the files of a layer of
// which no blob is here; ok is false where there is none, or it is of no use. The blob
// is not kept, and so need not be hashed: it is the stream in it that has to be the layer.
func (s *Images) unpackPassing(ctx context.Context, l cache.Layer, report Progress) (p pulled, ok bool) {
	if s.remote == nil || slices.ContainsFunc(l.Blobs, func(d blob.Descriptor) bool { return s.cache.Blobs().Has(d.Digest) }) {
		return p, false
	}
	d, ok := s.remote.Passing(l)
	if !ok {
		return p, false
	}
	body, err := s.remote.Blob(ctx, d, 0)
	if err != nil {
		return p, false
	}
	defer body.Close()
	in := &incoming{r: io.LimitReader(body, d.Size), w: io.Discard, meter: newMeter(report, d.Digest.String(), "downloading", 0, d.Size)}
	if p, err = s.unpackStream(ctx, l, d, in, report); err != nil {
		return p, false
	}
	in.meter.done()
	return p, true
}

// goneIfMade makes a failure to fetch a layer that can be built, or that came from
// a remote cache, into its being gone: the build goes on without it.
func (s *Images) goneIfMade(ctx context.Context, l cache.Layer, err error) error {
	var gone *cache.GoneError
	if err == nil || ctx.Err() != nil || errors.As(err, &gone) || errors.Is(err, unix.ENOSPC) {
		return err
	}
	if isMade(l) || s.remote != nil && s.remote.Holds(l.ID) {
		return &cache.GoneError{Layer: l.ID, Err: err}
	}
	return err
}

// isMade reports whether a layer is one that a build made, and no image's.
func isMade(l cache.Layer) bool { return l.ID != cache.ImageLayerID(l.DiffID) }

// disown forgets blobs that a config wrongly said to be this layer's. It is the
// config of another image then: what one image says must not spoil another's layer.
func (s *Images) disown(l cache.Layer, wrong []blob.Descriptor) error {
	if len(wrong) == 0 {
		return nil
	}
	known, err := s.cache.Layer(l.ID)
	if err != nil {
		return err
	}
	known.Blobs = slices.DeleteFunc(known.Blobs, func(d blob.Descriptor) bool {
		return slices.ContainsFunc(wrong, func(w blob.Descriptor) bool { return w.Digest == d.Digest })
	})
	if err := s.cache.ForgetLayer(l.ID); err != nil {
		return err
	}
	return s.cache.PutLayer(known)
}

// diffError says that a layer's tar stream is not the one that the config promised.
type diffError struct{ got, want blob.Digest }

func (e *diffError) Error() string {
	return fmt.Sprintf("failed to verify layer: its content has the diff id %s, and the image's config says %s", e.got, e.want)
}

// unpackBlob fetches one blob, keeps it, and unpacks it while it comes in.
func (s *Images) unpackBlob(ctx context.Context, cred registry.Credentials, l cache.Layer, d blob.Descriptor, report Progress) (p pulled, err error) {
	defer func() {
		var gone *cache.GoneError
		if err != nil && !errors.As(err, &gone) {
			err = fmt.Errorf("layer %s: %w", d.Digest, err)
		}
	}()
	w, err := s.cache.Blobs().Ingest(ctx, d.Digest, d.Size)
	if errors.Is(err, fs.ErrExist) {
		p, err := s.unpackKept(ctx, l, d, report)
		if err == nil || !worthDraining(ctx, err, nil) || !s.damaged(d) {
			return p, err
		}
		return s.unpackBlob(ctx, cred, l, d, report)
	}
	if err != nil {
		return pulled{}, err
	}
	defer w.Close()
	offset := w.Offset()
	body := io.ReadCloser(http.NoBody)
	if offset < d.Size {
		if body, err = s.open(ctx, cred, l, d, offset); err != nil {
			return pulled{}, err
		}
	} // else an earlier download ended before it was verified, and nothing begins there
	defer body.Close()
	in := &incoming{r: body, w: w, meter: newMeter(report, d.Digest.String(), "downloading", offset, d.Size)}
	if offset > 0 {
		// The beginning is in the file already. Download the rest and read it all from there.
		if err := in.drain(); err != nil {
			return pulled{}, err
		}
		var other *blob.MismatchError
		err := w.Commit()
		if errors.As(err, &other) && other.GotSize == other.WantSize {
			// What an earlier download left was not the blob's. The store has dropped
			// it, so this time the blob comes from its beginning.
			return s.unpackBlob(ctx, cred, l, d, report)
		}
		if err != nil {
			return pulled{}, err // the server has less than the blob
		}
		in.meter.done()
		return s.unpackKept(ctx, l, d, report)
	}
	p, err = s.unpackStream(ctx, l, d, in, report)
	if err != nil && !worthDraining(ctx, err, in.err) {
		return pulled{}, err
	}
	// What follows the stream is the blob's too; and where the stream was bad it is
	// the digest that says whether the registry or the image is to blame.
	if derr := in.drain(); derr != nil {
		return pulled{}, derr
	}
	if cerr := w.Commit(); cerr != nil {
		return pulled{}, fmt.Errorf("something else was sent: %w", cerr)
	}
	in.meter.done()
	return p, err
}

// damaged reports whether a kept blob that could not be unpacked is not what its
// name says, and drops it then.
func (s *Images) damaged(d blob.Descriptor) bool {
	f, _, err := s.cache.Blobs().Open(d.Digest)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil || blob.Digest(h.Sum(nil)) == d.Digest {
		return false
	}
	return errors.Is(s.drop(d.Digest), fs.ErrNotExist)
}

// worthDraining reports whether a stream that could not be unpacked should be
// read to its end, to find out whether it is the one that was asked for.
func worthDraining(ctx context.Context, err, read error) bool {
	var limit *layer.LimitError
	return ctx.Err() == nil && read == nil && !errors.As(err, &limit) && !errors.Is(err, unix.ENOSPC)
}

// unpackKept unpacks a blob that is here.
func (s *Images) unpackKept(ctx context.Context, l cache.Layer, d blob.Descriptor, report Progress) (pulled, error) {
	f, _, err := s.cache.Blobs().Open(d.Digest)
	if err != nil {
		return pulled{}, err
	}
	defer f.Close()
	return s.unpackStream(ctx, l, d, f, report)
}

// unpackStream unpacks a compressed layer, checking its diff id.
func (s *Images) unpackStream(ctx context.Context, l cache.Layer, d blob.Descriptor, r io.Reader, report Progress) (p pulled, err error) {
	m := newMeter(report, "extracting "+d.Digest.String(), "extracting", 0, 0)
	ahead := newReadAhead(r)
	defer ahead.Close()
	zr, err := decompress(ahead, d.MediaType)
	if err != nil {
		return p, err
	}
	defer zr.Close()
	tar := newReadAhead(zr)
	defer tar.Close()
	h := &hashed{r: tar, hash: sha256.New(), meter: m}
	p.root, p.size, err = layer.Unpack(ctx, s.cache, h, layer.UnpackOptions{
		Implicit: func(path string) {
			if path != "" {
				p.implicit = append(p.implicit, path)
			}
		},
	})
	if err != nil {
		return pulled{}, err
	}
	if got := blob.Digest(h.hash.Sum(nil)); got != l.DiffID {
		return pulled{}, &diffError{got: got, want: l.DiffID}
	}
	m.done()
	return p, nil
}

// put makes an unpacked layer known. The identity of one that a build made is that
// of its tree, which a remote cache may have wrong.
func (s *Images) put(l cache.Layer, root tree.Entry, size int64) error {
	if isMade(l) && cache.TreeLayerID(root) != l.ID {
		return &cache.GoneError{Layer: l.ID, Err: errors.New("what its blob unpacks to is another layer")}
	}
	err := s.cache.PutLayer(cache.Layer{ID: l.ID, DiffID: l.DiffID, Root: root, Size: size})
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.DiffID, err)
	}
	return nil
}

// settle makes the layers known that have to be seen together with those below
// them, from the bottom up: a directory that a layer goes through without an entry
// for it keeps the owner and mode that it has in the layers below.
func (s *Images) settle(layers []cache.Layer, results []*pulled) error {
	var below cache.ChainID
	for i, l := range layers {
		if p := results[i]; p != nil && len(p.implicit) > 0 {
			root, err := s.inherit(below, p)
			if err != nil {
				return err
			}
			if err := s.put(l, root, p.size); err != nil {
				return err
			}
		}
		var err error
		if below, err = s.cache.Extend(below, l.ID); err != nil {
			return err
		}
	}
	return nil
}

// inherit gives p's tree with the metadata of its implicit directories taken from
// the state below. A layer that several images have at different heights keeps
// what it inherited first; it differs only where one of them is oddly made.
func (s *Images) inherit(below cache.ChainID, p *pulled) (tree.Entry, error) {
	if below == (cache.ChainID{}) {
		return p.root, nil
	}
	state, err := s.cache.Merged(below)
	if err != nil {
		return tree.Entry{}, err
	}
	ed := tree.Edit(s.cache, p.root)
	for _, path := range p.implicit {
		lower, err := tree.Lookup(s.cache, state, path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && lower.Kind != tree.Dir {
			continue
		}
		if err != nil {
			return tree.Entry{}, err
		}
		own, err := ed.Stat(path)
		if err != nil {
			return tree.Entry{}, err
		}
		if own.Opaque {
			continue // it replaces what is below
		}
		lower.Opaque = false
		if err := ed.SetMeta(path, lower); err != nil {
			return tree.Entry{}, err
		}
	}
	return ed.Root()
}

// Blob reads a compressed form of an image's layer, here or at one of its origins.
func (s *Images) Blob(ctx context.Context, cred registry.Credentials, l cache.Layer, d blob.Descriptor) (io.ReadCloser, error) {
	r, _, err := s.cache.Blobs().Open(d.Digest)
	if err == nil {
		return r, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return s.openVerified(ctx, cred, l, d)
}

// open reads a blob from offset on, of a remote cache or at the first of its layer's
// origins that has it. Where all of them say that they do not, the layer is gone.
func (s *Images) open(ctx context.Context, cred registry.Credentials, l cache.Layer, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	r, err := s.fromRemote(ctx, l, d, offset)
	if r != nil || err != nil {
		return r, err
	}
	r, err = s.fromOrigins(l, d, func(origin string) (io.ReadCloser, error) {
		return s.registry.FetchFrom(ctx, cred, origin, d, offset)
	})
	return r, s.goneIfMade(ctx, l, err)
}

// fromRemote reads a blob of a remote cache, unverified; nil is to be had elsewhere.
// Remote caches are asked first: they are given up sooner than registries, which
// matters where one hangs, and what they made is nowhere else.
func (s *Images) fromRemote(ctx context.Context, l cache.Layer, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	if s.remote == nil || !s.remote.Holds(l.ID) {
		return nil, nil
	}
	r, err := s.remote.Blob(ctx, d, offset)
	if err == nil || errors.Is(err, fs.ErrNotExist) || !isMade(l) {
		return r, nil
	}
	return nil, s.goneIfMade(ctx, l, err)
}

func (s *Images) openVerified(ctx context.Context, cred registry.Credentials, l cache.Layer, d blob.Descriptor) (io.ReadCloser, error) {
	r, err := s.fromRemote(ctx, l, d, 0)
	if err != nil {
		return nil, err
	}
	if r != nil {
		return &goneReads{&verified{ReadCloser: r, hash: sha256.New(), want: d}, s, ctx, l}, nil
	}
	r, err = s.fromOrigins(l, d, func(origin string) (io.ReadCloser, error) {
		return s.registry.Fetch(ctx, cred, origin, d)
	})
	if err != nil {
		return nil, s.goneIfMade(ctx, l, err)
	}
	return &goneReads{r, s, ctx, l}, nil
}

// goneReads is a blob on its way here; a layer whose blob breaks off may be gone.
type goneReads struct {
	io.ReadCloser
	images *Images
	ctx    context.Context // of the one download
	layer  cache.Layer
}

func (g *goneReads) Read(p []byte) (int, error) {
	n, err := g.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = g.images.goneIfMade(g.ctx, g.layer, err)
	}
	return n, err
}

// verified checks, at its end, that a blob was the one that was wanted.
type verified struct {
	io.ReadCloser
	hash hash.Hash
	n    int64
	want blob.Descriptor
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.hash.Write(p[:n])
	v.n += int64(n)
	if v.n > v.want.Size || err == io.EOF && (v.n != v.want.Size || blob.Digest(v.hash.Sum(nil)) != v.want.Digest) {
		return 0, fmt.Errorf("blob %s: a remote cache sent something else", v.want.Digest)
	}
	return n, err
}

func (s *Images) fromOrigins(l cache.Layer, d blob.Descriptor, open func(origin string) (io.ReadCloser, error)) (io.ReadCloser, error) {
	var missing, other error
	for _, origin := range l.Origins {
		r, err := open(origin)
		switch {
		case err == nil:
			return r, nil
		case errors.Is(err, registry.ErrNotFound):
			missing = err
		case other == nil:
			other = err
		}
	}
	switch {
	case other != nil:
		return nil, other
	case missing == nil:
		missing = fmt.Errorf("blob %s is not here, and no registry is known that has it", d.Digest)
	}
	return nil, &cache.GoneError{Layer: l.ID, Err: missing}
}

// incoming is a blob on its way into the store, and past its reader.
type incoming struct {
	r     io.Reader
	w     io.Writer
	meter *meter
	err   error // of reading r or writing w, other than its end
}

func (in *incoming) Read(p []byte) (int, error) {
	if in.err != nil {
		return 0, in.err
	}
	n, err := in.r.Read(p)
	if n > 0 {
		if _, werr := in.w.Write(p[:n]); werr != nil {
			in.err = werr
			return 0, werr
		}
		in.meter.add(n)
	}
	if err != nil && err != io.EOF {
		in.err = err
	}
	return n, err
}

// drain reads what is left.
func (in *incoming) drain() error {
	_, err := io.Copy(io.Discard, onlyReader{in})
	return err
}

// onlyReader keeps io.Copy to plain reads.
type onlyReader struct{ io.Reader }

// hashed hashes what is read through it.
type hashed struct {
	r     io.Reader
	hash  hash.Hash
	meter *meter
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	h.meter.add(n)
	return n, err
}
