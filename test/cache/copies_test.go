package cache

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestCopies has a cache hold the base image's layer by zstd, which a runner that
// starts empty unpacks in place of the one in the image's registry, and writes the
// same images.
func TestCopies(t *testing.T) {
	t.Parallel()
	var base ocispecs.Manifest
	document(t, shared.base+"/v2/busybox/manifests/latest", &base)
	if len(base.Layers) != 1 || base.Layers[0].MediaType != ocispecs.MediaTypeImageLayerGzip {
		t.Fatalf("the base image has layers %+v, want one by gzip", base.Layers)
	}
	own := base.Layers[0].Digest
	dir := context(t, "one\n")
	// export fills a cache in a folder, and gives the digest of the copy in it.
	export := func(attrs string) (from, folder string, copied digest.Digest) {
		t.Helper()
		folder = filepath.Join(t.TempDir(), "cache")
		newRunner(t).must(dir, "--cache-to", "type=local,dest="+folder+",mode=max"+attrs)
		read := func(d digest.Digest, into any) {
			t.Helper()
			data, err := os.ReadFile(filepath.Join(folder, "blobs/sha256", d.Encoded()))
			if err == nil {
				err = unpackJSON(data, into)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		var names ocispecs.Index
		data, err := os.ReadFile(filepath.Join(folder, "index.json"))
		if err == nil {
			err = json.Unmarshal(data, &names)
		}
		if err != nil {
			t.Fatal(err)
		}
		var manifest struct {
			Config            ocispecs.Descriptor
			Layers, Manifests []ocispecs.Descriptor
		}
		read(names.Manifests[0].Digest, &manifest)
		if n := len(manifest.Manifests); n > 0 { // the form for old registries
			manifest.Config = manifest.Manifests[n-1]
		}
		var index struct {
			Layers []struct {
				Blobs []ocispecs.Descriptor
				Copy  *struct{ Blob ocispecs.Descriptor }
			}
		}
		read(manifest.Config.Digest, &index)
		for _, l := range index.Layers {
			switch {
			case l.Copy == nil:
			case l.Blobs[0].Digest != own || l.Copy.Blob.MediaType != ocispecs.MediaTypeImageLayerZstd:
				t.Errorf("the cache has the copy %+v of %+v", l.Copy.Blob, l.Blobs)
			case !slices.ContainsFunc(manifest.Layers, func(d ocispecs.Descriptor) bool { return d.Digest == l.Copy.Blob.Digest }):
				t.Error("the manifest does not list the copy")
			default:
				copied = l.Copy.Blob.Digest
			}
		}
		return "type=local,src=" + folder, folder, copied
	}
	from, folder, copied := export("")
	if copied == "" {
		t.Fatal("the cache has no copy of the base")
	}
	if err := os.WriteFile(filepath.Join(dir, "app.txt"), []byte("two\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	want := wanted(t, dir)
	r := registry(t)
	push := []string{"-o", "type=registry,rewrite-timestamp=true,name=" + r.Addr + "/app:latest"}
	check := func(what string, o outcome, unpacked, not digest.Digest) {
		t.Helper()
		o.check(t, []string{"app"}, want)
		if !strings.Contains(o.text, "extracting "+unpacked.String()) || not != "" && strings.Contains(o.text, not.String()) {
			t.Errorf("%s: want %s unpacked, and nothing of %s:\n%s", what, unpacked, not, o.text)
		}
	}
	pushed := newRunner(t)
	check("a push", pushed.must(dir, append(push, "--cache-from", from)...), copied, "")
	if pushed.keeps(copied) {
		t.Error("the copy was kept, which nothing reads again")
	}
	check("no push", newRunner(t).must(dir, append(tarball(t), "--cache-from", from)...), own, copied)
	// What was unpacked from a copy has all that a later output wants.
	pushed.must(dir, tarball(t)...).check(t, nil, want)
	// A copy that is damaged is none.
	if err := os.WriteFile(filepath.Join(folder, "blobs/sha256", copied.Encoded()), []byte("damage"), 0o644); err != nil {
		t.Fatal(err)
	}
	check("a damaged copy", newRunner(t).must(dir, append(push, "--cache-from", from)...), own, "")

	if err := os.WriteFile(filepath.Join(dir, "app.txt"), []byte("one\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, attrs := range []string{",copies=false", ",compression=gzip", ",image-manifest=false"} {
		if _, _, copied := export(attrs); copied != "" {
			t.Errorf("with %s the cache has a copy", attrs)
		}
	}
}
