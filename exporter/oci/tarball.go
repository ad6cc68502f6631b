package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kiln-build/kiln/exporter/image"
	digest "github.com/opencontainers/go-digest"
)

// writeTarball writes the layout as a tarball: the small files first, so that who
// reads it from a pipe knows what comes.
func (e *Exporter) writeTarball(ctx context.Context, img *image.Image, names []string, resp map[string]string) error {
	f, err := e.env.Target.File(ctx, resp)
	if err != nil {
		return err
	}
	if err := e.fill(ctx, f, img, names); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit()
}

// fill writes the tarball. A layer that f has where it belongs is not written.
func (e *Exporter) fill(ctx context.Context, f io.Writer, img *image.Image, names []string) error {
	head, err := e.head(img, names)
	if err != nil {
		return err
	}
	placed, _ := f.(*placed)
	for _, l := range img.Layers() {
		if err := ctx.Err(); err != nil {
			return err
		}
		head.header(&tar.Header{
			Typeflag: tar.TypeReg, Name: blobPath(digest.Digest(l.Desc.Digest.String())), Mode: 0o444, Size: l.Desc.Size,
		})
		if err := head.flush(f); err != nil {
			return err
		}
		if placed == nil || !placed.skip(l) {
			if err := l.Copy(ctx, f); err != nil {
				return err
			}
		}
		head.pad(l.Desc.Size)
	}
	head.buf.Write(make([]byte, 1024))
	return head.flush(f)
}

// head gives what stands before the layers.
func (e *Exporter) head(img *image.Image, names []string) (*tarball, error) {
	head := new(tarball)
	layout, err := layoutFile()
	if err != nil {
		return nil, fmt.Errorf("writing oci-layout: %w", err)
	}
	head.file("oci-layout", 0o444, layout)
	index, err := indexFile(named(img.Root.Desc, names))
	if err != nil {
		return nil, fmt.Errorf("writing index.json: %w", err)
	}
	head.file("index.json", 0o644, index)
	if e.docker {
		manifest, err := dockerManifest(img.Manifests[0], names)
		if err != nil {
			return nil, fmt.Errorf("writing manifest.json: %w", err)
		}
		head.file("manifest.json", 0o644, manifest)
	}
	head.header(&tar.Header{Typeflag: tar.TypeDir, Name: "blobs/", Mode: 0o755})
	head.header(&tar.Header{Typeflag: tar.TypeDir, Name: "blobs/sha256/", Mode: 0o755})
	written := map[digest.Digest]bool{}
	for _, d := range img.Documents() {
		if !written[d.Desc.Digest] {
			written[d.Desc.Digest] = true
			head.file(blobPath(d.Desc.Digest), 0o444, d.Data)
		}
	}
	return head, nil
}

// tarball gathers headers and small files; layers go past it, so that the kernel
// can copy them.
type tarball struct {
	buf bytes.Buffer
	err error
}

func (t *tarball) header(h *tar.Header) {
	if err := tar.NewWriter(&t.buf).WriteHeader(h); err != nil && t.err == nil {
		t.err = fmt.Errorf("writing %s: %w", h.Name, err)
	}
}

func (t *tarball) file(name string, mode int64, data []byte) {
	t.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))})
	t.buf.Write(data)
	t.pad(int64(len(data)))
}

// pad fills up the last block of a file.
func (t *tarball) pad(size int64) { t.buf.Write(make([]byte, padding(size))) }

// blockSize is what a header takes; contents fill up blocks.
const blockSize = 512

func padding(size int64) int64 { return -size & (blockSize - 1) }

func (t *tarball) flush(f io.Writer) error {
	if t.err != nil {
		return t.err
	}
	if _, err := f.Write(t.buf.Bytes()); err != nil {
		return fmt.Errorf("writing the tarball: %w", err)
	}
	t.buf.Reset()
	return nil
}
