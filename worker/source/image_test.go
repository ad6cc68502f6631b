package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/http"
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

// TestFaultsAtEveryRequestOfAPull breaks each request of a pull in each way, and
// looks whether the state folder can be used afterwards.
func TestFaultsAtEveryRequestOfAPull(t *testing.T) {
	proxy, p := start(t)
	noise := make([]byte, 400_000)
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	p.image("v1", testImage{layers: [][]byte{testTar(t, "a="+string(noise)), testTar(t, "b=2")}, pack: "none"})
	proxy.Break(nil)
	c := openCache(t, t.TempDir())
	if _, _, err := pull(t.Context(), NewImages(c, client(), ImagesOptions{}), p.repo+":v1"); err != nil {
		t.Fatal(err)
	}
	requests := len(proxy.Log())
	if requests != 4 {
		t.Errorf("a pull of two layers took %d requests: %q", requests, proxy.Log())
	}
	for n := range requests {
		for _, f := range []struct {
			name  string
			fault registrytest.Fault
			fails bool
		}{
			{"401", registrytest.Fault{Status: 401}, true},
			{"404", registrytest.Fault{Status: 404}, true},
			{"429", registrytest.Fault{Status: 429}, false},
			{"500", registrytest.Fault{Status: 500}, false},
			{"cut", registrytest.Fault{Cut: true, After: 10}, false},
			{"hang", registrytest.Fault{Hang: true, After: 10}, false},
			{"corrupt", registrytest.Fault{Corrupt: true, After: 10}, true},
		} {
			c := openCache(t, t.TempDir())
			s := NewImages(c, client(), ImagesOptions{Parallel: 1})
			proxy.Break(func(_ *http.Request, i int) registrytest.Fault {
				if i == n {
					return f.fault
				}
				return registrytest.Fault{}
			})
			if _, _, err := pull(t.Context(), s, p.repo+":v1"); (err != nil) != f.fails {
				t.Errorf("request %d, %s: got %v, and failing is %v", n, f.name, err, f.fails)
			}
			proxy.Break(nil)
			_, id, err := pull(t.Context(), s, p.repo+":v1")
			if err != nil {
				t.Errorf("after request %d, %s: %v", n, f.name, err)
				continue
			}
			if got := files(t, c, id); !strings.HasSuffix(got, "b=2") {
				t.Errorf("after request %d, %s: got %s", n, f.name, got)
			}
		}
	}
}

func TestGone(t *testing.T) {
	proxy, p := start(t)
	p.image("v1", testImage{layers: [][]byte{testTar(t, "a=1")}})
	c := openCache(t, t.TempDir())
	s := NewImages(c, client(), ImagesOptions{})
	img, err := s.Resolve(t.Context(), nil, p.repo+":v1", amd64, ModeDefault)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := s.Chain(t.Context(), img, 0)
	if err != nil {
		t.Fatal(err)
	}
	proxy.Break(func(*http.Request, int) registrytest.Fault { return registrytest.Fault{Status: 404} })
	var gone *cache.GoneError
	if err := s.Unpack(t.Context(), nil, id, nil); !errors.As(err, &gone) || gone.Layer != cache.ImageLayerID(img.layers[0].diff) {
		t.Errorf("unpacking: got %v, want a GoneError of the layer", err)
	}
	l, err := c.Layer(cache.ImageLayerID(img.layers[0].diff))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Blob(t.Context(), nil, l, l.Blobs[0]); !errors.As(err, &gone) {
		t.Errorf("reading the blob: got %v, want a GoneError", err)
	}
	proxy.Break(func(*http.Request, int) registrytest.Fault { return registrytest.Fault{Status: 500} })
	if err := s.Unpack(t.Context(), nil, id, nil); errors.As(err, &gone) || !errors.Is(err, registry.ErrDown) {
		t.Errorf("a registry that is down is not a layer that is gone: %v", err)
	}
	proxy.Break(nil)
	r, err := s.Blob(t.Context(), nil, l, l.Blobs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); err != nil || sha256.Sum256(data) != l.Blobs[0].Digest {
		t.Errorf("the blob has %d bytes, %v", len(data), err)
	}
}

