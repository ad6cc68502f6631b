package caller

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	sessioncontent "github.com/moby/buildkit/session/content"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/worker/source"
)

// layoutPrefix is what clients put before the names of image layouts.
const layoutPrefix = "oci:"

// Layout gives an image layout of the client's. Whether there is one of that name,
// the first blob tells.
func (c *Caller) Layout(ctx context.Context, name string) (source.BlobReader, error) {
	conn, err := c.get(ctx)
	if err != nil {
		return nil, err
	}
	return layout{sessioncontent.NewCallerStore(conn, layoutPrefix+name), name}, nil
}

// layout is a content store of the client's.
type layout struct {
	store content.Store
	name  string
}

// Blob opens a blob.
func (l layout) Blob(ctx context.Context, d blob.Digest) (io.ReadCloser, error) {
	// The size is asked of the store: a descriptor without one stands for it.
	r, err := l.store.ReaderAt(ctx, ocispecs.Descriptor{Digest: digest.Digest(d.String())})
	if err != nil {
		if errdefs.IsNotFound(err) || missing(err) {
			return nil, fmt.Errorf("blob %s of the image layout %s: %w", d, l.name, fs.ErrNotExist)
		}
		return nil, fmt.Errorf("reading the image layout %s: %w", l.name, err)
	}
	return blobReader{io.NewSectionReader(r, 0, r.Size()), r}, nil
}

type blobReader struct {
	io.Reader
	io.Closer
}
