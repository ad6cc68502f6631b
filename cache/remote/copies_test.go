package remote

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
)

// TestCopyOfAnImagesLayer exports a layer that is elsewhere, of which the cache is given a
// copy. Who asks for signatures takes a signed one alone.
func TestCopyOfAnImagesLayer(t *testing.T) {
	c := openCache(t)
	own := blob.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: sha256.Sum256([]byte("own")), Size: 3}
	l := cache.Layer{DiffID: sha256.Sum256([]byte("stream")), Blobs: []blob.Descriptor{own}, Origins: []string{"host/base"}}
	l.ID = cache.ImageLayerID(l.DiffID)
	if err := c.PutLayer(l); err != nil {
		t.Fatal(err)
	}
	at, err := c.Extend(cache.ChainID{}, l.ID)
	if err != nil {
		t.Fatal(err)
	}
	copied := blob.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+zstd", Digest: sha256.Sum256([]byte("copy")), Size: 4}
	private, public := keys(t)
	for _, test := range []struct {
		what   string
		sign   ed25519.PrivateKey
		verify []ed25519.PublicKey
		open   bool // the import gives copies
		diff   blob.Digest
		want   bool
	}{
		{"as it is", nil, nil, true, l.DiffID, true},
		{"to one who wants none", nil, nil, false, l.DiffID, false},
		{"of another stream", nil, nil, true, own.Digest, false},
		{"signed", private, []ed25519.PublicKey{public}, true, l.DiffID, true},
		{"unsigned to one who asks for a key", nil, []ed25519.PublicKey{public}, true, l.DiffID, false},
	} {
		store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
		asked := 0
		o := ExportOptions{Sign: test.sign, Copy: func(context.Context, cache.ChainID, cache.Layer) (Form, bool) {
			asked++
			return Form{DiffID: test.diff, Blob: copied, Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("copy")), nil }}, true
		}}
		for n := range byte(2) { // the second finds it there
			if _, err := Export(t.Context(), c, store, o, []Entry{entry(n, at)}, time.Unix(1000, 0)); err != nil {
				t.Fatal(err)
			}
		}
		if again := test.diff != l.DiffID; (asked != 1) != again {
			t.Errorf("%s: a copy was asked for %d times", test.what, asked)
		}
		i := importFrom(t, openCache(t), store, Options{Copies: test.open, Verify: test.verify})
		<-i.loaded
		d, ok := i.Passing(l)
		if ok != test.want || ok && d.Digest != copied.Digest {
			t.Errorf("%s: got %v, %v", test.what, d, ok)
		}
		if !ok {
			continue
		}
		body, err := i.Blob(t.Context(), d, 0)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(body); err != nil || string(data) != "copy" {
			t.Errorf("%s: read %q, %v", test.what, data, err)
		}
		body.Close()
		if other := (cache.Layer{ID: l.ID, DiffID: own.Digest}); ok {
			if _, ok := i.Passing(other); ok {
				t.Errorf("%s: a layer of another stream has it too", test.what)
			}
		}
	}
}
