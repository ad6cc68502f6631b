package source

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// compression is how a layer's tar stream is packed.
type compression int

const (
	compressionUnknown compression = iota
	compressionNone
	compressionGzip
	compressionZstd
)

// compressionOf tells the compression by media type.
func compressionOf(mediaType string) compression {
	switch strings.Replace(mediaType, ".nondistributable", "", 1) {
	case ocispecs.MediaTypeImageLayer, "application/vnd.docker.image.rootfs.diff.tar":
		return compressionNone
	case ocispecs.MediaTypeImageLayerGzip,
		"application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return compressionGzip
	case ocispecs.MediaTypeImageLayerZstd, "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return compressionZstd
	}
	return compressionUnknown
}

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// maxZstdWindow bounds the memory that a zstd stream may ask for. 128 MiB is what
// the zstd command accepts without being told to (--long=27).
const maxZstdWindow = 128 << 20

// decompress gives the tar stream in r. What the stream begins with decides:
// there are images whose media types are wrong (docker pushed plain layers as
// gzip once), and no tar stream begins with either magic. The checksums of zstd frames
// are not looked at: whoever unpacks a layer compares the sha256 of its stream.
func decompress(r io.Reader, mediaType string) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("reading it as gzip: %w", err)
		}
		return zr, nil
	case bytes.HasPrefix(magic, zstdMagic), isSkippableFrame(magic):
		// It reads whole blocks into a buffer of its own, and br would copy them once more.
		rest := io.MultiReader(io.LimitReader(br, int64(br.Buffered())), r)
		zr, err := zstd.NewReader(rest, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.IgnoreChecksum(true))
		if err != nil {
			return nil, fmt.Errorf("reading it as zstd: %w", err)
		}
		return zr.IOReadCloser(), nil
	case compressionOf(mediaType) == compressionNone, len(magic) == 0:
		return io.NopCloser(br), nil
	case bytes.Equal(magic, make([]byte, 4)), magic[0] >= ' ':
		// A tar stream, which begins with a name, or with zeros where it is empty.
		return io.NopCloser(br), nil
	}
	return nil, fmt.Errorf("its media type is %s, and it begins with the bytes % x", mediaType, magic)
}

// isSkippableFrame recognizes the frames with which zstd:chunked and seekable
// streams may begin.
func isSkippableFrame(magic []byte) bool {
	return len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}
