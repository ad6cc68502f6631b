package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/internal/fixture"
	"github.com/kiln-build/kiln/exporter/layer"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func assemble(t *testing.T, env exporter.Env, attrs map[string]string, r exporter.Result) *Image {
	t.Helper()
	o, err := ParseOptions(attrs)
	if err != nil {
		t.Fatal(err)
	}
	img, err := Assemble(t.Context(), env, o, r, new(fixture.Steps), nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func decode[T any](t *testing.T, data []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// twoLayers is a chain of two small layers.
func twoLayers(c *fixture.Cache) cache.ChainID {
	return c.Chain(
		c.Layer(map[string]tree.Entry{"a": c.File([]byte("a"), func(e *tree.Entry) { e.MTime = 1900000000e9 })}),
		c.Layer(map[string]tree.Entry{"b": c.File([]byte("b"), nil)}),
	)
}

func TestConfigIsCompleted(t *testing.T) {
	c := fixture.New(t)
	now := time.Unix(1710000000, 0).UTC()
	env := c.Env(nil)
	env.Clock = func() time.Time { return now }
	config := `{"os":"linux","architecture":"amd64","variant":"v9","config":{"Cmd":["x"],"Healthcheck":{"Test":["NONE"]}},"x-unknown":{"kept":[1,2]},
		"history":[{"created_by":"one"},{"created_by":"two","empty_layer":true}]}`
	img := assemble(t, env, nil, fixture.Result(twoLayers(c), []byte(config)))
	m := img.Manifests[0]
	got := decode[ocispecs.Image](t, m.Config.Data)
	if len(got.RootFS.DiffIDs) != 2 || got.RootFS.DiffIDs[1].String() != m.Layers[1].DiffID.String() {
		t.Errorf("rootfs %+v, want the DiffIDs of the layers", got.RootFS)
	}
	var by []string
	for _, h := range got.History {
		by = append(by, h.CreatedBy)
		if h.Created == nil || !h.Created.Equal(now) {
			t.Errorf("%q was made at %v, want %v", h.CreatedBy, h.Created, now)
		}
	}
	if want := []string{"one", "two", "created by kiln"}; !slices.Equal(by, want) {
		t.Errorf("history %q, want %q", by, want)
	}
	if got.Created == nil || !got.Created.Equal(now) {
		t.Errorf("created %v, want %v", got.Created, now)
	}
	for _, want := range []string{`"x-unknown":{"kept":[1,2]}`, `"Healthcheck":{"Test":["NONE"]}`, `"variant":"v9"`} {
		if !strings.Contains(string(m.Config.Data), want) {
			t.Errorf("the config lost %s: %s", want, m.Config.Data)
		}
	}
	// Later, the same layers say the same times.
	env.Clock = func() time.Time { return now.Add(time.Hour) }
	if again := assemble(t, env, nil, fixture.Result(twoLayers(c), []byte(config))); again.Root.Desc.Digest != img.Root.Desc.Digest {
		t.Error("the same result became another image an hour later")
	}
}

func TestEpoch(t *testing.T) {
	c := fixture.New(t)
	r := fixture.Result(twoLayers(c), fixture.Config(fixture.Amd64, 2))
	epoch := time.Unix(1800000000, 0).UTC()
	for _, e := range []struct {
		attrs    map[string]string
		metadata map[string][]byte
		id       string // what the frontend calls the platform
		rewrite  bool   // rewrite-timestamp=true
		clamped  bool   // the file's time, which is later
		created  bool   // the config's times
	}{
		{attrs: map[string]string{"source-date-epoch": "1800000000"}, rewrite: true, clamped: true, created: true},                                 // by attribute
		{metadata: map[string][]byte{"source.date.epoch": []byte("1800000000")}, rewrite: true, clamped: true, created: true},                      // by the frontend
		{metadata: map[string][]byte{"source.date.epoch/linux/amd64": []byte("1800000000")}, rewrite: true, clamped: true, created: true},          // for one platform
		{metadata: map[string][]byte{"source.date.epoch/mine": []byte("1800000000")}, id: "mine", rewrite: true, clamped: true, created: true},     // by its name
		{attrs: map[string]string{"source-date-epoch": ""}, metadata: map[string][]byte{"source.date.epoch": []byte("1800000000")}, rewrite: true}, // the attribute wins
		{attrs: map[string]string{"source-date-epoch": "1800000000"}, created: true},                                                               // files left alone
		{rewrite: true}, // none
	} {
		env := c.Env(nil)
		env.Clock = func() time.Time { return epoch.Add(time.Hour) }
		r.Metadata, r.Images[0].ID = e.metadata, e.id
		attrs := maps.Clone(e.attrs)
		if e.rewrite {
			attrs = map[string]string{"rewrite-timestamp": "true"}
			maps.Copy(attrs, e.attrs)
		}
		img := assemble(t, env, attrs, r)
		plain := assemble(t, env, map[string]string{"source-date-epoch": ""}, fixture.Result(r.Images[0].Root, r.Images[0].Config))
		if got := img.Manifests[0].Layers[0].DiffID != plain.Manifests[0].Layers[0].DiffID; got != e.clamped {
			t.Errorf("%v %s: the layer's times were changed: %v, want %v", e.attrs, e.metadata, got, e.clamped)
		}
		manifest := decode[ocispecs.Manifest](t, img.Manifests[0].Data)
		if got := manifest.Layers[0].Annotations[rewrittenTime]; (got == "1800000000") != e.clamped {
			t.Errorf("%v %s: the layer's times are said to be bounded by %q", e.attrs, e.metadata, got)
		}
		config := decode[ocispecs.Image](t, img.Manifests[0].Config.Data)
		if got := config.Created.Equal(epoch); got != e.created {
			t.Errorf("%v %s: created %v", e.attrs, e.metadata, config.Created)
		}
	}
}

func TestHistory(t *testing.T) {
	at := func(s int64) *time.Time { v := time.Unix(s, 0).UTC(); return &v }
	layers := []layerInfo{{created: *at(100), name: "l0"}, {created: *at(200), name: "l1"}}
	for _, h := range []struct {
		name    string
		in      []ocispecs.History
		want    []int64
		empties []bool
	}{
		{"none at all", nil, []int64{100, 200}, []bool{false, false}},
		{"times of a base stay", []ocispecs.History{{Created: at(1)}, {}}, []int64{1, 200}, []bool{false, false}},
		{"a command in front takes the first new time", []ocispecs.History{{Created: at(1)}, {EmptyLayer: true}, {}}, []int64{1, 200, 200}, []bool{false, true, false}},
		{"a command at the end takes the last", []ocispecs.History{{}, {}, {EmptyLayer: true}}, []int64{100, 200, 200}, []bool{false, false, true}},
		{"more entries than layers", []ocispecs.History{{}, {}, {}}, []int64{100, 200, 200}, []bool{false, false, true}},
		{"fewer", []ocispecs.History{{}}, []int64{100, 200}, []bool{false, false}},
	} {
		got := alignHistory(h.in, layers)
		if len(got) != len(h.want) {
			t.Errorf("%s: %d entries, want %d", h.name, len(got), len(h.want))
			continue
		}
		for i, g := range got {
			if g.Created == nil || g.Created.Unix() != h.want[i] || g.EmptyLayer != h.empties[i] {
				t.Errorf("%s: entry %d is %v, empty %v; want %d, %v", h.name, i, g.Created, g.EmptyLayer, h.want[i], h.empties[i])
			}
		}
	}
	base := []ocispecs.History{{Created: at(150)}}
	got := []ocispecs.History{{Created: at(150)}, {Created: at(160)}}
	clampHistory(got, base, at(120))
	if got[0].Created.Unix() != 150 || got[1].Created.Unix() != 120 {
		t.Errorf("clamped to %v, %v; want the base's left alone", got[0].Created, got[1].Created)
	}
}

func TestBadConfigs(t *testing.T) {
	for _, config := range []string{
		`{`,                        // no JSON
		`null`,                     // nothing
		`{"os":"linux"}`,           // no architecture
		`{"architecture":"amd64"}`, // no os
		`{"os":"linux","architecture":"amd64","history":3}`, // of another type
	} {
		if _, err := completeConfig([]byte(config), nil, nil, nil); err == nil {
			t.Errorf("%s was taken", config)
		}
	}
}

func TestDockerMediaTypes(t *testing.T) {
	c := fixture.New(t)
	img := assemble(t, c.Env(nil), map[string]string{"oci-mediatypes": "false"}, fixture.Result(twoLayers(c), nil))
	m := decode[ocispecs.Manifest](t, img.Root.Data)
	if m.MediaType != dockerManifest || m.Config.MediaType != dockerConfig || m.Layers[0].MediaType != dockerLayer+".gzip" {
		t.Errorf("media types %s, %s, %s", m.MediaType, m.Config.MediaType, m.Layers[0].MediaType)
	}
}

func TestMediaTypes(t *testing.T) {
	for _, m := range []struct {
		in, oci, docker string
		c               layer.Compression
	}{
		{ociLayer, ociLayer, dockerLayer, layer.Uncompressed},
		{ociLayer + "+gzip", ociLayer + "+gzip", dockerLayer + ".gzip", layer.Gzip},
		{ociLayer + "+zstd", ociLayer + "+zstd", dockerLayer + ".zstd", layer.Zstd},
		{dockerLayer + ".gzip", ociLayer + "+gzip", dockerLayer + ".gzip", layer.Gzip},
		{dockerForeign + ".gzip", ociLayer + "+gzip", dockerLayer + ".gzip", layer.Gzip},
		{ociForeign + "+zstd", ociLayer + "+zstd", dockerLayer + ".zstd", layer.Zstd},
		{"application/x+gzip", "application/x+gzip", "application/x+gzip", layer.Gzip}, // no layer of ours
	} {
		oci := ociMediaType(m.in)
		if docker := dockerMediaType(oci); oci != m.oci || docker != m.docker || compressionOf(m.in) != m.c {
			t.Errorf("%s: %s, %s, %s; want %s, %s, %s", m.in, oci, docker, compressionOf(m.in), m.oci, m.docker, m.c)
		}
	}
}

func TestAnnotationsWithoutPlace(t *testing.T) {
	c := fixture.New(t)
	r := fixture.Result(twoLayers(c), nil)
	for _, attrs := range []map[string]string{
		{"annotation-index.a": "b"},                   // one image has no index
		{"annotation-manifest[linux/s390x].a": "b"},   // nor that platform
		{"annotation-manifest[linux/a/b/c/d].a": "b"}, // which is none
	} {
		o, err := ParseOptions(attrs)
		if err == nil {
			_, err = Assemble(t.Context(), c.Env(nil), o, r, new(fixture.Steps), nil)
		}
		if err == nil {
			t.Errorf("%v was taken", attrs)
		}
	}
	// A frontend's annotations count too.
	r.Metadata = map[string][]byte{"annotation.x": []byte("y")}
	if m := decode[ocispecs.Manifest](t, assemble(t, c.Env(nil), nil, r).Root.Data); m.Annotations["x"] != "y" {
		t.Errorf("annotations %v", m.Annotations)
	}
}

func TestLayersAreMadeOnce(t *testing.T) {
	c := fixture.New(t)
	r := fixture.Result(twoLayers(c), nil)
	first := assemble(t, c.Env(nil), nil, r)
	for _, l := range first.Layers() {
		known, err := c.Cache.Layer(l.ID)
		if err != nil || known.DiffID != l.DiffID || len(known.Blobs) != 1 || known.Blobs[0].Digest != l.Desc.Digest {
			t.Errorf("the cache knows %+v, %v; want DiffID and blob", known, err)
		}
	}
	for _, l := range first.Layers() {
		var b bytes.Buffer
		if err := l.Copy(t.Context(), &b); err != nil || int64(b.Len()) != l.Desc.Size {
			t.Errorf("copying %s: %d bytes, %v", l.Desc.Digest, b.Len(), err)
		}
	}
	second := assemble(t, c.Env(nil), nil, r)
	if second.Root.Desc.Digest != first.Root.Desc.Digest {
		t.Error("the second image differs")
	}
	forced := assemble(t, c.Env(nil), map[string]string{"compression": "zstd", "force-compression": "true"}, r)
	if forced.Manifests[0].Layers[0].DiffID != first.Manifests[0].Layers[0].DiffID {
		t.Error("another compression changed the DiffID")
	}
}

func TestReadyIsInOrder(t *testing.T) {
	c := fixture.New(t)
	var ids []cache.LayerID
	for i := range 9 {
		ids = append(ids, c.Layer(map[string]tree.Entry{string(rune('a' + i)): c.File(bytes.Repeat([]byte{byte(i)}, 1<<(22-i)), nil)}))
	}
	chain := c.Chain(ids...)
	r := fixture.Result(chain, nil)
	r.Images = append(r.Images, exporter.Image{Platform: ocispecs.Platform{OS: "linux", Architecture: "arm64"}, Root: chain})
	var got []cache.LayerID
	o, err := ParseOptions(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Assemble(t.Context(), c.Env(nil), o, r, new(fixture.Steps), func(l Layer) error {
		got = append(got, l.ID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, ids) {
		t.Errorf("%d layers were given, want each of %d once and in order", len(got), len(ids))
	}
	stop := errors.New("enough")
	if _, err := Assemble(t.Context(), c.Env(nil), o, r, new(fixture.Steps), func(Layer) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want what ready gave", err)
	}
}

func TestExportsAtOnce(t *testing.T) {
	c := fixture.New(t)
	r := fixture.Result(twoLayers(c), fixture.Config(fixture.Amd64, 2))
	o, err := ParseOptions(nil)
	if err != nil {
		t.Fatal(err)
	}
	digests := make([]string, 8)
	var wg sync.WaitGroup
	for i := range digests {
		wg.Go(func() {
			img, err := Assemble(t.Context(), c.Env(nil), o, r, new(fixture.Steps), nil)
			if err != nil {
				t.Error(err)
				return
			}
			digests[i] = img.Manifests[0].Layers[0].Desc.Digest.String()
		})
	}
	wg.Wait()
	if len(slices.Compact(digests)) != 1 {
		t.Errorf("got %v, want the same of all", digests)
	}
}

func TestDecompressRefusesLies(t *testing.T) {
	c := fixture.New(t)
	data := []byte("no gzip at all, and long enough")
	l := layerOf(t, c, data)
	if _, err := decompress(t.Context(), l, ociLayer+"+gzip"); err == nil {
		t.Error("what is no gzip stream was taken for one")
	}
	if r, err := decompress(t.Context(), l, ociLayer); err != nil {
		t.Errorf("a plain stream: %v", err)
	} else {
		r.Close()
	}
}

// layerOf gives a pulled layer of those bytes.
func layerOf(t *testing.T, c *fixture.Cache, data []byte) Layer {
	t.Helper()
	d := blob.Descriptor{MediaType: ociLayer, Digest: sum(data), Size: int64(len(data))}
	if err := c.Blobs().Put(t.Context(), d.Digest, d.Size, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	o := Options{}
	return newLayers(c.Env(nil), &o).existing(cache.Layer{}, d)
}

func sum(data []byte) blob.Digest { return sha256.Sum256(data) }
