package image

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter/internal/fixture"
	"github.com/kiln-build/kiln/exporter/layer"
	"github.com/klauspost/compress/gzip"
)

// sources is a layer of Go's own source files, which every machine that runs
// this has: some 10,000 files of 100 MB.
func sources(b *testing.B, c *fixture.Cache) tree.Entry {
	b.Helper()
	var t tree.Builder
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(goroot)), "src")
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		e := c.File(data, func(e *tree.Entry) { e.Tag = uint64(len(rel))<<32 ^ uint64(rel[0])<<16 ^ uint64(len(data)) })
		return t.Set(rel, e)
	})
	if err != nil {
		b.Fatal(err)
	}
	root, err := t.Root(c)
	if err != nil {
		b.Fatal(err)
	}
	return root
}

// forgetful keeps no chunks, so that each piece is compressed every time.
type forgetful struct{}

func (forgetful) Chunk(blob.ChunkID) ([]byte, error)  { return nil, fs.ErrNotExist }
func (forgetful) PutChunk(blob.ChunkID, []byte) error { return nil }

func BenchmarkLayer(b *testing.B) {
	c := fixture.New(b)
	root := sources(b, c)
	files := Files(c.Cache)
	stream := func() int64 {
		n := &counter{ctx: b.Context(), w: io.Discard}
		if err := (layer.Stream{Files: files}).Write(context.Background(), struct{ io.Writer }{n}, root); err != nil {
			b.Fatal(err)
		}
		return n.n
	}
	size := stream()
	make := func(name string, chunks layer.Chunks, how layer.Method, diff blob.Digest) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			m := layer.NewMaker(files, chunks, 0)
			for b.Loop() {
				made, err := m.Make(b.Context(), root, layer.Options{}, how, diff)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(made.Size), "blob-bytes")
			}
		})
	}
	made, err := layer.NewMaker(files, c.Blobs(), 0).Make(b.Context(), root, layer.Options{}, layer.Method{}, blob.Digest{})
	if err != nil {
		b.Fatal(err)
	}
	make("gzip", forgetful{}, layer.Method{}, blob.Digest{})
	make("gzip6", forgetful{}, layer.Method{Level: 6, Leveled: true}, blob.Digest{})
	make("zstd", forgetful{}, layer.Method{Compression: layer.Zstd}, blob.Digest{})
	make("uncompressed", forgetful{}, layer.Method{Compression: layer.Uncompressed}, blob.Digest{})
	make("chunks-kept", c.Blobs(), layer.Method{}, blob.Digest{})
	make("chunks-and-diffid-kept", c.Blobs(), layer.Method{}, made.DiffID)
	b.Run("stream", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			stream()
		}
	})
	b.Run("plain-gzip-loop", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			n := &counter{ctx: b.Context(), w: io.Discard}
			z := gzip.NewWriter(n)
			if err := (layer.Stream{Files: files}).Write(b.Context(), z, root); err != nil {
				b.Fatal(err)
			}
			if err := z.Close(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(n.n), "blob-bytes")
		}
	})
}

// BenchmarkKnown assembles an image of 30 small layers whose blobs were made
// before: what an export costs that finds everything.
func BenchmarkKnown(b *testing.B) {
	c := fixture.New(b)
	var ids []cache.LayerID
	for i := range 30 {
		name := fmt.Sprintf("file%d", i)
		ids = append(ids, c.Layer(map[string]tree.Entry{name: c.File([]byte(name), nil)}))
	}
	r := fixture.Result(c.Chain(ids...), fixture.Config(fixture.Amd64, 30))
	o, err := ParseOptions(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Assemble(b.Context(), c.Env(nil), o, r, new(fixture.Steps), nil); err != nil {
			b.Fatal(err)
		}
	}
}
