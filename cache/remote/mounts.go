package remote

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/cache/blob"
)

// Mount is a cache mount that an export saves.
type Mount struct {
	ID string
	// Dir is its folder; empty is a mount that the build would use and that is not
	// on this machine, of which the snapshot that is there is kept.
	Dir string
}

// mount is a snapshot of a cache mount: a listing of its files, and their contents
// one after the other, in the listing's order, as pieces. Times and owners are in
// the listing alone, since many tools touch what they use: a file of which only
// that changed does not cross the wire again.
type mount struct {
	ID      string          `json:"id"`
	Size    int64           `json:"size,omitempty"`
	Created int64           `json:"created,omitempty"` // seconds since 1970
	Used    int64           `json:"used,omitempty"`    // when an export last met it
	List    blob.Descriptor `json:"list"`
	Pieces  []piece         `json:"pieces"`

	Signatures []signature `json:"signatures,omitempty"`
}

// piece is a stretch of contents.
type piece struct {
	ID   id              `json:"id"` // the sha256 of its bytes
	Blob blob.Descriptor `json:"blob"`
}

const (
	listType  = "application/vnd.kiln.cache.mount.list.v1+json+zstd"
	pieceType = "application/vnd.kiln.cache.mount.piece.v1+zstd"

	// maxPieces is room for 16 GiB at least.
	maxPieces = 4096
	// maxMountID bounds the name of a mount, and maxList its listing, unpacked.
	maxMountID = 4096
	maxList    = 512 << 20
	// maxListBlob bounds a listing as it is sent.
	maxListBlob = 64 << 20
)

// check finds what a snapshot, the nth of an index, may not say.
func (m *mount) check(n int) error {
	if n >= maxMounts {
		return formatf("its index has more than the %d cache mounts that are read", maxMounts)
	}
	bad := m.ID == "" || len(m.ID) > maxMountID || len(m.Pieces) > maxPieces || m.Size < 0 || m.Used < 0 || m.Created < 0 ||
		len(m.Signatures) > maxSignatures || m.List.Size < 0 || m.List.Size > maxListBlob || len(m.List.MediaType) > maxPerItem
	if bad || slices.ContainsFunc(m.Pieces, func(p piece) bool {
		return p.Blob.Size < 0 || p.Blob.Size > 2*maxPiece || len(p.Blob.MediaType) > maxPerItem
	}) {
		return formatf("cache mount %d of its index makes no sense", n)
	}
	return nil
}

// same reports whether two snapshots hold the same.
func (m mount) same(o mount) bool {
	return m.ID == o.ID && m.List.Digest == o.List.Digest && slices.EqualFunc(m.Pieces, o.Pieces, func(a, b piece) bool {
		return a.ID == b.ID && a.Blob.Digest == b.Blob.Digest
	})
}

// covers reports whether m says what o says, and was met not long ago.
func (m mount) covers(o mount, now time.Time) bool {
	return m.same(o) && m.Used >= now.Add(-usedGrain).Unix() && signaturesCover(m.Signatures, o.Signatures)
}

// listedMounts gives the snapshots that the cache lists and the export may keep, and the
// blobs of their pieces, as far as those are counted on.
func (x *Exporter) listedMounts() (old map[string]mount, known map[id]blob.Descriptor) {
	old, known = map[string]mount{}, map[id]blob.Descriptor{}
	if x.old == nil {
		return old, known
	}
	for _, m := range x.old.Mounts {
		if x.opt.Sign != nil && !verified(x.opt.Sign.Public().(ed25519.PublicKey), m.Signatures, m.message()) {
			continue
		}
		old[m.ID] = m
		for _, p := range m.Pieces {
			known[p.ID] = p.Blob
		}
	}
	for _, m := range old {
		if !x.opt.Import.lostMount(m.ID) {
			continue
		}
		for _, p := range m.Pieces {
			delete(known, p.ID) // nobody knows how many of them are gone
		}
	}
	return old, known
}

