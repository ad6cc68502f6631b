package caller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	sessioncontent "github.com/moby/buildkit/session/content"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
)

// folderPrefix is what clients put before the names of folders with caches.
const folderPrefix = "local:"

// maxCacheManifest bounds the manifest of a cache, as registries do.
const maxCacheManifest = 4 << 20

// CacheFolder gives the cache in a folder of the client's. The client finds the
// manifest by its tag before it asks for a build, and notes a new one afterwards:
// the index of the folder is its own.
func (c *Caller) CacheFolder(dir string, manifest blob.Digest) remote.Target {
	return &cacheFolder{c, dir, manifest}
}

type cacheFolder struct {
	caller   *Caller
	dir      string
	manifest blob.Digest
}

var _ remote.Target = (*cacheFolder)(nil)

func (f *cacheFolder) store(ctx context.Context) (content.Store, error) {
	conn, err := f.caller.get(ctx)
	if err != nil {
		return nil, err
	}
	return sessioncontent.NewCallerStore(conn, folderPrefix+f.dir), nil
}

// Manifest makes a cacheFolder a remote.Store.
func (f *cacheFolder) Manifest(ctx context.Context, d blob.Digest) ([]byte, error) {
	if d.IsZero() {
		d = f.manifest
	}
	if d.IsZero() {
		return nil, fmt.Errorf("the client names no cache in %s: %w", f.dir, fs.ErrNotExist)
	}
	store, err := f.store(ctx)
	if err != nil {
		return nil, err
	}
	desc := ocispecs.Descriptor{Digest: digest.Digest(d.String())}
	info, err := store.Info(ctx, desc.Digest)
	if err != nil {
		return nil, f.explain(d, err)
	}
	if info.Size < 0 || info.Size > maxCacheManifest {
		return nil, fmt.Errorf("the manifest %s has %d bytes, and %d at most are read", d, info.Size, maxCacheManifest)
	}
	desc.Size = info.Size
	data, err := content.ReadBlob(ctx, store, desc)
	if err != nil {
		return nil, f.explain(d, err)
	}
	if desc.Digest != digest.FromBytes(data) {
		return nil, fmt.Errorf("the manifest %s in the client's folder %s is damaged", d, f.dir)
	}
	return data, nil
}

// Blob makes a cacheFolder a remote.Store.
func (f *cacheFolder) Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	store, err := f.store(ctx)
	if err != nil {
		return nil, err
	}
	r, err := store.ReaderAt(ctx, ocispecs.Descriptor{Digest: digest.Digest(d.Digest.String()), Size: d.Size})
	if err != nil {
		return nil, f.explain(d.Digest, err)
	}
	if r.Size() != d.Size || offset > d.Size {
		return nil, errors.Join(fmt.Errorf("blob %s of the client's folder %s has %d bytes, not %d", d.Digest, f.dir, r.Size(), d.Size), r.Close())
	}
	return blobReader{io.NewSectionReader(r, offset, d.Size-offset), r}, nil
}

// explain says in the standard library's way that a blob is not there.
func (f *cacheFolder) explain(d blob.Digest, err error) error {
	if errdefs.IsNotFound(err) || missing(err) {
		return fmt.Errorf("blob %s in the client's folder %s: %w", d, f.dir, fs.ErrNotExist)
	}
	return fmt.Errorf("reading blob %s in the client's folder %s: %w", d, f.dir, err)
}

// Put makes a cacheFolder a remote.Target.
func (f *cacheFolder) Put(ctx context.Context, d blob.Descriptor, _ []string, open func(context.Context) (io.ReadCloser, error)) error {
	store, err := f.store(ctx)
	if err != nil {
		return err
	}
	desc := ocispecs.Descriptor{MediaType: d.MediaType, Digest: digest.Digest(d.Digest.String()), Size: d.Size}
	if info, err := store.Info(ctx, desc.Digest); err == nil && info.Size == d.Size {
		return nil
	}
	r, err := open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := content.WriteBlob(ctx, store, "kiln-"+d.Digest.String(), r, desc); err != nil {
		return fmt.Errorf("writing blob %s to the client's folder %s: %w", d.Digest, f.dir, err)
	}
	return nil
}

// Commit makes a cacheFolder a remote.Target. The client is told of the manifest in
// the answer to its request, and writes the folder's index itself.
func (f *cacheFolder) Commit(ctx context.Context, d blob.Descriptor, manifest []byte, _ blob.Digest) (bool, error) {
	return true, f.Put(ctx, d, nil, func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(manifest)), nil })
}
