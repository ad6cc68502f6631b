package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
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
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/dest"
	"github.com/kiln-build/kiln/exporter/internal/fixture"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// export writes r to a new file and gives its path.
func export(t *testing.T, c *fixture.Cache, docker bool, attrs map[string]string, r exporter.Result) (string, map[string]string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	e, err := New(c.Env(dest.Path{Name: path}), docker, attrs)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := e.Export(t.Context(), r, new(fixture.Steps))
	if err != nil {
		t.Fatal(err)
	}
	return path, resp
}

// run runs a command and gives its standard output.
func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}

// system is an image that runs: busybox, and a layer that removes a file of it.
func system(t *testing.T, c *fixture.Cache) exporter.Result {
	c1 := c.Layer(map[string]tree.Entry{
		"bin/busybox":  c.Program(fixture.Busybox),
		"bin/sh":       {Kind: tree.Symlink, Mode: 0o777, Target: "busybox"},
		"etc/gone":     c.File([]byte("to be removed"), nil),
		"etc/old/file": c.File([]byte("to be hidden"), nil),
		"proc":         {Kind: tree.Dir, Mode: 0o755},
		"dev":          {Kind: tree.Dir, Mode: 0o755},
	})
	c2 := c.Layer(map[string]tree.Entry{
		"etc/gone":    {Kind: tree.Whiteout},
		"etc/old":     {Kind: tree.Dir, Mode: 0o755, Opaque: true},
		"etc/old/new": c.File([]byte("hello from the top\n"), nil),
	})
	return fixture.Result(c.Chain(c1, c2), fixture.Config(fixture.Amd64, 2, "/bin/sh", "-c", "cat /etc/old/new; ls /etc /etc/old"))
}

func TestSkopeoReadsTarballs(t *testing.T) {
	c := fixture.New(t)
	r := system(t, c)
	for _, f := range []struct {
		transport string
		docker    bool
		attrs     map[string]string
	}{
		{"oci-archive", false, nil},                                                                               // as it comes
		{"oci-archive", false, map[string]string{"compression": "zstd"}},                                          //
		{"oci-archive", false, map[string]string{"compression": "uncompressed"}},                                  // layers that are made as they are written
		{"docker-archive", true, nil},                                                                             // what docker load reads
		{"docker-archive", true, map[string]string{"oci-mediatypes": "false"}},                                    // and older dockers
		{"docker-archive", true, map[string]string{"compression": "uncompressed", "name": "example.com/a/b:c,d"}}, // with names
	} {
		path, resp := export(t, c, f.docker, f.attrs, r)
		var got struct {
			Digest string
			Layers []string
			Os     string
			Env    []string
		}
		if err := json.Unmarshal([]byte(run(t, "", "skopeo", "inspect", f.transport+":"+path)), &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Layers) != 2 || got.Os != "linux" || len(got.Env) != 1 {
			t.Errorf("%s %v: skopeo sees %+v", f.transport, f.attrs, got)
		}
		if f.transport == "oci-archive" && got.Digest != resp["containerimage.digest"] {
			t.Errorf("%s %v: skopeo sees %s, the response says %s", f.transport, f.attrs, got.Digest, resp["containerimage.digest"])
		}
		// A copy reads and verifies every blob.
		run(t, "", "skopeo", "copy", "-q", "--insecure-policy", f.transport+":"+path, "oci:"+t.TempDir()+":x")
	}
}