// sendMounts saves mounts: it sends the pieces that the cache does not have.
// One that cannot be saved is left as it was, and s says why.
func (x *Exporter) sendMounts(ctx context.Context, mounts []Mount, now time.Time, s *Stats) (saved []mount, err error) {
	old, known := x.listedMounts()
	for _, m := range mounts {
		before, have := old[m.ID]
		snapshot := before
		if m.Dir != "" && x.opt.Sign == nil && len(before.Signatures) > 0 {
			s.Unsaved = append(s.Unsaved, fmt.Sprintf("the cache mount %q was not saved: its snapshot is signed, and this export signs nothing", m.ID))
			m.Dir = ""
		}
		switch {
		case m.Dir != "":
			if snapshot, err = x.saveMount(ctx, m, known, have && before.isDue(now)); err != nil {
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				s.Unsaved = append(s.Unsaved, fmt.Sprintf("the cache mount %q was not saved: %v", m.ID, err))
				if snapshot = before; !have {
					continue
				}
			}
		case !have:
			continue
		case before.isDue(now):
			if err := x.askMount(ctx, before); err != nil {
				return nil, err
			}
		}
		snapshot.Created, snapshot.Used = now.Unix(), now.Unix()
		if have && before.same(snapshot) {
			snapshot.Created = before.Created
			if !before.isDue(now) {
				snapshot.Used = before.Used
			}
		}
		if x.opt.Sign != nil {
			snapshot.Signatures = []signature{sign(x.opt.Sign, snapshot.message())}
		}
		saved = append(saved, snapshot)
	}
	return saved, nil
}

// isDue reports whether no export has met a snapshot for a day: then its blobs are asked
// for, as those of layers are.
func (m mount) isDue(now time.Time) bool { return m.Used <= now.Add(-usedGrain).Unix() }

// askMount asks for the blobs of a snapshot that is kept as it is. What is gone cannot be
// made here: whoever is to be brought the mount finds out, and saves it anew.
func (x *Exporter) askMount(ctx context.Context, m mount) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(x.opt.Parallel)
	absent := func(context.Context) (io.ReadCloser, error) { return nil, errors.New("the cache mount is not here") }
	ask := func(d blob.Descriptor) {
		group.Go(func() error {
			s := &supply{form: Form{Blob: d, Open: absent}}
			if err := x.to.Put(ctx, d, nil, s.open); err != nil && s.fault(ctx, err) == nil {
				return err
			}
			return nil
		})
	}
	ask(m.List)
	for _, p := range m.Pieces {
		ask(p.Blob)
	}
	return group.Wait()
}

// saveMount packs a folder and sends what is new of it. Where ask is set it asks for what
// is known.
func (x *Exporter) saveMount(ctx context.Context, m Mount, known map[id]blob.Descriptor, ask bool) (mount, error) {
	out := mount{ID: m.ID, Pieces: []piece{}}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(x.opt.Parallel)
	var mu sync.Mutex // guards out.Pieces and known while pieces are being sent
	list, size, err := pack(gctx, m.Dir, func(raw []byte) error {
		p := piece{ID: idOf(raw)}
		mu.Lock()
		var have bool
		if p.Blob, have = known[p.ID]; !have && len(out.Pieces) >= maxPieces {
			mu.Unlock()
			return fmt.Errorf("it has more than %d GiB", maxPieces*minPiece>>30)
		}
		n := len(out.Pieces)
		out.Pieces = append(out.Pieces, p)
		mu.Unlock()
		if have && !ask {
			return nil
		}
		group.Go(func() error {
			d, err := x.putPiece(gctx, p.Blob, raw)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				delete(known, p.ID) // of this, or by now of nobody
				return err
			}
			out.Pieces[n].Blob, known[p.ID] = d, d
			return nil
		})
		return nil
	})
	if gerr := group.Wait(); gerr != nil {
		err = gerr
	}
	if err != nil {
		return out, err
	}
	out.Size = size
	out.List, err = x.putSmall(ctx, listType, list)
	if err == nil && out.List.Size > maxListBlob {
		err = fmt.Errorf("the listing of its files would have %d bytes, and %d at most are read", out.List.Size, maxListBlob)
	}
	return out, err
}

