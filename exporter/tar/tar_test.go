package tar

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/dest"
	"github.com/kiln-build/kiln/exporter/internal/fixture"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func export(t *testing.T, c *fixture.Cache, attrs map[string]string, r exporter.Result) ([]*tar.Header, error) {
	t.Helper()
	var out bytes.Buffer
	e, err := New(c.Env(dest.Path{Name: "-", Stdout: &out}), attrs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Export(t.Context(), r, new(fixture.Steps)); err != nil {
		return nil, err
	}
	var hs []*tar.Header
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err == io.EOF {
			return hs, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		hs = append(hs, h)
	}
}

func names(hs []*tar.Header) (out []string) {
	for _, h := range hs {
		out = append(out, h.Name)
	}
	return out
}

func TestExport(t *testing.T) {
	c := fixture.New(t)
	lower := c.Layer(map[string]tree.Entry{"a": c.File([]byte("a"), nil), "d/gone": c.File([]byte("b"), nil)})
	upper := c.Layer(map[string]tree.Entry{"d/gone": {Kind: tree.Whiteout}, "d/c": c.File(bytes.Repeat([]byte("c"), 1<<20), nil)})
	r := fixture.Result(c.Chain(lower, upper), nil)
	hs, err := export(t, c, nil, r)
	if want := []string{"a", "d/", "d/c"}; err != nil || !slices.Equal(names(hs), want) {
		t.Errorf("got %v, %v; want %v", names(hs), err, want)
	}
	hs, err = export(t, c, map[string]string{"source-date-epoch": "1000"}, r)
	if err != nil || slices.ContainsFunc(hs, func(h *tar.Header) bool { return h.ModTime.Unix() != 1000 }) {
		t.Errorf("with SOURCE_DATE_EPOCH: %v, %v; want its time everywhere", hs, err)
	}
	r.Images = append(r.Images, exporter.Image{Platform: ocispecs.Platform{OS: "linux", Architecture: "arm64"}, Root: c.Chain(lower)})
	hs, err = export(t, c, nil, r)
	if want := []string{"linux_amd64/", "linux_amd64/a", "linux_amd64/d/", "linux_amd64/d/c", "linux_arm64/", "linux_arm64/a", "linux_arm64/d/", "linux_arm64/d/gone"}; err != nil || !slices.Equal(names(hs), want) {
		t.Errorf("two platforms: got %v, %v; want %v", names(hs), err, want)
	}
	// The frontend's own names of platforms: of folders, and in the keys of their times.
	r.Images[0].ID, r.Images[1].ID = "one", "two"
	r.Metadata = map[string][]byte{"source.date.epoch/one": []byte("1000"), "source.date.epoch/two": []byte("2000")}
	hs, err = export(t, c, nil, r)
	if err != nil || len(hs) != 8 {
		t.Fatalf("platforms with names: %v, %v", names(hs), err)
	}
	for _, h := range hs {
		want := map[bool]int64{true: 1000, false: 2000}[strings.HasPrefix(h.Name, "one/")]
		if got := h.ModTime.Unix(); got != want {
			t.Errorf("%s has the time %d, want %d", h.Name, got, want)
		}
	}
	r.Images[0].ID, r.Images[1].ID = "a/b", "a_b"
	if hs, err = export(t, c, nil, r); err == nil || !strings.Contains(err.Error(), `"a/b" and "a_b"`) {
		t.Errorf("two platforms with one folder: %v, %v; want an error that names them", names(hs), err)
	}
}

func TestGone(t *testing.T) {
	c := fixture.New(t)
	id := c.Layer(map[string]tree.Entry{"f": c.File([]byte("lost"), nil)})
	if err := os.RemoveAll(c.Path("files")); err != nil {
		t.Fatal(err)
	}
	_, err := export(t, c, nil, fixture.Result(c.Chain(id), nil))
	var gone *cache.GoneError
	if !errors.As(err, &gone) || gone.Layer != id {
		t.Errorf("got %v, want that the layer is gone", err)
	}
}