// TestShared has two builds want the same layer: it is fetched once, and goes on
// while one of them still wants it.
func TestShared(t *testing.T) {
	proxy, p := start(t)
	p.image("v1", testImage{layers: [][]byte{testTar(t, "a="+strings.Repeat("z", 200_000))}, pack: "none"})
	c := openCache(t, t.TempDir())
	s := NewImages(c, client(), ImagesOptions{})
	img, err := s.Resolve(t.Context(), nil, p.repo+":v1", amd64, ModeDefault)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := s.Chain(t.Context(), img, 0)
	if err != nil {
		t.Fatal(err)
	}
	arrived := make(chan struct{}, 10)
	release := make(chan struct{})
	proxy.Break(func(*http.Request, int) registrytest.Fault {
		arrived <- struct{}{}
		<-release
		return registrytest.Fault{}
	})
	first, cancel := context.WithCancel(t.Context())
	results := make(chan error, 2)
	go func() { results <- s.Unpack(first, nil, id, nil) }()
	<-arrived
	go func() { results <- s.Unpack(t.Context(), nil, id, nil) }()
	waitFor(t, func() bool {
		s.unpacking.mu.Lock()
		defer s.unpacking.mu.Unlock()
		for _, fl := range s.unpacking.m {
			return fl.wanted == 2
		}
		return false
	})
	cancel()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("the build that was cancelled got %v", err)
	}
	close(release)
	if err := <-results; err != nil {
		t.Errorf("the other got %v", err)
	}
	if n := len(proxy.Log()); n != 1 {
		t.Errorf("%d requests, want 1: %q", n, proxy.Log())
	}
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited for 10 s")
		}
	}
}

// TestCancelledPullIsResumed cancels a pull in the middle of a layer; the next
// one, in another process, asks for the rest only.
func TestCancelledPullIsResumed(t *testing.T) {
	proxy, p := start(t)
	p.image("v1", testImage{layers: [][]byte{testTar(t, "a="+strings.Repeat("z", 3<<20))}, pack: "none"})
	dir := t.TempDir()
	c, err := cache.Open(t.Context(), dir, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	proxy.Break(func(r *http.Request, n int) registrytest.Fault {
		if n == 2 {
			return registrytest.Fault{Hang: true, After: 1 << 20}
		}
		return registrytest.Fault{}
	})
	s := NewImages(c, &registry.Client{}, ImagesOptions{})
	img, err := s.Resolve(ctx, nil, p.repo+":v1", amd64, ModeDefault)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := s.Chain(ctx, img, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(500*time.Millisecond, cancel)
	if err := s.Unpack(ctx, nil, id, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = openCache(t, dir)
	var ranges []string
	proxy.Break(func(r *http.Request, n int) registrytest.Fault {
		if v := r.Header.Get("Range"); v != "" {
			ranges = append(ranges, v)
		}
		return registrytest.Fault{}
	})
	_, id, err = pull(t.Context(), NewImages(c, client(), ImagesOptions{}), p.repo+":v1")
	if err != nil {
		t.Fatal(err)
	}
	if len(ranges) != 1 || ranges[0] == "bytes=0-" {
		t.Errorf("the rest was asked for as %q", ranges)
	}
	if got := files(t, c, id); !strings.HasPrefix(got, "a=zzz") {
		t.Errorf("got %s", got)
	}
}

// TestSpoiledPartialDownload: what an earlier pull left is not what the registry
// has (a disk that lies, an interrupted pull of a bad mirror).
func TestSpoiledPartialDownload(t *testing.T) {
	proxy, p := start(t)
	p.image("v1", testImage{layers: [][]byte{testTar(t, "a="+strings.Repeat("z", 1<<20))}, pack: "none"})
	c := openCache(t, t.TempDir())
	s := NewImages(c, client(), ImagesOptions{})
	img, err := s.Resolve(t.Context(), nil, p.repo+":v1", amd64, ModeDefault)
	if err != nil {
		t.Fatal(err)
	}
	d := img.layers[0].blob
	w, err := c.Blobs().Ingest(t.Context(), d.Digest, d.Size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("something else")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	proxy.Break(nil)
	id, _, err := s.Chain(t.Context(), img, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unpack(t.Context(), nil, id, nil); err != nil {
		t.Fatal(err)
	}
	if got := files(t, c, id); !strings.HasPrefix(got, "a=zzz") || len(proxy.Log()) != 2 {
		t.Errorf("got %s after the requests %q", got, proxy.Log())
	}
}

// TestImplicitDirectories: a layer without an entry for /tmp leaves it as it is below.
func TestImplicitDirectories(t *testing.T) {
	_, p := start(t)
	p.image("v1", testImage{layers: [][]byte{testTar(t, "tmp/"), testTar(t, "tmp/sub/a=1")}})
	c := openCache(t, t.TempDir())
	_, id, err := pull(t.Context(), NewImages(c, client(), ImagesOptions{}), p.repo+":v1")
	if err != nil {
		t.Fatal(err)
	}
	root, err := c.Merged(id)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]uint32{"tmp": 0o1777, "tmp/sub": 0o755} {
		e, err := tree.Lookup(c, root, path)
		if err != nil || e.Mode != want {
			t.Errorf("%s has mode %o, %v; want %o", path, e.Mode, err, want)
		}
	}
	layers, err := c.Layers(id)
	if err != nil {
		t.Fatal(err)
	}
	e, err := tree.Lookup(c, layers[1].Root, "tmp")
	if err != nil || e.Mode != 0o1777 {
		t.Errorf("in the layer itself it has mode %o, %v", e.Mode, err)
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
