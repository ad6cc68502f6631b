package image

import (
	"bufio"
	"context"
	"fmt"
	"io"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/exporter/layer"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// recompress gives a pulled layer's tar stream, unchanged, in the wanted
// compression; d is the blob that it is read from.
func (ls *layers) recompress(ctx context.Context, l cache.Layer, d blob.Descriptor) (Layer, error) {
	how := ls.opts.Method
	source := ls.existing(l, d)
	open := func(ctx context.Context) (io.ReadCloser, error) { return decompress(ctx, source, d.MediaType) }
	if how.Compression == layer.Uncompressed {
		size, err := measure(ctx, open)
		if err != nil {
			return Layer{}, err
		}
		desc := blob.Descriptor{MediaType: how.Compression.MediaType(), Digest: l.DiffID, Size: size}
		return Layer{ID: l.ID, DiffID: l.DiffID, Desc: desc, open: open, made: true}, nil
	}
	bucket, key := ls.env.Cache.Bucket(madeBucket), recompressedKey(l.DiffID, how)
	m, ok := ls.recall(bucket, key)
	if !ok {
		r, err := open(ctx)
		if err != nil {
			return Layer{}, err
		}
		defer r.Close()
		if m, err = ls.maker.Recompress(ctx, r, how, l.DiffID); err != nil {
			return Layer{}, fmt.Errorf("compressing layer %s again: %w", d.Digest, err)
		}
		if err := ls.env.Cache.Blobs().PutRecipe(m.Digest, m.Size, m.Chunks); err != nil {
			return Layer{}, fmt.Errorf("storing the blob of a layer: %w", err)
		}
		if err := bucket.Put(key, encodeMade(m)); err != nil {
			return Layer{}, fmt.Errorf("noting the blob of a layer: %w", err)
		}
	}
	desc := blob.Descriptor{MediaType: how.Compression.MediaType(), Digest: m.Digest, Size: m.Size}
	return Layer{ID: l.ID, DiffID: l.DiffID, Desc: desc, open: ls.opener(l, desc), made: true}, nil
}

// recompressedKey is madeKey for layers that are known by their DiffID.
func recompressedKey(diff blob.Digest, how layer.Method) []byte {
	b := append(make([]byte, 0, 48), 2)
	b = append(b, diff[:]...)
	return append(b, byte(how.Compression), flag(how.Leveled), byte(how.Level))
}

// measure gives the number of bytes that open's reader has.
func measure(ctx context.Context, open func(context.Context) (io.ReadCloser, error)) (int64, error) {
	r, err := open(ctx)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, r)
}

// maxWindow bounds the memory that a zstd blob can ask for.
const maxWindow = 128 << 20

// decompress reads a layer's tar stream. The blob may be in another compression
// than its media type says, as some registries have them.
func decompress(ctx context.Context, l Layer, mediaType string) (io.ReadCloser, error) {
	blob, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	buf := bufio.NewReaderSize(blob, 1<<16)
	magic, err := buf.Peek(4)
	if err != nil && err != io.EOF {
		blob.Close()
		return nil, err
	}
	out := &decompressed{Reader: buf, blob: blob}
	switch {
	case len(magic) >= 3 && magic[0] == 0x1f && magic[1] == 0x8b && magic[2] == 8:
		out.Reader, err = gzip.NewReader(buf)
	case len(magic) == 4 && string(magic) == "\x28\xb5\x2f\xfd":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(buf, zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			out.Reader, out.close = z, z.Close
		}
	case compressionOf(mediaType) != layer.Uncompressed:
		err = fmt.Errorf("the blob is no %s stream", compressionOf(mediaType))
	}
	if err != nil {
		blob.Close()
		return nil, fmt.Errorf("reading layer %s: %w", l.Desc.Digest, err)
	}
	return out, nil
}

// decompressed is the tar stream of a blob.
type decompressed struct {
	io.Reader
	blob  io.Closer
	close func()
}

func (d *decompressed) Close() error {
	if d.close != nil {
		d.close()
	}
	return d.blob.Close()
}
