package source

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/solver"
)

// Blob is the source of one blob, as a file: a blob of a repository
// ("docker-image+blob://name@digest"), or of an image layout that a session lends
// ("oci-layout+blob://name@digest"). Its pin is the digest. It is safe for
// concurrent use.
//
// Who asks for a blob that is here already still has to be given it by the
// repository, or the layout: a digest is a name, and no right to what it names.
type Blob struct {
	// Store gives the layout that a job's sessions lend under a name, that of the
	// op's attribute oci.store.
	Store func(ctx context.Context, job *solver.Job, name string) (BlobReader, error)
	// Credentials gives the logins of a job's sessions; nil is docker's.
	Credentials func(job *solver.Job) registry.Credentials
	// MaxSize bounds a blob, in bytes; 0 is nine tenths of what is free on the disk.
	MaxSize int64

	cache    *cache.Cache
	registry *registry.Client
	sizes    *cache.Bucket // of the layouts' blobs that are in the pool, by digest
}

// NewBlob makes the source of a state folder.
func NewBlob(c *cache.Cache, r *registry.Client) *Blob {
	return &Blob{cache: c, registry: r, sizes: c.Bucket("layout blobs")}
}

// The schemes of Blob.
const (
	schemeImageBlob  = "docker-image+blob"
	schemeLayoutBlob = "oci-layout+blob"
)

// blobPlace is where a blob is to be had.
type blobPlace struct {
	ref    string // as the identifier has it
	digest blob.Digest
	layout bool   // the blob is one of a layout's, and store the layout's name
	store  string // empty where the op names none
}

// parseBlobPlace reads an identifier, with the attributes that name a layout.
func parseBlobPlace(identifier string, attrs map[string]string) (p blobPlace, err error) {
	scheme, ref, _ := strings.Cut(identifier, "://")
	name, digest, ok := strings.Cut(ref, "@")
	if !ok || name == "" {
		return p, fmt.Errorf("%q names no digest, as a blob's identifier must", identifier)
	}
	p.ref = ref
	switch scheme {
	case schemeImageBlob:
		r, err := registry.ParseReference(ref)
		if err != nil {
			return p, err
		}
		if r.Tag != "" {
			return p, fmt.Errorf("%q has a tag, which a blob has not", identifier)
		}
	case schemeLayoutBlob:
		p.layout, p.store = true, attrs[pb.AttrOCILayoutStoreID]
	default:
		return p, fmt.Errorf("%q is neither %s:// nor %s://", identifier, schemeImageBlob, schemeLayoutBlob)
	}
	if p.digest, err = blob.Parse(digest); err != nil {
		return p, fmt.Errorf("%q: kiln reads sha256 digests only: %w", identifier, err)
	}
	return p, nil
}

// parseBlob reads a source op.
func parseBlob(op *pb.SourceOp) (p blobPlace, a fileAttrs, err error) {
	if p, err = parseBlobPlace(op.Identifier, op.Attrs); err != nil {
		return p, a, err
	}
	if p.layout && p.store == "" {
		return p, a, fmt.Errorf("%s: the attribute %s, which names the layout, is missing", op.Identifier, pb.AttrOCILayoutStoreID)
	}
	a = defaultFile
	for k, v := range op.Attrs {
		if _, err := a.set(k, v); err != nil {
			return p, a, fmt.Errorf("%s: attribute %s: %w", op.Identifier, k, err)
		}
	}
	if a.filename == "" {
		a.filename = hex.EncodeToString(p.digest[:])
	}
	a.filename = safeName(a.filename)
	return p, a, nil
}

// Pin gives the digest. Whether the blob is there, Chain finds out.
func (s *Blob) Pin(_ context.Context, _ *solver.Job, op *pb.SourceOp) (string, error) {
	p, _, err := parseBlob(op)
	return p.digest.String(), err
}

// Chain gives the chain of one layer that holds the blob as a file. Its time is 1970,
// as with BuildKit: a blob has none.
func (s *Blob) Chain(ctx context.Context, job *solver.Job, op *pb.SourceOp, pin string) (cache.ChainID, error) {
	var none cache.ChainID
	p, a, err := parseBlob(op)
	if err != nil {
		return none, err
	}
	if p.digest.String() != pin {
		return none, fmt.Errorf("%s has the pin %q", op.Identifier, pin)
	}
	r, size, err := s.open(ctx, job, p)
	if err != nil {
		return none, fmt.Errorf("%s: %w", op.Identifier, err)
	}
	defer r.Close()
	e := a.entry(a.filename, p.digest, size)
	if err := s.cache.Pool().Put(ctx, e, r); err != nil {
		return none, fmt.Errorf("%s: %w", op.Identifier, err)
	}
	id, err := oneFile(s.cache, e)
	if err == nil && p.layout {
		// Losing it costs a copy.
		_ = s.sizes.Put(p.digest[:], binary.BigEndian.AppendUint64(nil, uint64(size)))
	}
	return id, err
}

