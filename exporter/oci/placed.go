package oci

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/image"
)

// placed is the file of a tarball that is written in two goes: one layer while it is
// made, and then the rest in order. The layer's place follows from what stands before
// it, whose length is known but for the digits of a size; where those make a
// difference, about once in hundreds of images, the layer is written again.
type placed struct {
	exporter.PlacedFile
	at       int64 // where the layer's bytes begin
	reserved bool
}

// place opens the target's file, where it is one that can be written so.
func (e *Exporter) place(ctx context.Context) (*placed, error) {
	target, ok := e.env.Target.(exporter.Placer)
	if !ok || e.folder {
		return nil, nil
	}
	f, err := target.Place(ctx)
	if f == nil || err != nil {
		return nil, err
	}
	return &placed{PlacedFile: f}, nil
}

// reserve gives writers for layer number first of the forecast.
func (p *placed) reserve(e *Exporter, forecast *image.Image, names []string, first int) func() io.Writer {
	if setCreated(forecast) != nil {
		return nil // the image's own config will say what is wrong
	}
	head, err := e.head(forecast, names)
	if err != nil || head.err != nil {
		return nil
	}
	p.at = int64(head.buf.Len())
	for _, l := range forecast.Layers()[:first] {
		p.at += blockSize + l.Desc.Size + padding(l.Desc.Size)
	}
	p.at += blockSize // its own header
	p.reserved = true
	return func() io.Writer { return io.NewOffsetWriter(p.PlacedFile, p.at) }
}

// skip goes past a layer that stands where it belongs, and reports whether it does.
func (p *placed) skip(l image.Layer) bool {
	if !l.Placed {
		return false
	}
	if at, err := p.Seek(0, io.SeekCurrent); err != nil || at != p.at {
		return false
	}
	_, err := p.Seek(l.Desc.Size, io.SeekCurrent)
	return err == nil
}

// ReadFrom has the kernel copy, where the file can.
func (p *placed) ReadFrom(r io.Reader) (int64, error) { return io.Copy(p.PlacedFile, r) }

// end makes the file the output, unless err says that it is not whole.
func (p *placed) end(err error) error {
	if err == nil && p.reserved {
		err = p.cut()
	}
	if err != nil {
		return errors.Join(err, p.Abort())
	}
	return p.Commit()
}

// cut removes what a layer left that was written too far behind.
func (p *placed) cut() error {
	end, err := p.Seek(0, io.SeekCurrent)
	if err == nil {
		err = p.Truncate(end)
	}
	if err != nil {
		return fmt.Errorf("writing the tarball: %w", err)
	}
	return nil
}
