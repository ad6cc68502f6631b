package cache

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// document reads a manifest or a JSON blob from a registry.
func document(t *testing.T, address string, into any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", ocispecs.MediaTypeImageManifest)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil {
		err = unpackJSON(data, into)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", address, resp.Status, err)
	}
}

// unpackJSON reads JSON, compressed by zstd or not.
func unpackJSON(data []byte, into any) error {
	r, err := zstd.NewReader(nil)
	if err != nil {
		return err
	}
	defer r.Close()
	if plain, err := r.DecodeAll(data, nil); err == nil {
		data = plain
	}
	return json.Unmarshal(data, into)
}

// TestAside has a cache hold the layers of the image as the image has them, and the
// other ones by zstd. An image of those, of another target, has them by gzip, and once
// the cache knows what they come to, no layer is read to push it.
func TestAside(t *testing.T) {
	t.Parallel()
	r := registry(t)
	dir := context(t, "one\n")
	cache := "type=registry,ref=" + r.Addr + "/cache:main"
	flags := []string{"--build-arg", "SOURCE_DATE_EPOCH=", "--cache-from", cache, "--cache-to", cache + ",mode=max"}
	push := func(repo string, more ...string) []string {
		return slices.Concat(flags, more, []string{"-o", "type=registry,name=" + r.Addr + "/" + repo + ":latest"})
	}
	newRunner(t).must(dir, push("app")...)
	var image, held ocispecs.Manifest
	document(t, r.Addr+"/v2/app/manifests/latest", &image)
	document(t, r.Addr+"/v2/cache/manifests/main", &held)
	aside := 0
	for _, l := range held.Layers {
		if !strings.HasPrefix(l.MediaType, "application/vnd.oci.image.layer.") {
			continue
		}
		want := ocispecs.MediaTypeImageLayerGzip
		if !slices.ContainsFunc(image.Layers, func(i ocispecs.Descriptor) bool { return i.Digest == l.Digest }) {
			want = ocispecs.MediaTypeImageLayerZstd
			aside++
		}
		if l.MediaType != want {
			t.Errorf("the cache holds a layer as %s, want %s", l.MediaType, want)
		}
	}
	if aside != 3 {
		t.Errorf("the cache holds %d layers that the image does not have, want the 2 of the stage tool, and a copy of the base", aside)
	}
	var index struct {
		Layers []struct {
			Aside    bool
			Blobs    []ocispecs.Descriptor
			Variants []any
		}
	}
	document(t, r.Addr+"/v2/cache/blobs/"+held.Config.Digest.String(), &index)
	for i, l := range index.Layers {
		if len(l.Variants) > 0 {
			t.Errorf("layer %d has variants that are its own blobs", i)
		}
	}

	second := newRunner(t).must(dir, push("tool", "--target", "tool")...)
	second.check(t, nil, second.digest)
	document(t, r.Addr+"/v2/tool/manifests/latest", &image)
	for _, l := range image.Layers {
		if l.MediaType != ocispecs.MediaTypeImageLayerGzip {
			t.Errorf("the image has a layer as %s, want gzip", l.MediaType)
		}
	}
	_, before := requests(t, r, 0)
	newRunner(t).must(dir, push("tool", "--target", "tool")...).check(t, nil, second.digest)
	lines, _ := requests(t, r, before)
	if n := blobsRead(lines, "cache") + blobsRead(lines, "tool"); n != 1 {
		t.Errorf("%d blobs were fetched, want the index only:\n%s", n, strings.Join(lines, "\n"))
	}
	// Who has no such image, and reads the cache, is given the same bytes.
	newRunner(t).must(dir, push("other", "--target", "tool")...).check(t, nil, second.digest)

	// Those layers are read again by nobody, but for who writes another cache.
	elsewhere := []string{"--cache-to", "type=local,mode=max,dest=" + filepath.Join(t.TempDir(), "cache")}
	for n, row := range []struct {
		more []string
		kept int // of the two layers of the stage tool
	}{{nil, 0}, {elsewhere, 2}} {
		if err := os.WriteFile(filepath.Join(dir, "app.txt"), []byte{'2' + byte(n)}, 0o644); err != nil {
			t.Fatal(err)
		}
		edited := newRunner(t)
		edited.must(dir, push("app", row.more...)...)
		kept := 0
		for _, l := range index.Layers {
			if l.Aside && edited.keeps(l.Blobs[0].Digest) {
				kept++
			}
		}
		if kept != row.kept {
			t.Errorf("with %q %d blobs of layers that no image has were kept, want %d", row.more, kept, row.kept)
		}
	}
}
