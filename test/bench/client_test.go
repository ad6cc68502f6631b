package main

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// The loops that speak to a registry leave what a pull and a push leave.
func TestPullAndPut(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	repository := strings.TrimPrefix(server.URL, "http://") + "/some/image"
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for i, method := range []string{"gzip", "zstd"} {
		layer, err := generatedLayer(i, 300_000, method)
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	if err := peer.Push(img, repository+":one"); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	if err := pullImage(repository+":one", dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"0/opt/layer0/dir0/file2", "1/opt/layer1/dir0/file0"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Size() != 100_000 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}

	l := &lab{dir: t.TempDir()}
	manifest, err := l.manifestFile(repository + ":one")
	if err != nil {
		t.Fatal(err)
	}
	if err := putImage([]string{manifest, repository + ":two", "1"}); err != nil {
		t.Fatal(err)
	}
	one, two := layersOf(t, repository+":one"), layersOf(t, repository+":two")
	if len(two) != 2 || two[0] != one[0] || two[1] == one[1] {
		t.Errorf("the layers of the first image are %v, of the second %v: the last alone is new", one, two)
	}
	if err := putImage([]string{manifest, repository + ":three", "0"}); err != nil {
		t.Fatal(err)
	}
	if three := layersOf(t, repository+":three"); three[1] != one[1] {
		t.Errorf("with no new layer: %v, want %v", three, one)
	}
}

func layersOf(t *testing.T, ref string) (out []v1.Hash) {
	t.Helper()
	img, err := openImage("docker://"+ref, "")
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}
