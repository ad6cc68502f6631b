package source

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/cache/tree"
)

// run runs a program that the test needs; one that is not there is a failure.
func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// TestImagesOfOthers pulls what buildah made and skopeo pushed, in each format.
func TestImagesOfOthers(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "storage")
	buildah := func(args ...string) {
		run(t, dir, "buildah", append([]string{"--root", root, "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}, args...)...)
	}
	for name, text := range map[string]string{
		"one/etc/keep": "kept", "one/etc/gone": "gone", "one/opt/old/file": "old",
		"Dockerfile": "FROM scratch\nCOPY one /\nCOPY --chown=7:8 two /\n", "two/opt/new": "new",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	buildah("bud", "--layers", "--isolation", "chroot", "-t", "made", ".")
	archive := "oci-archive:" + filepath.Join(dir, "made.tar")
	buildah("push", "made", archive)
	for _, test := range []struct{ name, mediaType string }{
		{"zstd", ocispecs.MediaTypeImageLayerZstd},
		{"oci", ocispecs.MediaTypeImageLayerGzip},
		{"v2s2", "application/vnd.docker.image.rootfs.diff.tar.gzip"},
	} {
		// A registry for each: the tools take what one has of a layer, packed in
		// whatever way.
		_, p := start(t)
		if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		to := "docker://" + p.repo + ":" + test.name
		if test.name == "zstd" {
			// skopeo does not pack anew what is packed already.
			buildah("push", "--tls-verify=false", "--format", "oci", "--compression-format", "zstd", "made", to)
		} else {
			run(t, dir, "skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", "--format", test.name, archive, to)
		}
		c := openCache(t, t.TempDir())
		s := NewImages(c, client(), ImagesOptions{})
		img, id, err := pull(t.Context(), s, p.repo+":"+test.name)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := img.layers[0].blob.MediaType; got != test.mediaType {
			t.Errorf("%s: the layer is %q, and the test is of %q", test.name, got, test.mediaType)
		}
		want := "etc/gone=gone etc/keep=kept opt/new=new opt/old/file=old"
		if got := files(t, c, id); got != want {
			t.Errorf("%s: got %s, want %s", test.name, got, want)
		}
		state, err := c.Merged(id)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := tree.Lookup(c, state, "opt/new"); err != nil || e.UID != 7 || e.GID != 8 {
			t.Errorf("%s: opt/new is %+v, %v; want the owner 7:8", test.name, e, err)
		}
	}
}