func TestCrunRunsTheRoot(t *testing.T) {
	c := fixture.New(t)
	path, _ := export(t, c, true, nil, system(t, c))
	dir := t.TempDir()
	run(t, dir, "tar", "-xf", path)
	data, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest []struct{ Layers []string }
	if err := json.Unmarshal(data, &manifest); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "rootfs")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, l := range manifest[0].Layers {
		run(t, root, "tar", "-xzf", filepath.Join(dir, l))
		removeWhiteouts(t, root)
	}
	run(t, dir, "crun", "spec")
	spec, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s map[string]any
	if err := json.Unmarshal(spec, &s); err != nil {
		t.Fatal(err)
	}
	s["process"].(map[string]any)["terminal"] = false
	delete(s["linux"].(map[string]any), "resources")
	s["process"].(map[string]any)["args"] = []string{"/bin/sh", "-c", "cat /etc/old/new; /bin/busybox ls /etc /etc/old"}
	if spec, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), spec, 0o644); err != nil {
		t.Fatal(err)
	}
	// crun refuses to look at a machine with both kinds of cgroups; it sees one
	// with neither here.
	got := run(t, dir, "unshare", "-m", "sh", "-c", `umount -l /sys/fs/cgroup/unified 2>&-; exec crun --cgroup-manager=disabled run "$0"`, "kiln-export-"+filepath.Base(filepath.Dir(dir)))
	if want := "hello from the top\n/etc:\nold\n\n/etc/old:\nnew\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// removeWhiteouts does what an unpacker does after a layer.