// putPiece puts a piece into the store. One that the cache lists, as have, is compressed
// only where it is gone.
func (x *Exporter) putPiece(ctx context.Context, have blob.Descriptor, raw []byte) (blob.Descriptor, error) {
	if have.Digest.IsZero() {
		return x.putSmall(ctx, pieceType, raw)
	}
	s := &supply{form: Form{Blob: have, Open: func(context.Context) (io.ReadCloser, error) {
		packed, err := packSmall(raw)
		if err == nil && sha256.Sum256(packed) != have.Digest {
			err = errors.New("it was compressed in another way")
		}
		if err != nil {
			return nil, err
		}
		return io.NopCloser(bytes.NewReader(packed)), nil
	}}}
	err := x.to.Put(ctx, have, nil, s.open)
	if err != nil && s.fault(ctx, err) != nil {
		return x.putSmall(ctx, pieceType, raw)
	}
	return have, err
}

// putSmall compresses data and puts it into the store.
func (x *Exporter) putSmall(ctx context.Context, mediaType string, data []byte) (blob.Descriptor, error) {
	packed, err := packSmall(data)
	if err != nil {
		return blob.Descriptor{}, err
	}
	d := descriptor(mediaType, packed)
	return d, x.to.Put(ctx, d, nil, opener(packed))
}

// packSmall compresses data as readSmall reads it.
func packSmall(data []byte) ([]byte, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, err
	}
	return w.EncodeAll(data, nil), nil
}

// Mount fills an empty folder with the snapshot of a cache mount; false says that
// the cache has none. After an error the folder holds a part of it.
func (i *Import) Mount(ctx context.Context, name, dir string) (bool, error) {
	<-i.loaded
	if i.index == nil {
		return false, nil
	}
	n := slices.IndexFunc(i.index.Mounts, func(m mount) bool { return m.ID == name })
	if n < 0 {
		return false, nil
	}
	m := i.index.Mounts[n]
	if len(i.opt.Verify) > 0 && !verifiedByAny(i.opt.Verify, m.Signatures, m.message()) {
		return false, errors.New("its snapshot is not signed by a key that is asked for")
	}
	if err := i.restore(ctx, m, dir); err != nil {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.lostMounts[name] = struct{}{}
		return false, err
	}
	return true, nil
}

// lostMount reports whether a cache mount could not be brought back. A nil Import knows of none.
func (i *Import) lostMount(name string) bool {
	if i == nil {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	_, lost := i.lostMounts[name]
	return lost
}

// restore fills an empty folder with a snapshot.
func (i *Import) restore(ctx context.Context, m mount, dir string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	list, err := readSmall(ctx, i.store, m.List, maxList)
	if err != nil {
		return err
	}
	contents := i.contents(ctx, m.Pieces)
	defer contents.close(cancel)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return unpack(ctx, root, list, contents)
}

// readSmall reads a compressed blob and verifies it.
func readSmall(ctx context.Context, s Store, d blob.Descriptor, limit uint64) ([]byte, error) {
	packed, err := readBlob(ctx, s, d, maxListBlob)
	if err != nil {
		return nil, err
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(limit))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := r.DecodeAll(packed, nil)
	if err != nil {
		return nil, formatf("%s cannot be unpacked: %v", d.Digest, err)
	}
	return data, nil
}

// pieceReader reads pieces one after the other while the next are fetched.
type pieceReader struct {
	pieces chan chan fetched
	rest   []byte
	err    error
}

type fetched struct {
	data []byte
	err  error
}

// contents begins to fetch pieces. Until ctx ends or all were read, some are held.
func (i *Import) contents(ctx context.Context, pieces []piece) *pieceReader {
	r := &pieceReader{pieces: make(chan chan fetched, putsAtOnce)}
	go func() {
		defer close(r.pieces)
		for _, p := range pieces {
			next := make(chan fetched, 1)
			select {
			case r.pieces <- next:
			case <-ctx.Done():
				return
			}
			go func() {
				data, err := readSmall(ctx, i.store, p.Blob, 2*maxPiece)
				if err == nil && idOf(data) != p.ID {
					err = formatf("%s holds other bytes than it should", p.Blob.Digest)
				}
				next <- fetched{data, err}
			}()
		}
	}()
	return r
}

// close ends the fetching and waits for it.
func (r *pieceReader) close(cancel context.CancelFunc) {
	cancel()
	for next := range r.pieces {
		<-next
	}
}

func (r *pieceReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		next, ok := <-r.pieces
		if !ok {
			r.err = io.ErrUnexpectedEOF
			continue
		}
		f := <-next
		r.rest, r.err = f.data, f.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
