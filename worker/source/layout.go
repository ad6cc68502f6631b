package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/solver"
)

// BlobReader reads the blobs of an image layout. The bytes are verified by who
// reads them.
type BlobReader interface {
	// Blob opens a blob; one that is not there wraps fs.ErrNotExist.
	Blob(ctx context.Context, d blob.Digest) (io.ReadCloser, error)
}

// Layout is the source of images in OCI image layouts that a session lends
// ("oci-layout://name@digest"). Its pin is the digest of the manifest for the op's
// platform. The layers' blobs are copied into the cache when the chain is made:
// nobody lends them once the build has ended.
type Layout struct {
	// Store gives the layout that a job's sessions lend under a name, that of the
	// op's attribute oci.store.
	Store func(ctx context.Context, job *solver.Job, name string) (BlobReader, error)

	cache *cache.Cache
}

// NewLayout makes the source of a state folder.
func NewLayout(c *cache.Cache) *Layout { return &Layout{cache: c} }

// layoutOp is what the identifier and attributes of a source op say.
type layoutOp struct {
	name   string
	digest blob.Digest
	store  string
	limit  int
}

func parseLayout(op *pb.SourceOp) (l layoutOp, err error) {
	name, digest, ok := strings.Cut(strings.TrimPrefix(op.Identifier, "oci-layout://"), "@")
	if !ok {
		return l, fmt.Errorf("%q names no digest, as an image of a layout must", op.Identifier)
	}
	l.name, l.store = name, op.Attrs[pb.AttrOCILayoutStoreID]
	if l.store == "" {
		l.store = name
	}
	if l.digest, err = blob.Parse(digest); err != nil {
		return l, fmt.Errorf("%q: %w", op.Identifier, err)
	}
	if v := op.Attrs[pb.AttrOCILayoutLayerLimit]; v != "" {
		if l.limit, err = strconv.Atoi(v); err != nil || l.limit <= 0 {
			return l, fmt.Errorf("invalid layer limit %q", v)
		}
	}
	return l, nil
}

// Pin resolves the image.
func (s *Layout) Pin(ctx context.Context, job *solver.Job, op *pb.SourceOp) (string, error) {
	img, l, err := s.resolve(ctx, job, op)
	if err != nil {
		return "", err
	}
	return img.Manifest.Digest.String(), s.lends(ctx, job, l)
}

// Resolve gives the image, for those who want its config.
func (s *Layout) Resolve(ctx context.Context, job *solver.Job, op *pb.SourceOp, p ocispecs.Platform) (Image, error) {
	img, l, err := s.resolveFor(ctx, job, op, p)
	if err != nil {
		return img, err
	}
	return img, s.lends(ctx, job, l)
}

// lends makes sure that the layout has the image, also where its blobs are here: a digest
// is no right to what it names.
func (s *Layout) lends(ctx context.Context, job *solver.Job, l layoutOp) error {
	r, err := s.lent(ctx, job, l, l.digest)
	if err != nil {
		return fmt.Errorf("image %s@%s: %w", l.name, l.digest, err)
	}
	return r.Close()
}

func (s *Layout) resolve(ctx context.Context, job *solver.Job, op *pb.SourceOp) (Image, layoutOp, error) {
	p := job.Vertex.Op().Platform
	if p == nil {
		return s.resolveFor(ctx, job, op, ocispecs.Platform{})
	}
	return s.resolveFor(ctx, job, op, ocispecs.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures})
}

func (s *Layout) resolveFor(ctx context.Context, job *solver.Job, op *pb.SourceOp, p ocispecs.Platform) (Image, layoutOp, error) {
	l, err := parseLayout(op)
	if err != nil {
		return Image{}, l, err
	}
	if p.OS == "" && p.Architecture == "" {
		p = platforms.DefaultSpec()
	}
	fetch := func(d blob.Descriptor) ([]byte, error) { return s.small(ctx, job, l, d.Digest) }
	data, err := fetch(blob.Descriptor{Digest: l.digest})
	if err != nil {
		return Image{}, l, fmt.Errorf("image %s: %w", op.Identifier, err)
	}
	img := Image{Ref: op.Identifier}
	if err := img.describe(blob.Descriptor{Digest: l.digest, Size: int64(len(data))}, data, p, fetch); err != nil {
		return Image{}, l, fmt.Errorf("image %s: %w", op.Identifier, err)
	}
	return img, l, nil
}

