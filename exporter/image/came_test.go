package image

import (
	"context"
	"testing"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/exporter/internal/fixture"
)

// A layer that two images have in two forms is written as the one that came in the
// image that the build read.
func TestFormOfTheImageThatWasRead(t *testing.T) {
	c := fixture.New(t)
	diff := blob.Digest{1}
	gzip := blob.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: blob.Digest{2}, Size: 10}
	level := blob.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: blob.Digest{3}, Size: 11}
	zstd := blob.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+zstd", Digest: blob.Digest{4}, Size: 12}
	id := cache.ImageLayerID(diff)
	for _, d := range []blob.Descriptor{gzip, level, zstd} {
		if err := c.Cache.PutLayer(cache.Layer{ID: id, DiffID: diff, Blobs: []blob.Descriptor{d}, Origins: []string{"host/image"}}); err != nil {
			t.Fatal(err)
		}
	}
	chain, err := c.Cache.Extend(cache.ChainID{}, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		attrs map[string]string
		came  blob.Descriptor
		want  blob.Descriptor
	}{
		{"no image was read", nil, blob.Descriptor{}, gzip},
		{"the first was", nil, gzip, gzip},
		{"the second was", nil, level, level},
		// Nobody asked for gzip: what the base image's registry has stays as it is.
		{"the third was", nil, zstd, zstd},
		{"another compression is forced", map[string]string{"compression": "zstd", "force-compression": "true"}, level, zstd},
		{"its own compression is forced", map[string]string{"compression": "gzip", "force-compression": "true"}, level, level},
	} {
		r := fixture.Result(chain, nil)
		if !test.came.Digest.IsZero() {
			r.Came = func(context.Context) map[blob.Digest]bool { return map[blob.Digest]bool{test.came.Digest: true} }
		}
		img := assemble(t, c.Env(nil), test.attrs, r)
		if got := img.Manifests[0].Layers[0].Desc.Digest; got != test.want.Digest {
			t.Errorf("%s: got blob %s, want %s", test.name, got, test.want.Digest)
		}
	}
}
