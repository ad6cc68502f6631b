package worker

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// What compressed streams begin with.
var (
	magicGzip  = []byte{0x1f, 0x8b, 0x08}
	magicBzip2 = []byte("BZh")
	magicXz    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	magicZstd  = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// maxWindow is how much of what was unpacked a stream may refer back to, which its
// reader keeps: 128 MiB, the most that the zstd command accepts without being told to,
// and twice what xz -9 needs. That of gzip and bzip2 is less than a megabyte.
const maxWindow = 128 << 20

// decompress gives what is packed in r: by gzip, bzip2, xz or zstd, or nothing.
func decompress(r io.Reader) (io.Reader, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, magicGzip):
		return newGzipReader(br)
	case bytes.HasPrefix(magic, magicBzip2):
		return bzip2.NewReader(br), nil
	case bytes.HasPrefix(magic, magicXz):
		return newXzReader(br, maxWindow)
	case bytes.HasPrefix(magic, magicZstd):
		// No concurrency: the decoder then has no goroutines that a Close must end.
		return zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	}
	return br, nil
}

// gzipReader reads the members of a gzip stream. What follows them and is none, zeros that
// fill a tape's block or anything else, is passed over, as gzip and tar do.
type gzipReader struct {
	members *gzip.Reader
	in      *bufio.Reader
}

func newGzipReader(in *bufio.Reader) (io.Reader, error) {
	r, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	r.Multistream(false)
	return &gzipReader{r, in}, nil
}

func (g *gzipReader) Read(p []byte) (int, error) {
	n, err := g.members.Read(p)
	if err != io.EOF {
		return n, err
	}
	next, err := g.in.Peek(len(magicGzip))
	if err != nil && err != io.EOF {
		return n, err // there may be more
	}
	if !bytes.Equal(next, magicGzip) {
		return n, io.EOF
	}
	if err := g.members.Reset(g.in); err != nil {
		return n, err
	}
	g.members.Multistream(false)
	return n, nil
}

// isArchive reports whether r is a tar stream, packed or not, with an entry in it.
// What cannot be unpacked is no archive, and is copied as the file that it is.
func isArchive(r io.Reader) (bool, error) {
	limited := &io.LimitedReader{R: r, N: 8 << 20}
	stream, err := decompress(limited)
	if errors.Is(err, errXzMemory) {
		return false, err // it may well be one, and would stay packed without a word
	}
	if err != nil {
		return false, nil
	}
	// A header has pax records of up to a megabyte before it.
	_, err = tar.NewReader(io.LimitReader(stream, 4<<20)).Next()
	if err != nil && limited.N == 0 {
		return false, fmt.Errorf("looking for the first entry of an archive: %w", err)
	}
	return err == nil, nil
}
