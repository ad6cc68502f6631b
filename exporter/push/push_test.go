package push

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/internal/fixture"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const config = `version: 0.1
log: {accesslog: {disabled: true}, level: info}
storage:
  filesystem: {rootdirectory: %s}
http: {addr: "127.0.0.1:0"}
`

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)

// startRegistry runs Debian's docker-registry until the test ends.
func startRegistry(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, config, filepath.Join(dir, "data")), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", conf)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	found := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				found <- m[1]
			}
		}
	}()
	select {
	case addr := <-found:
		return addr
	case <-time.After(20 * time.Second):
		t.Fatal("docker-registry did not come up")
		return ""
	}
}

func skopeo(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("skopeo", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("skopeo %v: %v\n%s", args, err, &stderr)
	}
	return stdout.Bytes()
}

func export(t *testing.T, env exporter.Env, attrs map[string]string, r exporter.Result) map[string]string {
	t.Helper()
	e, err := New(env, true, attrs)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := e.Export(t.Context(), r, new(fixture.Steps))
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestPush(t *testing.T) {
	addr := startRegistry(t)
	c := fixture.New(t)
	layer := c.Layer(map[string]tree.Entry{"bin/busybox": c.Program(fixture.Busybox)})
	second := c.Layer(map[string]tree.Entry{"etc/x": c.File([]byte("x"), nil)})
	r := fixture.Result(c.Chain(layer, second), fixture.Config(fixture.Amd64, 2, "/bin/busybox"))
	resp := export(t, c.Env(nil), map[string]string{"name": addr + "/a/b:v1," + addr + "/c/d:v2"}, r)
	for _, ref := range []string{"/a/b:v1", "/c/d:v2"} {
		var got struct {
			Digest string
			Layers []string
		}
		if err := json.Unmarshal(skopeo(t, "inspect", "--tls-verify=false", "docker://"+addr+ref), &got); err != nil {
			t.Fatal(err)
		}
		if got.Digest != resp["containerimage.digest"] || len(got.Layers) != 2 {
			t.Errorf("%s: skopeo sees %+v, the response says %s", ref, got, resp["containerimage.digest"])
		}
	}
	skopeo(t, "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "docker://"+addr+"/a/b:v1", "oci:"+t.TempDir()+":x")
	l, err := c.Cache.Layer(layer)
	if err != nil || len(l.Origins) != 2 {
		t.Errorf("origins of the layer: %v, %v; want both repositories", l.Origins, err)
	}
	digest, err := blob.Parse(resp["containerimage.digest"])
	if err != nil || !c.Blobs().Has(digest) {
		t.Errorf("the manifest %v is not in the store, %v", digest, err)
	}
}

func TestPushIndexAndByDigest(t *testing.T) {
	addr := startRegistry(t)
	c := fixture.New(t)
	chain := c.Chain(c.Layer(map[string]tree.Entry{"f": c.File([]byte("f"), nil)}))
	r := fixture.Result(chain, fixture.Config(fixture.Amd64, 1))
	arm := ocispecs.Platform{OS: "linux", Architecture: "arm64"}
	r.Images = append(r.Images, exporter.Image{Platform: arm, Root: chain, Config: fixture.Config(arm, 1)})
	resp := export(t, c.Env(nil), map[string]string{"name": addr + "/multi", "push-by-digest": "true"}, r)
	var idx ocispecs.Index
	if err := json.Unmarshal(skopeo(t, "inspect", "--raw", "--tls-verify=false", "docker://"+addr+"/multi@"+resp["containerimage.digest"]), &idx); err != nil {
		t.Fatal(err)
	}
	if len(idx.Manifests) != 2 {
		t.Errorf("the index has %d manifests, want 2", len(idx.Manifests))
	}
	res, err := http.Get("http://" + addr + "/v2/multi/tags/list")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var tags struct{ Tags []string }
	if err := json.NewDecoder(res.Body).Decode(&tags); err != nil || len(tags.Tags) != 0 {
		t.Errorf("tags %v, %v; want none", tags.Tags, err)
	}
	skopeo(t, "copy", "-q", "--all", "--insecure-policy", "--src-tls-verify=false", "docker://"+addr+"/multi@"+resp["containerimage.digest"], "oci:"+t.TempDir()+":x")
}

// TestMount pushes an image whose base lies in another repository of the
// registry and nowhere else: nothing can be uploaded of it.
func TestMount(t *testing.T) {
	addr := startRegistry(t)
	c := fixture.New(t)
	base, d, data := c.Pulled("base", strings.Repeat("of the base ", 1000), true)
	export(t, c.Env(nil), map[string]string{"name": addr + "/base"}, fixture.Result(c.Chain(base), nil))
	other := fixture.New(t)
	base, _, _ = other.Pulled("base", strings.Repeat("of the base ", 1000), false, addr+"/base")
	top := other.Layer(map[string]tree.Entry{"f": other.File([]byte("f"), nil)})
	env := other.Env(nil)
	origin := &fixture.Origin{}
	env.Source = origin
	export(t, env, map[string]string{"name": addr + "/mounted"}, fixture.Result(other.Chain(base, top), nil))
	if n := len(origin.Fetched()); n != 0 {
		t.Errorf("the base was fetched %d times, want that it is mounted", n)
	}
	skopeo(t, "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "docker://"+addr+"/mounted:latest", "oci:"+t.TempDir()+":x")
	// To another registry it goes by way of its origin.
	second := startRegistry(t)
	origin.Data = map[blob.Digest][]byte{d.Digest: data}
	export(t, env, map[string]string{"name": second + "/copied"}, fixture.Result(other.Chain(base, top), nil))
	if n := len(origin.Fetched()); n != 1 {
		t.Errorf("the base was fetched %d times, want once", n)
	}
}

func TestGoneLayer(t *testing.T) {
	addr := startRegistry(t)
	c := fixture.New(t)
	base, _, _ := c.Pulled("base", "nowhere to be had", false)
	env := c.Env(nil)
	env.Source = &fixture.Origin{}
	e, err := New(env, true, map[string]string{"name": addr + "/x"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Export(t.Context(), fixture.Result(c.Chain(base), nil), new(fixture.Steps))
	var gone *cache.GoneError
	if !errors.As(err, &gone) || gone.Layer != base {
		t.Errorf("got %v, want that the base layer is gone", err)
	}
}

func TestRegistryIsDown(t *testing.T) {
	c := fixture.New(t)
	e, err := New(c.Env(nil), true, map[string]string{"name": "127.0.0.1:1/x"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = e.Export(ctx, fixture.Result(c.Chain(c.Layer(map[string]tree.Entry{"f": c.File([]byte("f"), nil)})), nil), new(fixture.Steps))
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want an error that names the registry", err)
	}
}

func TestImageWithoutPush(t *testing.T) {
	c := fixture.New(t)
	e, err := New(c.Env(nil), false, map[string]string{"name": "example.com/x"})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := e.Export(t.Context(), fixture.Result(c.Chain(c.Layer(map[string]tree.Entry{"f": c.File([]byte("f"), nil)})), nil), new(fixture.Steps))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := c.Bucket(imageBucket).Get([]byte("example.com/x:latest")); !ok || string(got) != resp["containerimage.digest"] {
		t.Errorf("under the image's name stands %q, want %s", got, resp["containerimage.digest"])
	}
}

func TestNames(t *testing.T) {
	for _, attrs := range []map[string]string{
		{},                            // nothing to push to
		{"name": "example.com/UPPER"}, // no reference
		{"name": "example.com/a:b", "push-by-digest": "true"},  // a tag that would not be set
		{"name": "example.com/a:latest", "push-by-digest": ""}, // also this one
	} {
		e, err := New(exporter.Env{}, true, attrs)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := e.names(exporter.Result{}); err == nil {
			t.Errorf("%v: got %v, want an error", attrs, got)
		}
	}
}
