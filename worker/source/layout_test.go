package source

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
)

// layoutJob makes the job of a source op.
func layoutJob(t *testing.T, op *pb.SourceOp) *solver.Job {
	t.Helper()
	v, err := llb.New(&pb.Op{Op: &pb.Op_Source{Source: op}, Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}}, nil, llb.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	return &solver.Job{Vertex: v}
}

func TestLayout(t *testing.T) {
	_, p := start(t)
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	made := p.image("v1", testImage{layers: [][]byte{testTar(t, "a=1"), testTar(t, "b=2")}})
	dir := filepath.Join(t.TempDir(), "layout")
	run(t, t.TempDir(), "skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", "docker://"+p.repo+":v1", "oci:"+dir+":v1")
	l, err := OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"v1", ""} {
		if d, err := l.Lookup(tag); err != nil || d != made.Digest {
			t.Errorf("the tag %q is %s, %v; want %s", tag, d, err, made.Digest)
		}
	}
	if _, err := l.Lookup("v2"); err == nil || !strings.Contains(err.Error(), `"v2"`) {
		t.Errorf("a tag that is not there: %v", err)
	}
	c := openCache(t, t.TempDir())
	s := NewLayout(c)
	s.Store = func(_ context.Context, _ *solver.Job, name string) (BlobReader, error) {
		if name != "mine" {
			return nil, fs.ErrNotExist
		}
		return l, nil
	}
	op := &pb.SourceOp{Identifier: "oci-layout://app@" + made.Digest.String(), Attrs: map[string]string{pb.AttrOCILayoutStoreID: "mine"}}
	job := layoutJob(t, op)
	pin, err := s.Pin(t.Context(), job, op)
	if err != nil || pin != made.Digest.String() {
		t.Fatalf("the pin is %s, %v", pin, err)
	}
	id, err := s.Chain(t.Context(), job, op, pin)
	if err != nil {
		t.Fatal(err)
	}
	// The layout goes; what was copied is enough for who has the pin, and for nobody else.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pin(t.Context(), job, op); err == nil {
		t.Error("an image that no layout has, but the blob store, was taken by its digest")
	}
	images := NewImages(c, client(), ImagesOptions{})
	if err := images.Unpack(t.Context(), nil, id, nil); err != nil {
		t.Fatal(err)
	}
	if got := files(t, c, id); got != "a=1 b=2" {
		t.Errorf("got %s", got)
	}
	op.Attrs[pb.AttrOCILayoutLayerLimit] = "1"
	if id, err = s.Chain(t.Context(), job, op, pin); err != nil {
		t.Fatal(err)
	}
	if got := files(t, c, id); got != "a=1" {
		t.Errorf("with a limit of one layer: got %s", got)
	}
	for _, bad := range []*pb.SourceOp{
		{Identifier: "oci-layout://app"},
		{Identifier: "oci-layout://app@md5:1"},
		{Identifier: "oci-layout://other@" + blob.Digest{1}.String()},
		{Identifier: op.Identifier, Attrs: map[string]string{pb.AttrOCILayoutLayerLimit: "-1"}},
	} {
		if _, err := s.Pin(t.Context(), layoutJob(t, bad), bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

func TestLayoutThatLies(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenLayout(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty folder: %v", err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	d := blob.Digest{7}
	blobs := filepath.Join(dir, "blobs/sha256")
	if err := errors.Join(
		os.MkdirAll(blobs, 0o755),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644),
		os.WriteFile(filepath.Join(blobs, hex.EncodeToString(d[:])), []byte("not what its name says"), 0o644),
		os.WriteFile(secret, []byte("secret"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := NewLayout(openCache(t, t.TempDir()))
	s.Store = func(context.Context, *solver.Job, string) (BlobReader, error) { return l, nil }
	op := &pb.SourceOp{Identifier: "oci-layout://app@" + d.String()}
	if _, err := s.Pin(t.Context(), layoutJob(t, op), op); err == nil || !strings.Contains(err.Error(), "another digest") {
		t.Errorf("a blob with another digest: %v", err)
	}
	link := blob.Digest{8}
	if err := os.Symlink(secret, filepath.Join(blobs, hex.EncodeToString(link[:]))); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Blob(t.Context(), link); err == nil {
		t.Error("a link out of the layout was followed")
	}
}
