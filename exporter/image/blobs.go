package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter/layer"
)

// Layer is a layer of an image, as a blob that can be read.
type Layer struct {
	ID     cache.LayerID
	DiffID blob.Digest
	// Desc has the OCI media type; manifests of docker's kind rename it.
	Desc blob.Descriptor
	// Origins are repositories that are known to have the blob.
	Origins []string
	// Fresh says that the blob was compressed for this export and has been nowhere yet.
	Fresh bool
	// Placed says that the blob was written where a Place said.
	Placed bool

	open func(ctx context.Context) (io.ReadCloser, error)
	// stream, where it is set, writes the bytes without anything in between.
	stream func(ctx context.Context, w io.Writer) error
	// made says that open has all that it needs on this machine.
	made bool
}

// Open reads the blob. Errors that mean that it is not here any more, now or
// while it is read, are a *cache.GoneError.
func (l Layer) Open(ctx context.Context) (io.ReadCloser, error) {
	if l.stream != nil {
		r, w := io.Pipe()
		go func() { w.CloseWithError(l.stream(ctx, w)) }()
		return &goneReader{l.ID, r}, nil
	}
	r, err := l.open(ctx)
	if err != nil {
		return nil, gone(l.ID, err)
	}
	return &goneReader{l.ID, r}, nil
}

// Copy writes the blob to w.
func (l Layer) Copy(ctx context.Context, w io.Writer) error {
	c := &counter{ctx: ctx, w: w}
	err := l.copy(ctx, c)
	if err == nil && c.n != l.Desc.Size {
		err = fmt.Errorf("blob %s has %d bytes and should have %d: %w", l.Desc.Digest, c.n, l.Desc.Size, io.ErrUnexpectedEOF)
	}
	if err != nil && c.failed {
		return fmt.Errorf("writing layer %s: %w", l.Desc.Digest, err)
	}
	return gone(l.ID, err)
}

func (l Layer) copy(ctx context.Context, w io.Writer) error {
	if l.stream != nil {
		return l.stream(ctx, w)
	}
	r, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	if wt, ok := r.(io.WriterTo); ok {
		_, err = wt.WriteTo(w)
	} else {
		_, err = io.Copy(w, r)
	}
	return err
}

// copySlice is how much is copied between two looks at whether it is still wanted.
const copySlice = 32 << 20

// counter counts what is written, and remembers whether it was the writing that
// failed. It hands readers to w's own ReadFrom, which may copy in the kernel.
type counter struct {
	ctx    context.Context // of the one call that it is for
	w      io.Writer
	n      int64
	failed bool
}

func (c *counter) Write(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.failed = c.failed || err != nil
	return n, err
}

func (c *counter) ReadFrom(r io.Reader) (total int64, err error) {
	rf, ok := c.w.(io.ReaderFrom)
	if !ok {
		return io.CopyBuffer(struct{ io.Writer }{c}, r, make([]byte, 256<<10))
	}
	if l, ok := r.(*io.LimitedReader); ok {
		return c.readFrom(rf, l) // a slice already: the kernel sees no limit in a limit
	}
	for {
		n, err := c.readFrom(rf, &io.LimitedReader{R: r, N: copySlice})
		total += n
		if n == 0 || err != nil {
			return total, err
		}
	}
}

func (c *counter) readFrom(rf io.ReaderFrom, r *io.LimitedReader) (int64, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := rf.ReadFrom(r)
	c.n += n
	return n, err
}

// goneReader makes errors of reading a layer's blob into ones that name the layer.
type goneReader struct {
	id cache.LayerID
	io.ReadCloser
}

func (g *goneReader) Read(b []byte) (int, error) {
	n, err := g.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		err = gone(g.id, err)
	}
	return n, err
}

func (g *goneReader) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, g.ReadCloser)
	return n, gone(g.id, err)
}

// gone makes err a *cache.GoneError where it says that data of the layer is missing.
func gone(id cache.LayerID, err error) error {
	var g *cache.GoneError
	if err == nil || errors.As(err, &g) {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &cache.GoneError{Layer: id, Err: err}
	}
	return err
}

// Files gives the trees and files of a cache.
func Files(c *cache.Cache) layer.Files {
	return layer.Files{
		Nodes: c,
		Open: func(e tree.Entry) (io.ReadCloser, error) {
			f, err := c.Pool().Open(e)
			if err != nil {
				return nil, err
			}
			return f, nil
		},
		Read: c.Pool().ReadAt,
	}
}