// open opens a blob whose size is known then and within the bound. Who reads it
// compares the digest.
func (s *Blob) open(ctx context.Context, job *solver.Job, p blobPlace) (r io.ReadCloser, size int64, err error) {
	limit := s.MaxSize
	if limit <= 0 {
		if limit, err = diskRoom(s.cache.Path("tmp")); err != nil {
			return nil, 0, err
		}
	}
	if p.layout {
		return s.openLayout(ctx, job, p, limit)
	}
	cred := s.credentials(job)
	d, err := s.registry.Blob(ctx, cred, p.ref)
	if err != nil {
		return nil, 0, err
	}
	if d.Size > limit {
		return nil, 0, tooLarge(d.Size, limit)
	}
	if r, size, err := s.cache.Blobs().Open(p.digest); err == nil && size == d.Size {
		return r, size, nil
	} else if err == nil {
		r.Close()
	}
	return &onDemand{open: func() (io.ReadCloser, error) {
		r, err := s.registry.Fetch(ctx, cred, p.ref, d)
		if err != nil {
			return nil, err
		}
		return &metered{ReadCloser: r, meter: newMeter(progressOf(job), p.ref, "downloading", 0, d.Size)}, nil
	}}, d.Size, nil
}

// onDemand is a reader that is opened when somebody reads: what is in the pool is not
// asked for again.
type onDemand struct {
	open func() (io.ReadCloser, error)
	r    io.ReadCloser // nil while nobody has read
}

func (o *onDemand) Read(p []byte) (n int, err error) {
	if o.r == nil {
		if o.r, err = o.open(); err != nil {
			return 0, err
		}
	}
	return o.r.Read(p)
}

// Close closes what was opened.
func (o *onDemand) Close() error {
	if o.r == nil {
		return nil
	}
	return o.r.Close()
}

// check asks whether the repository, or the layout, has a blob.
func (s *Blob) check(ctx context.Context, job *solver.Job, p blobPlace) error {
	if !p.layout {
		_, err := s.registry.Blob(ctx, s.credentials(job), p.ref)
		return err
	}
	r, err := s.lent(ctx, job, p)
	if err != nil {
		return err
	}
	return r.Close()
}

func (s *Blob) credentials(job *solver.Job) registry.Credentials {
	if s.Credentials == nil {
		return nil
	}
	return s.Credentials(job)
}

// lent opens a blob of a layout that a session lends.
func (s *Blob) lent(ctx context.Context, job *solver.Job, p blobPlace) (io.ReadCloser, error) {
	if s.Store == nil {
		return nil, errors.New("no image layouts are lent to this build")
	}
	store, err := s.Store(ctx, job, p.store)
	if err != nil {
		return nil, fmt.Errorf("image layout %q: %w", p.store, err)
	}
	return store.Blob(ctx, p.digest)
}

// openLayout opens a blob of a layout. One that was copied before is not copied
// again, once the layout was seen to have it.
func (s *Blob) openLayout(ctx context.Context, job *solver.Job, p blobPlace, limit int64) (io.ReadCloser, int64, error) {
	r, err := s.lent(ctx, job, p)
	if err != nil {
		return nil, 0, err
	}
	if v, ok := s.sizes.Get(p.digest[:]); ok && len(v) == 8 {
		return r, int64(binary.BigEndian.Uint64(v)), nil
	}
	defer r.Close()
	in := &metered{ReadCloser: r, meter: newMeter(progressOf(job), p.ref, "copying", 0, 0), limit: limit}
	f, err := spool(s.cache.Path("tmp"), in)
	if err != nil {
		return nil, 0, err
	}
	in.meter.done()
	return f, f.size, nil
}

func progressOf(job *solver.Job) Progress {
	if job == nil {
		return nil
	}
	return job.Progress
}

func tooLarge(size, limit int64) error {
	return fmt.Errorf("it has %d bytes, and %d at most are taken", size, limit)
}

// metered is a reader that is bounded, and reported.
type metered struct {
	io.ReadCloser
	meter *meter
	limit int64 // 0 is none
	n     int64
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.meter.add(n)
	if m.n += int64(n); m.limit > 0 && m.n > m.limit {
		return 0, fmt.Errorf("it has more than the %d bytes that are taken", m.limit)
	}
	return n, err
}

// Close ends the transfer.
func (m *metered) Close() error {
	m.meter.done()
	return m.ReadCloser.Close()
}

// diskRoom is how many bytes one build may bring onto the disk of a folder: some of
// what is free is left to others.
func diskRoom(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("asking what is free on the disk of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize / 10 * 9, nil
}
