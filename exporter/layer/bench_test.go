package layer

import (
	"archive/tar"
	"io"
	"testing"
	"time"
)

func BenchmarkHeader(b *testing.B) {
	h := header{name: "usr/lib/python3/dist-packages/some/module/file.py", kind: tar.TypeReg, mode: 0o644, size: 12345, mtime: 1700000000}
	b.Run("own", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			var err error
			if buf, err = h.append(buf[:0]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("archive-tar", func(b *testing.B) {
		b.ReportAllocs()
		w := tar.NewWriter(io.Discard)
		for b.Loop() {
			err := w.WriteHeader(&tar.Header{Name: h.name, Typeflag: h.kind, Mode: int64(h.mode), ModTime: time.Unix(h.mtime, 0), Format: tar.FormatPAX})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}
