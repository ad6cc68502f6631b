package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/registry/registrytest"
)

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

// TestDamagedBlobs: the manifest, the config and the layers in the state folder
// are cut short behind kiln's back.
func TestDamagedBlobs(t *testing.T) {
	_, p := start(t)
	p.image("v1", testImage{layers: [][]byte{testTar(t, "a="+strings.Repeat("z", 10_000))}})
	c := openCache(t, t.TempDir())
	s := NewImages(c, client(), ImagesOptions{})
	img, _, err := pull(t.Context(), s, p.repo+":v1")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []blob.Digest{img.Digest, img.layers[0].blob.Digest} {
		if err := os.Truncate(c.Blobs().Path(d), 50); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.ForgetLayer(cache.ImageLayerID(img.layers[0].diff)); err != nil {
		t.Fatal(err)
	}
	_, id, err := pull(t.Context(), s, p.repo+"@"+img.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	if got := files(t, c, id); !strings.HasPrefix(got, "a=zzz") {
		t.Errorf("got %s", got)
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

// remoteBlob is a remote cache that has one blob of every layer, as its server gives it.
type remoteBlob struct {
	data  []byte
	asked []int64 // where from
}

func (r *remoteBlob) Holds(cache.LayerID) bool { return true }

func (r *remoteBlob) Blob(_ context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	r.asked = append(r.asked, offset)
	if offset >= d.Size {
		return nil, errors.New("416 Range Not Satisfiable")
	}
	return io.NopCloser(bytes.NewReader(r.data[min(offset, int64(len(r.data))):])), nil
}

func (r *remoteBlob) Passing(cache.Layer) (blob.Descriptor, bool) { return blob.Descriptor{}, false }

// TestPartialOfARemoteCache: a download that broke off is gone on with once. One that was
// whole asks for nothing more; a server that has less than the blob is not asked for ever.
func TestPartialOfARemoteCache(t *testing.T) {
	tar := testTar(t, "a="+strings.Repeat("z", 5000))
	d := blob.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: sha256.Sum256(tar), Size: int64(len(tar))}
	for _, test := range []struct {
		name          string
		partial, data []byte
		asked         int
		fails         bool
	}{
		{"in the middle", tar[:3000], tar, 1, false},
		{"whole", tar, tar, 0, false},
		{"cut off at the server", tar[:3000], tar[:3000], 1, true},
		{"spoiled", []byte("something else"), tar, 2, false},
	} {
		c := openCache(t, t.TempDir())
		l := cache.Layer{ID: cache.ImageLayerID(d.Digest), DiffID: d.Digest, Blobs: []blob.Descriptor{d}}
		if err := c.PutLayer(l); err != nil {
			t.Fatal(err)
		}
		id, err := c.Extend(cache.ChainID{}, l.ID)
		if err != nil {
			t.Fatal(err)
		}
		w, err := c.Blobs().Ingest(t.Context(), d.Digest, d.Size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(test.partial); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		remote := &remoteBlob{data: test.data}
		err = NewImages(c, client(), ImagesOptions{Remote: remote}).Unpack(t.Context(), nil, id, nil)
		if (err != nil) != test.fails || len(remote.asked) != test.asked {
			t.Errorf("%s: got %v after asking for the bytes from %v", test.name, err, remote.asked)
		}
		if err != nil {
			continue
		}
		if got := files(t, c, id); !strings.HasPrefix(got, "a=zzz") {
			t.Errorf("%s: got %s", test.name, got)
		}
	}
}