// small gives the bytes of a manifest or config, and keeps them.
func (s *Layout) small(ctx context.Context, job *solver.Job, l layoutOp, d blob.Digest) ([]byte, error) {
	r, err := s.open(ctx, job, l, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, registry.MaxManifest+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", d, err)
	case len(data) > registry.MaxManifest:
		return nil, fmt.Errorf("%s has more than the %d bytes that manifests and configs may have", d, registry.MaxManifest)
	case sha256.Sum256(data) != d:
		return nil, fmt.Errorf("the layout's blob %s has another digest", d)
	}
	return data, s.cache.Blobs().Put(ctx, d, int64(len(data)), bytes.NewReader(data))
}

// open reads a blob, from the cache or from the layout.
func (s *Layout) open(ctx context.Context, job *solver.Job, l layoutOp, d blob.Digest) (io.ReadCloser, error) {
	r, _, err := s.cache.Blobs().Open(d)
	if err == nil {
		return r, nil
	}
	return s.lent(ctx, job, l, d)
}

// lent reads a blob from the layout.
func (s *Layout) lent(ctx context.Context, job *solver.Job, l layoutOp, d blob.Digest) (io.ReadCloser, error) {
	if s.Store == nil {
		return nil, errors.New("no image layouts are lent to this build")
	}
	store, err := s.Store(ctx, job, l.store)
	if err != nil {
		return nil, fmt.Errorf("image layout %q: %w", l.store, err)
	}
	return store.Blob(ctx, d)
}

// Chain gives the chain of the image, whose layers' blobs it copies.
func (s *Layout) Chain(ctx context.Context, job *solver.Job, op *pb.SourceOp, pin string) (cache.ChainID, error) {
	var none cache.ChainID
	img, l, err := s.resolve(ctx, job, op)
	if err != nil {
		return none, err
	}
	if img.Manifest.Digest.String() != pin {
		return none, fmt.Errorf("image %s is %s, and was %s", op.Identifier, img.Manifest.Digest, pin)
	}
	layers, err := img.limited(l.limit)
	if err != nil {
		return none, fmt.Errorf("image %s: %w", op.Identifier, err)
	}
	for _, layer := range layers {
		if err := s.copyBlob(ctx, job, l, layer.blob); err != nil {
			return none, fmt.Errorf("image %s: %w", op.Identifier, err)
		}
	}
	return img.chain(s.cache, l.limit, nil)
}

func (s *Layout) copyBlob(ctx context.Context, job *solver.Job, l layoutOp, d blob.Descriptor) error {
	if s.cache.Blobs().Has(d.Digest) {
		return nil
	}
	r, err := s.open(ctx, job, l, d.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	return s.cache.Blobs().Put(ctx, d.Digest, d.Size, r)
}

// LayoutDir is an OCI image layout in a folder of this machine.
type LayoutDir struct{ dir string }

var _ BlobReader = LayoutDir{}

// OpenLayout gives the layout in dir, which it checks to be one.
func OpenLayout(dir string) (LayoutDir, error) {
	l := LayoutDir{dir}
	data, err := l.read("oci-layout")
	if err != nil {
		return l, fmt.Errorf("%s is no OCI image layout: %w", dir, err)
	}
	var v ocispecs.ImageLayout
	if err := json.Unmarshal(data, &v); err != nil || !strings.HasPrefix(v.Version, "1.") {
		return l, fmt.Errorf("%s is an image layout of version %q, which kiln does not know", dir, v.Version)
	}
	return l, nil
}

// Blob opens a blob. Links in the layout lead nowhere outside of it.
func (l LayoutDir) Blob(_ context.Context, d blob.Digest) (io.ReadCloser, error) {
	return l.open(path.Join("blobs/sha256", hex.EncodeToString(d[:])))
}

func (l LayoutDir) open(name string) (*os.File, error) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	st, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() { // opening a fifo would wait
		return nil, fmt.Errorf("%s in %s is no regular file: %w", name, l.dir, fs.ErrNotExist)
	}
	return root.Open(name)
}

func (l LayoutDir) read(name string) ([]byte, error) {
	f, err := l.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, registry.MaxManifest))
}

// Lookup gives the digest of the image with a tag; an empty tag is "latest", or
// the only image that there is.
func (l LayoutDir) Lookup(tag string) (blob.Digest, error) {
	var none blob.Digest
	data, err := l.read("index.json")
	if err != nil {
		return none, fmt.Errorf("image layout %s: %w", l.dir, err)
	}
	var index struct {
		Manifests []blob.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return none, fmt.Errorf("image layout %s: its index.json cannot be read: %w", l.dir, err)
	}
	want := tag
	if want == "" {
		want = "latest"
	}
	for _, d := range index.Manifests {
		if d.Annotations[ocispecs.AnnotationRefName] == want {
			return d.Digest, nil
		}
	}
	if tag == "" && len(index.Manifests) == 1 {
		return index.Manifests[0].Digest, nil
	}
	return none, fmt.Errorf("image layout %s has no image with the tag %q", l.dir, want)
}
