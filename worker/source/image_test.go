package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/registry/registrytest"
	"github.com/kiln-build/kiln/solver"
)

var amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}

// testImage is an image that a test pushes.
type testImage struct {
	layers   [][]byte // tar streams
	pack     string   // "gzip", "zstd", "none", "docker"
	platform ocispecs.Platform
	// wrong, if set, is said in the config in place of the last layer's diff id.
	wrong string
}

func testTar(t testing.TB, files ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		name, text, _ := strings.Cut(f, "=")
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text)), ModTime: time.Unix(1e9, 0)}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o1777
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func pack(t testing.TB, how string, data []byte) (mediaType string, packed []byte) {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch how {
	case "none":
		return ocispecs.MediaTypeImageLayer, data
	case "zstd":
		zw, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		w, mediaType = zw, ocispecs.MediaTypeImageLayerZstd
	case "docker":
		w, mediaType = gzip.NewWriter(&buf), "application/vnd.docker.image.rootfs.diff.tar.gzip"
	default:
		w, mediaType = gzip.NewWriter(&buf), ocispecs.MediaTypeImageLayerGzip
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return mediaType, buf.Bytes()
}

type pusher struct {
	t    testing.TB
	c    *registry.Client
	repo string
}

func (p pusher) blob(mediaType string, data []byte) blob.Descriptor {
	p.t.Helper()
	d := blob.Descriptor{MediaType: mediaType, Digest: sha256.Sum256(data), Size: int64(len(data))}
	_, err := p.c.Push(p.t.Context(), nil, p.repo, d, nil, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

// manifest pushes a manifest or index, under a tag if there is one.
func (p pusher) manifest(tag, mediaType string, m any) blob.Descriptor {
	p.t.Helper()
	data, err := json.Marshal(m)
	if err != nil {
		p.t.Fatal(err)
	}
	d := blob.Descriptor{MediaType: mediaType, Digest: sha256.Sum256(data), Size: int64(len(data))}
	ref := p.repo + "@" + d.Digest.String()
	if tag != "" {
		ref = p.repo + ":" + tag
	}
	if err := p.c.PushManifest(p.t.Context(), nil, ref, d, data); err != nil {
		p.t.Fatal(err)
	}
	return d
}

func (p pusher) image(tag string, img testImage) blob.Descriptor {
	p.t.Helper()
	if img.platform.OS == "" {
		img.platform = amd64
	}
	config := map[string]any{"os": img.platform.OS, "architecture": img.platform.Architecture, "config": map[string]any{"Cmd": []string{"/bin/sh"}}}
	diffs, layers := []string{}, []blob.Descriptor{}
	for _, l := range img.layers {
		diffs = append(diffs, blob.Digest(sha256.Sum256(l)).String())
		layers = append(layers, p.blob(pack(p.t, img.pack, l)))
	}
	if img.wrong != "" {
		diffs[len(diffs)-1] = img.wrong
	}
	config["rootfs"] = map[string]any{"type": "layers", "diff_ids": diffs}
	data, err := json.Marshal(config)
	if err != nil {
		p.t.Fatal(err)
	}
	mediaType, configType := ocispecs.MediaTypeImageManifest, ocispecs.MediaTypeImageConfig
	if img.pack == "docker" {
		mediaType, configType = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json"
	}
	return p.manifest(tag, mediaType, map[string]any{
		"schemaVersion": 2, "mediaType": mediaType, "config": p.blob(configType, data), "layers": layers,
	})
}

func openCache(t testing.TB, dir string) *cache.Cache {
	t.Helper()
	c, err := cache.Open(context.Background(), dir, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// quick are limits with which failures take little time.
var quick = registry.Limits{Attempts: 3, Backoff: time.Millisecond, Stall: time.Second, Header: 5 * time.Second}

func client() *registry.Client { return &registry.Client{Limits: quick} }

func start(t testing.TB) (*registrytest.Proxy, pusher) {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	reg := registrytest.Start(t, "")
	proxy := registrytest.NewProxy(t, reg.Host)
	return proxy, pusher{t: t, c: client(), repo: proxy.Host + "/app"}
}

// pull resolves, chains and unpacks, and lists the state.
func pull(ctx context.Context, s *Images, ref string) (Image, cache.ChainID, error) {
	img, err := s.Resolve(ctx, nil, ref, amd64, ModeDefault)
	if err != nil {
		return img, cache.ChainID{}, err
	}
	id, _, err := s.Chain(ctx, img, 0)
	if err != nil {
		return img, id, err
	}
	return img, id, s.Unpack(ctx, nil, id, nil)
}

func files(t testing.TB, c *cache.Cache, id cache.ChainID) string {
	t.Helper()
	root, err := c.Merged(id)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	err = tree.Walk(c, root, func(path string, e tree.Entry) error {
		if e.Kind != tree.File {
			return nil
		}
		f, err := c.Pool().Open(e)
		if err != nil {
			return err
		}
		defer f.Close()
		data, err := io.ReadAll(f)
		out = append(out, path+"="+string(data[:min(len(data), 20)]))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func TestPull(t *testing.T) {
	proxy, p := start(t)
	layers := [][]byte{testTar(t, "etc/a=1", "etc/b=2", "big="+strings.Repeat("x", 300_000)), testTar(t, "etc/.wh.a=", "etc/c=3")}
	for _, how := range []string{"gzip", "zstd", "none", "docker"} {
		t.Run(how, func(t *testing.T) {
			d := p.image("v1", testImage{layers: layers, pack: how})
			c := openCache(t, t.TempDir())
			s := NewImages(c, client(), ImagesOptions{})
			proxy.Break(nil)
			img, err := s.Resolve(t.Context(), nil, p.repo+":v1", amd64, ModeDefault)
			if err != nil {
				t.Fatal(err)
			}
			if img.Digest != d.Digest || img.Manifest.Digest != d.Digest || img.Ref != p.repo+":v1" || !strings.Contains(string(img.Config), "/bin/sh") {
				t.Errorf("resolved to %+v, want %s", img, d.Digest)
			}
			id, config, err := s.Chain(t.Context(), img, 0)
			if err != nil || !bytes.Equal(config, img.Config) {
				t.Fatal(err)
			}
			if n := len(proxy.Log()); n != 2 {
				t.Errorf("resolving took %d requests, want 2, for manifest and config: %q", n, proxy.Log())
			}
			var seen sync.Map
			err = s.Unpack(t.Context(), nil, id, func(p solver.Progress) {
				if !p.Completed.IsZero() {
					seen.Store(p.ID, p)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			want := "big=xxxxxxxxxxxxxxxxxxxx etc/b=2 etc/c=3"
			if got := files(t, c, id); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			for i, l := range img.layers {
				v, ok := seen.Load(l.blob.Digest.String())
				if !ok || v.(solver.Progress).Current != l.blob.Size {
					t.Errorf("layer %d: the end of its download was reported as %+v", i, v)
				}
				if !c.Blobs().Has(l.blob.Digest) {
					t.Errorf("layer %d: its blob was not kept", i)
				}
				known, err := c.Layer(cache.ImageLayerID(l.diff))
				if err != nil || known.Root.Kind != tree.Dir || known.Origins[0] != p.repo || known.Blobs[0].Digest != l.blob.Digest {
					t.Errorf("layer %d is known as %+v, %v", i, known, err)
				}
			}
			before := len(proxy.Log())
			if err := s.Unpack(t.Context(), nil, id, nil); err != nil || len(proxy.Log()) != before {
				t.Errorf("unpacking again: %v, requests %q", err, proxy.Log()[before:])
			}
			// A cache without the files, but with the blobs: nothing is fetched twice.
			for _, l := range img.layers {
				if err := c.ForgetLayer(cache.ImageLayerID(l.diff)); err != nil {
					t.Fatal(err)
				}
			}
			byDigest := p.repo + "@" + img.Digest.String()
			if _, id, err = pull(t.Context(), s, byDigest); err != nil || len(proxy.Log()) != before {
				t.Errorf("pulling again by digest: %v, requests %q", err, proxy.Log()[before:])
			}
			if got := files(t, c, id); got != want {
				t.Errorf("again: got %s, want %s", got, want)
			}
		})
	}
}

func TestTagsAndModes(t *testing.T) {
	proxy, p := start(t)
	old := p.image("v1", testImage{layers: [][]byte{testTar(t, "a=1")}})
	c := openCache(t, t.TempDir())
	s := NewImages(c, client(), ImagesOptions{})
	if _, _, err := pull(t.Context(), s, p.repo+":v1"); err != nil {
		t.Fatal(err)
	}
	now := p.image("v1", testImage{layers: [][]byte{testTar(t, "a=2")}})
	for _, test := range []struct {
		mode Mode
		want blob.Digest
	}{{ModeLocal, old.Digest}, {ModeDefault, now.Digest}, {ModeLocal, now.Digest}, {ModePull, now.Digest}} {
		img, err := s.Resolve(t.Context(), nil, p.repo+":v1", amd64, test.mode)
		if err != nil || img.Digest != test.want {
			t.Errorf("%s: got %s, %v; want %s", test.mode, img.Digest, err, test.want)
		}
	}
	proxy.Break(nil)
	if _, err := s.Resolve(t.Context(), nil, p.repo+":v1", amd64, ModeDefault); err != nil {
		t.Fatal(err)
	}
	if log := proxy.Log(); len(log) != 1 || !strings.HasPrefix(log[0], "HEAD ") {
		t.Errorf("a tag that did not move took the requests %q, want one HEAD", log)
	}
}

// A collection that leaves an image's layers leaves what names them: the next build
// asks what the tag means, and of an image by digest nothing. Without the layers
// they go too.
func TestDocumentsAreKept(t *testing.T) {
	proxy, p := start(t)
	d := p.image("v1", testImage{layers: [][]byte{testTar(t, "a=1"), testTar(t, "b=1")}})
	c := openCache(t, t.TempDir())
	s := NewImages(c, client(), ImagesOptions{})
	tag, digest := p.repo+":v1", p.repo+"@"+d.Digest.String()
	for _, ref := range []string{tag, digest} {
		if _, _, err := pull(t.Context(), s, ref); err != nil {
			t.Fatal(err)
		}
	}
	requests := func(ref string) int {
		t.Helper()
		proxy.Break(nil)
		if _, err := s.Resolve(t.Context(), nil, ref, amd64, ModeDefault); err != nil {
			t.Fatal(err)
		}
		return len(proxy.Log())
	}
	used := func(u cache.Usage) bool { return strings.Contains(u.Description, "none of this") }
	if _, err := c.Prune(t.Context(), cache.PruneOptions{Filter: used}); err != nil {
		t.Fatal(err)
	}
	if byTag, byDigest := requests(tag), requests(digest); byTag != 1 || byDigest != 0 {
		t.Errorf("with the layers here: %d requests by tag and %d by digest, want 1 and 0", byTag, byDigest)
	}
	if _, err := c.Prune(t.Context(), cache.PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := requests(digest); n != 2 {
		t.Errorf("without the layers: %d requests by digest, want 2", n)
	}
}

func TestPlatforms(t *testing.T) {
	_, p := start(t)
	entry := func(platform *ocispecs.Platform, file string, annotations map[string]string) map[string]any {
		pl := amd64
		if platform != nil {
			pl = *platform
		}
		d := p.image("", testImage{layers: [][]byte{testTar(t, file)}, platform: pl})
		e := map[string]any{"mediaType": d.MediaType, "digest": d.Digest, "size": d.Size}
		if platform != nil {
			e["platform"] = platform
		}
		if annotations != nil {
			e["annotations"] = annotations
		}
		return e
	}
	index := func(tag, mediaType string, entries ...map[string]any) {
		p.manifest(tag, mediaType, map[string]any{"schemaVersion": 2, "mediaType": mediaType, "manifests": entries})
	}
	unknown := &ocispecs.Platform{OS: "unknown", Architecture: "unknown"}
	armv := func(v string) *ocispecs.Platform {
		return &ocispecs.Platform{OS: "linux", Architecture: "arm", Variant: v}
	}
	arm64 := &ocispecs.Platform{OS: "linux", Architecture: "arm64"}
	attestation := map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	index("multi", ocispecs.MediaTypeImageIndex, entry(unknown, "sbom=1", attestation), entry(armv("v6"), "arm=6", nil), entry(armv("v7"), "arm=7", nil),
		entry(arm64, "arm=64", nil), entry(&amd64, "intel=1", nil))
	index("docker", "application/vnd.docker.distribution.manifest.list.v2+json", entry(&amd64, "intel=2", nil), entry(arm64, "arm=64", nil))
	index("attested", ocispecs.MediaTypeImageIndex, entry(unknown, "sbom=2", attestation))
	c := openCache(t, t.TempDir())
	s := NewImages(c, client(), ImagesOptions{})
	for _, test := range []struct {
		tag, os, arch, variant string
		want, err              string
	}{
		{tag: "multi", os: "linux", arch: "amd64", want: "intel=1"},
		{tag: "docker", os: "linux", arch: "amd64", want: "intel=2"},
		{tag: "multi", os: "linux", arch: "arm64", want: "arm=64"},
		{tag: "multi", os: "linux", arch: "arm", variant: "v7", want: "arm=7"},
		{tag: "multi", os: "linux", arch: "arm", variant: "v6", want: "arm=6"},
		// An older processor is not served a newer one's image.
		{tag: "multi", os: "linux", arch: "arm", variant: "v5", err: "only for linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64"},
		{tag: "attested", os: "linux", arch: "amd64", err: "names no image"},
		{tag: "docker", os: "linux", arch: "riscv64", err: "not there for linux/riscv64, only for linux/amd64, linux/arm64"},
	} {
		platform := ocispecs.Platform{OS: test.os, Architecture: test.arch, Variant: test.variant}
		img, err := s.Resolve(t.Context(), nil, p.repo+":"+test.tag, platform, ModeDefault)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%+v: got %v", test, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", test, err)
			continue
		}
		id, _, err := s.Chain(t.Context(), img, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Unpack(t.Context(), nil, id, nil); err != nil {
			t.Fatal(err)
		}
		if got := files(t, c, id); got != test.want {
			t.Errorf("%+v: got %s", test, got)
		}
		if img.Digest == img.Manifest.Digest {
			t.Errorf("%+v: the pin is the manifest's digest, and the reference names the index", test)
		}
	}
}

func TestWrongDiffID(t *testing.T) {
	_, p := start(t)
	good := [][]byte{testTar(t, "a=good")}
	lie := blob.Digest(sha256.Sum256(good[0]))
	p.image("evil", testImage{layers: [][]byte{testTar(t, "a=evil")}, wrong: lie.String()})
	p.image("good", testImage{layers: good})
	c := openCache(t, t.TempDir())
	s := NewImages(c, client(), ImagesOptions{})
	_, id, err := pull(t.Context(), s, p.repo+":evil")
	if err == nil || !strings.Contains(err.Error(), "diff id") {
		t.Fatalf("got %v, want an error about the diff id", err)
	}
	if _, err := c.Merged(id); err == nil {
		t.Error("the layer was taken though its diff id is another")
	}
	// The layer that the other image lied about is not spoiled.
	if _, id, err = pull(t.Context(), s, p.repo+":good"); err != nil {
		t.Fatal(err)
	}
	if got := files(t, c, id); got != "a=good" {
		t.Errorf("got %s", got)
	}
	l, err := c.Layer(cache.ImageLayerID(lie))
	if err != nil || len(l.Blobs) != 1 {
		t.Errorf("the layer's blobs are %+v, %v; want the good one alone", l.Blobs, err)
	}
}

func TestRefusedManifests(t *testing.T) {
	_, p := start(t)
	config := p.blob(ocispecs.MediaTypeImageConfig, []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`))
	odd := p.blob("application/vnd.cncf.helm.config.v1+json", []byte(`{"name":"chart"}`))
	layer := p.blob(pack(t, "gzip", testTar(t, "a=1")))
	strange := layer
	strange.MediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
	oci := ocispecs.MediaTypeImageManifest
	base := func(more map[string]any) map[string]any {
		m := map[string]any{"schemaVersion": 2, "mediaType": oci, "config": config, "layers": []any{}}
		for k, v := range more {
			m[k] = v
		}
		return m
	}
	c := openCache(t, t.TempDir())
	s := NewImages(c, client(), ImagesOptions{})
	// One layer, and none in the config.
	p.manifest("count", oci, base(map[string]any{"layers": []any{layer}}))
	// A helm chart.
	p.manifest("chart", oci, base(map[string]any{"config": odd}))
	for tag, want := range map[string]string{"count": "1 layers and its config 0", "chart": "no container image"} {
		if _, _, err := pull(t.Context(), s, p.repo+":"+tag); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want it to say %q", tag, err, want)
		}
	}
	for _, test := range []struct{ name, in, want string }{
		{"schema 1", `{"schemaVersion":1,"fsLayers":[{"blobSum":"x"}]}`, "schema 1"},
		{"index and manifest", `{"schemaVersion":2,"manifests":[],"layers":[]}`, "at the same time"},
		{"no config", `{"schemaVersion":2,"layers":[]}`, "no container image"},
		{"another version", `{"schemaVersion":3,"layers":[]}`, "schema version 3"},
		{"no JSON", `<html>`, "cannot be read"},
		{"another type", `{"schemaVersion":2,"mediaType":"text/html","config":{"digest":"` + config.Digest.String() + `"}}`, "calls itself"},
		{"a digest that is none", `{"schemaVersion":2,"config":{"digest":"md5:1"}}`, "cannot be read"},
	} {
		if _, err := parseManifest([]byte(test.in)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want it to say %q", test.name, err, test.want)
		}
	}
	for _, l := range []struct {
		layer manifestLayer
		want  string
	}{
		{manifestLayer{Descriptor: strange}, "encrypted"},
		{manifestLayer{Descriptor: layer, URLs: []string{"https://example.com/windows"}}, "https://example.com/windows"},
		{manifestLayer{Descriptor: blob.Descriptor{MediaType: layer.MediaType, Digest: layer.Digest, Size: -1}}, "-1"},
	} {
		if err := l.layer.check(); err == nil || !strings.Contains(err.Error(), l.want) {
			t.Errorf("got %v, want it to say %q", err, l.want)
		}
	}
}

func TestLayerLimit(t *testing.T) {
	_, p := start(t)
	p.image("v1", testImage{layers: [][]byte{testTar(t, "a=1"), testTar(t, "b=2"), testTar(t, "c=3")}})
	c := openCache(t, t.TempDir())
	s := NewImages(c, client(), ImagesOptions{})
	img, err := s.Resolve(t.Context(), nil, p.repo+":v1", amd64, ModeDefault)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := s.Chain(t.Context(), img, 2)
	if err != nil {
		t.Fatal(err)
	}
	if ch, err := c.Chain(id); err != nil || ch.Depth != 2 {
		t.Errorf("the chain is %+v, %v; want 2 layers", ch, err)
	}
	if _, _, err := s.Chain(t.Context(), img, 4); err == nil {
		t.Error("a limit above the number of layers is an error")
	}
}

func TestDecompress(t *testing.T) {
	data := testTar(t, "a=1")
	for _, how := range []string{"gzip", "zstd", "none"} {
		_, packed := pack(t, how, data)
		// The bytes decide where the media type is wrong.
		for _, mediaType := range []string{ocispecs.MediaTypeImageLayer, ocispecs.MediaTypeImageLayerGzip, ocispecs.MediaTypeImageLayerZstd} {
			r, err := decompress(bytes.NewReader(packed), mediaType)
			if err != nil {
				t.Errorf("%s called %s: %v", how, mediaType, err)
				continue
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s called %s: %d bytes, %v", how, mediaType, len(got), err)
			}
			r.Close()
		}
	}
	if _, err := decompress(strings.NewReader("\x01\x02\x03\x04"), ocispecs.MediaTypeImageLayerGzip); err == nil {
		t.Error("bytes that are nothing were taken")
	}
	if modes, err := ParseMode("sometimes"); err == nil {
		t.Errorf("the mode %q was taken", modes)
	}
}