func removeWhiteouts(t *testing.T, root string) {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, ok := strings.CutPrefix(d.Name(), ".wh.")
		if !ok {
			return nil
		}
		if name == ".wh..opq" {
			// What the layer below had: this test knows it.
			return errors.Join(os.Remove(path), os.Remove(filepath.Join(filepath.Dir(path), "file")))
		}
		return errors.Join(os.Remove(path), os.RemoveAll(filepath.Join(filepath.Dir(path), name)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSameAgain(t *testing.T) {
	c := fixture.New(t)
	r := system(t, c)
	first, resp := export(t, c, false, nil, r)
	second, _ := export(t, c, false, nil, r)
	a, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(second)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("two exports of one result differ, %v", err)
	}
	// In another state folder, only with SOURCE_DATE_EPOCH.
	attrs := map[string]string{"source-date-epoch": "1500000000"}
	_, one := export(t, c, false, attrs, r)
	other := fixture.New(t)
	_, two := export(t, other, false, attrs, system(t, other))
	if one["containerimage.digest"] != two["containerimage.digest"] {
		t.Errorf("with SOURCE_DATE_EPOCH: %s and %s", one["containerimage.digest"], two["containerimage.digest"])
	}
	if one["containerimage.digest"] == resp["containerimage.digest"] {
		t.Error("SOURCE_DATE_EPOCH changed nothing")
	}
}

func TestResponse(t *testing.T) {
	c := fixture.New(t)
	_, resp := export(t, c, false, map[string]string{"name": "debian,example.com:5000/a/b:v1"}, system(t, c))
	if got, want := resp["image.name"], "docker.io/library/debian:latest,example.com:5000/a/b:v1"; got != want {
		t.Errorf("image.name: got %s, want %s", got, want)
	}
	var d ocispecs.Descriptor
	raw, err := base64.StdEncoding.DecodeString(resp["containerimage.descriptor"])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	if d.Digest.String() != resp["containerimage.digest"] || d.Platform == nil || d.Annotations[ocispecs.AnnotationCreated] == "" {
		t.Errorf("containerimage.descriptor: %s", raw)
	}
	if !strings.HasPrefix(resp["containerimage.config.digest"], "sha256:") {
		t.Errorf("containerimage.config.digest: %q", resp["containerimage.config.digest"])
	}
}

func TestIndexOfTwoPlatforms(t *testing.T) {
	c := fixture.New(t)
	r := system(t, c)
	arm := ocispecs.Platform{OS: "linux", Architecture: "arm64"}
	r.Images = append(r.Images, exporter.Image{Platform: arm, Root: r.Images[0].Root, Config: fixture.Config(arm, 2)})
	path, resp := export(t, c, false, map[string]string{
		"annotation-index.a":                 "1",
		"annotation-manifest[linux/arm64].b": "2",
		"annotation.c":                       "3",
		"annotation-manifest-descriptor.d":   "4",
		"annotation-index-descriptor.e":      "5",
	}, r)
	var idx ocispecs.Index
	if err := json.Unmarshal([]byte(run(t, "", "skopeo", "inspect", "--raw", "oci-archive:"+path)), &idx); err != nil {
		t.Fatal(err)
	}
	if len(idx.Manifests) != 2 || idx.Annotations["a"] != "1" || idx.Manifests[0].Annotations["d"] != "4" || idx.Manifests[1].Platform.Architecture != "arm64" {
		t.Errorf("index %+v", idx)
	}
	if resp["containerimage.config.digest"] != "" {
		t.Error("an index has no config, the response names one")
	}
	dir := t.TempDir()
	run(t, dir, "tar", "-xf", path)
	for i, want := range []map[string]string{{"c": "3"}, {"b": "2", "c": "3"}} {
		var m ocispecs.Manifest
		data, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", idx.Manifests[i].Digest.Encoded()))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		if len(m.Annotations) != len(want) || m.Annotations["b"] != want["b"] || m.Annotations["c"] != want["c"] {
			t.Errorf("manifest %d: annotations %v, want %v", i, m.Annotations, want)
		}
	}
	e, err := New(c.Env(dest.Path{Name: filepath.Join(dir, "x")}), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Export(t.Context(), r, new(fixture.Steps)); err == nil {
		t.Error("type=docker took two platforms")
	}
}

func TestPulledLayersKeepTheirBlob(t *testing.T) {
	c := fixture.New(t)
	id, d, data := c.Pulled("base", "of the base image", false)
	top := c.Layer(map[string]tree.Entry{"top": c.File([]byte("new"), nil)})
	r := fixture.Result(c.Chain(id, top), fixture.Config(fixture.Amd64, 2))
	origin := &fixture.Origin{Data: map[blob.Digest][]byte{d.Digest: data}}
	target := filepath.Join(t.TempDir(), "x.tar")
	env := c.Env(dest.Path{Name: target})
	env.Source = origin
	digests := func(attrs map[string]string) []string {
		t.Helper()
		e, err := New(env, false, attrs)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Export(t.Context(), r, new(fixture.Steps)); err != nil {
			t.Fatal(err)
		}
		var m ocispecs.Manifest
		if err := json.Unmarshal([]byte(run(t, "", "skopeo", "inspect", "--raw", "oci-archive:"+target)), &m); err != nil {
			t.Fatal(err)
		}
		return []string{m.Layers[0].Digest.String(), m.Layers[0].MediaType}
	}
	if got := digests(map[string]string{"compression": "zstd"}); got[0] != d.Digest.String() || got[1] != d.MediaType {
		t.Errorf("the pulled layer became %v, want %s as it was", got, d.Digest)
	}
	if n := len(origin.Fetched()); n != 1 {
		t.Errorf("the blob was fetched %d times, want once", n)
	}
	if got := digests(map[string]string{"compression": "zstd", "force-compression": "true"}); got[0] == d.Digest.String() || !strings.HasSuffix(got[1], "+zstd") {
		t.Errorf("with force-compression the pulled layer is %v", got)
	}
	if got := digests(map[string]string{"compression": "uncompressed", "force-compression": "true"}); !strings.HasSuffix(got[1], ".tar") {
		t.Errorf("with force-compression the pulled layer is %v", got)
	}
	if n := len(origin.Fetched()); n != 1 {
		t.Errorf("the blob was fetched %d times in all, want once", n)
	}
	run(t, "", "skopeo", "copy", "-q", "--insecure-policy", "oci-archive:"+target, "oci:"+t.TempDir()+":x")
}

func TestLayout(t *testing.T) {
	c := fixture.New(t)
	r := system(t, c)
	dir := t.TempDir()
	for _, name := range []string{"one", "two", "one"} {
		e, err := New(c.Env(dest.Path{Name: dir}), false, map[string]string{"tar": "false", "name": name})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Export(t.Context(), r, new(fixture.Steps)); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var idx ocispecs.Index
	if err := json.Unmarshal(data, &idx); err != nil || len(idx.Manifests) != 2 {
		t.Errorf("index.json has %d entries, %v; want one for each name", len(idx.Manifests), err)
	}
	r2 := fixture.Result(c.Chain(c.Layer(map[string]tree.Entry{"f": c.File([]byte("x"), nil)})), nil)
	e, err := New(c.Env(dest.Path{Name: dir}), false, map[string]string{"tar": "false"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Export(t.Context(), r2, new(fixture.Steps)); err != nil {
		t.Fatal(err)
	}
	run(t, "", "skopeo", "copy", "-q", "--insecure-policy", "oci:"+dir+":latest", "oci:"+t.TempDir()+":x")
}

// failing is a Target whose file takes n bytes.
type failing struct {
	n       int
	aborted bool
}

func (f *failing) File(context.Context, map[string]string) (exporter.File, error) { return f, nil }
func (f *failing) Folder(context.Context) (exporter.Folder, error)                { return nil, os.ErrInvalid }
func (f *failing) Write(b []byte) (int, error) {
	if f.n -= len(b); f.n < 0 {
		return 0, errors.New("disk full")
	}
	return len(b), nil
}
func (f *failing) Commit() error { return errors.New("committed") }
func (f *failing) Abort() error  { f.aborted = true; return nil }

func TestWriteErrorAborts(t *testing.T) {
	c := fixture.New(t)
	r := system(t, c)
	for _, n := range []int{0, 5000, 100000} { // in the small files, and in a layer
		f := &failing{n: n}
		e, err := New(c.Env(f), false, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = e.Export(t.Context(), r, new(fixture.Steps))
		var gone *cache.GoneError
		if err == nil || !strings.Contains(err.Error(), "disk full") || errors.As(err, &gone) || !f.aborted {
			t.Errorf("after %d bytes: error %v, aborted %v", n, err, f.aborted)
		}
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	c := fixture.New(t)
	r := system(t, c)
	layers, err := c.Layers(r.Images[0].Root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.Path("files")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	e, err := New(c.Env(dest.Path{Name: path}), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Export(t.Context(), r, new(fixture.Steps))
	var gone *cache.GoneError
	if !errors.As(err, &gone) || gone.Layer != layers[0].ID && gone.Layer != layers[1].ID {
		t.Errorf("got %v, want that a layer is gone", err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v; want nothing", left, err)
	}
}

func TestStdout(t *testing.T) {
	c := fixture.New(t)
	var out bytes.Buffer
	e, err := New(c.Env(dest.Path{Name: "-", Stdout: &out}), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Export(t.Context(), system(t, c), new(fixture.Steps)); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&out)
	n := 0
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 0 {
			t.Errorf("%s has a time, %v", h.Name, h.ModTime)
		}
		n++
	}
	if n != 8 { // oci-layout, index.json, two folders, config, manifest, two layers
		t.Errorf("the tarball has %d entries, want 8", n)
	}
}

func TestAttributesThatAreWrong(t *testing.T) {
	c := fixture.New(t)
	for _, attrs := range []map[string]string{
		{"compression": "estargz"},                             // clear until it is there
		{"compression": "lz4"},                                 //
		{"compression-level": "x"},                             //
		{"compression-level": "10"},                            // gzip has 9
		{"oci-mediatypes": "perhaps"},                          //
		{"tar": "perhaps"},                                     //
		{"source-date-epoch": "yesterday"},                     //
		{"annotation-foo.a": "b"},                              // no such place
		{"annotation-index.a": "b", "oci-mediatypes": "false"}, // docker's lists have none
	} {
		if _, err := New(c.Env(nil), false, attrs); err == nil {
			t.Errorf("%v was taken", attrs)
		}
	}
	if _, err := New(c.Env(nil), false, map[string]string{"something-else": "x"}); err != nil {
		t.Errorf("an unknown attribute: %v, want that it is ignored", err)
	}
}
