package layer

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression is the format of a layer's blob.
type Compression uint8

const (
	// Gzip is the default: everything reads it.
	Gzip Compression = iota
	// Zstd is smaller and faster, and needs containerd 1.5 or docker 23.
	Zstd
	// Uncompressed is the tar stream itself. Nothing is kept of it: it is made
	// again whenever it is read.
	Uncompressed
)

func (c Compression) String() string {
	switch c {
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	case Uncompressed:
		return "uncompressed"
	}
	return fmt.Sprintf("Compression(%d)", uint8(c))
}

// MediaType gives the OCI media type of a layer so compressed.
func (c Compression) MediaType() string {
	switch c {
	case Gzip:
		return "application/vnd.oci.image.layer.v1.tar+gzip"
	case Zstd:
		return "application/vnd.oci.image.layer.v1.tar+zstd"
	default:
		return "application/vnd.oci.image.layer.v1.tar"
	}
}

// Method is a compression and how hard it tries. The zero value is gzip at its
// default level.
type Method struct {
	Compression Compression
	// Level, where Leveled is set, is 0 to 9 for gzip, 0 to 22 for zstd.
	Level   int
	Leveled bool
}

// Check says whether the level is one that the compression has.
func (m Method) Check() error {
	most := 9
	if m.Compression == Zstd {
		most = 22
	}
	if m.Leveled && m.Compression != Uncompressed && (m.Level < 0 || m.Level > most) {
		return fmt.Errorf("compression level %d: %s has levels 0 to %d", m.Level, m.Compression, most)
	}
	return nil
}

// key gives the level as a number that goes into chunk names; -1 is the default.
func (m Method) key() int {
	if !m.Leveled {
		return -1
	}
	return m.Level
}

// compressor compresses pieces. It is safe for concurrent use.
type compressor struct {
	gzips sync.Pool // of *gzip.Writer: each is near a megabyte
	zstd  *zstd.Encoder
}

// newCompressor gives a compressor for m, which takes procs pieces at once.
func newCompressor(m Method, procs int) (*compressor, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	switch m.Compression {
	case Gzip:
		level := m.key() // gzip's own number for the default is -1 too
		if _, err := gzip.NewWriterLevel(nil, level); err != nil {
			return nil, err
		}
		c := &compressor{}
		c.gzips.New = func() any {
			w, _ := gzip.NewWriterLevel(nil, level) // the level was just tried
			return w
		}
		return c, nil
	case Zstd:
		// A frame cannot look back further than the piece is long; encoders set
		// aside memory for as much as they are allowed.
		o := []zstd.EOption{zstd.WithEncoderConcurrency(procs), zstd.WithWindowSize(maxPiece)}
		if m.Leveled {
			o = append(o, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(m.Level)))
		}
		e, err := zstd.NewWriter(nil, o...)
		return &compressor{zstd: e}, err
	}
	return nil, fmt.Errorf("%s is no compression", m.Compression)
}

// compress appends raw as a gzip member or zstd frame to buf.
func (c *compressor) compress(buf, raw []byte) ([]byte, error) {
	if c.zstd != nil {
		return c.zstd.EncodeAll(raw, buf), nil
	}
	w := c.gzips.Get().(*gzip.Writer)
	defer c.gzips.Put(w)
	b := bytes.NewBuffer(buf)
	w.Reset(b)
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
