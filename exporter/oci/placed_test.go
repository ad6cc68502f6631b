package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/dest"
	"github.com/kiln-build/kiln/exporter/internal/fixture"
)

// What is written while it is made is what a pipe gets afterwards, also where the
// place was guessed wrong: the lengths of the annotation take the manifest past the
// end of a block, with the size of a layer that the forecast has and without.
func TestPlacedIsAsInOrder(t *testing.T) {
	for _, compression := range []string{"gzip", "zstd", "uncompressed"} {
		right, wrong := 0, 0
		c := fixture.New(t)
		for n := 0; n < 512; n += 4 {
			large := bytes.Repeat(fmt.Appendf(nil, "%s %d ", compression, n), 100+n)
			r := fixture.Result(c.Chain(
				c.Layer(map[string]tree.Entry{"below": c.File(fmt.Appendf(nil, "%d below", n), nil)}),
				c.Layer(map[string]tree.Entry{"above": c.File(large, nil)}),
			), fixture.Config(fixture.Amd64, 2))
			attrs := map[string]string{"compression": compression, "annotation.pad": strings.Repeat("x", n)}
			path := filepath.Join(t.TempDir(), "image.tar")
			e, err := New(c.Env(dest.Path{Name: path}), false, attrs)
			if err != nil {
				t.Fatal(err)
			}
			p, err := e.place(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = e.write(t.Context(), r, new(fixture.Steps), nil, p)
			if err := p.end(err); err != nil {
				t.Fatal(err)
			}
			var piped bytes.Buffer
			if e, err = New(c.Env(dest.Path{Name: "-", Stdout: &piped}), false, attrs); err != nil {
				t.Fatal(err)
			}
			if _, err := e.Export(t.Context(), r, new(fixture.Steps)); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, piped.Bytes()) {
				t.Fatalf("%s, an annotation of %d bytes: the file of %d bytes is not what a pipe got, of %d; %v", compression, n, len(got), piped.Len(), err)
			}
			if p.at == firstLayer(t, got) {
				right++
			} else {
				wrong++
			}
		}
		if wrong == 0 || right < 20*wrong {
			t.Errorf("%s: %d layers were placed well and %d not; want nearly all, and not all", compression, right, wrong)
		}
	}
}

// firstLayer gives where the bytes of the first layer begin: that of two blobs that is
// the last but one.
func firstLayer(t *testing.T, tarball []byte) int64 {
	t.Helper()
	r := bytes.NewReader(tarball)
	var starts []int64
	for tr := tar.NewReader(r); ; {
		if _, err := tr.Next(); err == io.EOF {
			return starts[len(starts)-2]
		} else if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, int64(len(tarball)-r.Len()))
	}
}

// A disk that is full while a layer is made fails the export, which says so.
func TestPlacedWriteErrors(t *testing.T) {
	c := fixture.New(t)
	f := new(fullFile)
	for _, compression := range []string{"gzip", "uncompressed"} {
		e, err := New(c.Env(fullTarget{f}), false, map[string]string{"compression": compression})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Export(t.Context(), system(t, c), new(fixture.Steps)); !errors.Is(err, errFull) || !f.aborted {
			t.Errorf("%s: got %v, aborted: %t; want the error of writing", compression, err, f.aborted)
		}
		f.aborted = false
	}
}

var errFull = errors.New("no space left on device")

// fullTarget is a Placer whose files are full.
type fullTarget struct{ f *fullFile }

var _ exporter.Placer = fullTarget{}

func (t fullTarget) Place(context.Context) (exporter.PlacedFile, error) { return t.f, nil }
func (fullTarget) File(context.Context, map[string]string) (exporter.File, error) {
	return nil, os.ErrInvalid
}
func (fullTarget) Folder(context.Context) (exporter.Folder, error) { return nil, os.ErrInvalid }

type fullFile struct{ aborted bool }

func (*fullFile) Write([]byte) (int, error)          { return 0, nil }
func (*fullFile) WriteAt([]byte, int64) (int, error) { return 0, errFull }
func (*fullFile) Seek(int64, int) (int64, error)     { return 0, nil }
func (*fullFile) Truncate(int64) error               { return nil }
func (*fullFile) Commit() error                      { return nil }
func (f *fullFile) Abort() error                     { f.aborted = true; return nil }
