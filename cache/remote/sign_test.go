package remote

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
)

// keyPair writes a pair of keys, as openssl does, and gives the files.
func keyPair(t *testing.T) (private, public string) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte, err error) string {
		file := filepath.Join(t.TempDir(), name)
		if err == nil {
			err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	private = write("key.pem", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(pub)
	return private, write("key.pub", "PUBLIC KEY", der, err)
}

func keys(t *testing.T) (ed25519.PrivateKey, ed25519.PublicKey) {
	t.Helper()
	private, public := keyPair(t)
	k, err := ReadPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ReadPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return k, p
}

// TestSignatures has somebody change each thing that a signature is to cover.
func TestSignatures(t *testing.T) {
	private, public := keys(t)
	_, stranger := keys(t)
	c := openCache(t)
	one := step(t, c, cache.ChainID{}, "one", nil)
	two := step(t, c, one, "two", nil)
	variant := Variant{How: "gzip@7", DiffID: blob.Digest{9}, Blob: blob.Descriptor{Digest: blob.Digest{8}, Size: 3}}
	var read atomic.Int64
	o := ExportOptions{Forms: forms(&read), Sign: private, Variants: func(cache.Layer) []Variant { return []Variant{variant} }}
	for _, l := range []cache.ChainID{one, two} { // variants are of layers whose diff id is known
		link, err := c.Chain(l)
		if err != nil {
			t.Fatal(err)
		}
		known, err := c.Layer(link.Layer)
		if err != nil {
			t.Fatal(err)
		}
		f, err := o.Forms(t.Context(), l, known)
		if err != nil {
			t.Fatal(err)
		}
		known.DiffID = f.DiffID
		if err := c.PutLayer(known); err != nil {
			t.Fatal(err)
		}
	}
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	if _, err := Export(t.Context(), c, store, o, []Entry{entry(1, one), entry(2, two)}, time.Unix(1000, 0)); err != nil {
		t.Fatal(err)
	}
	signer := []ed25519.PublicKey{public}
	for name, test := range map[string]struct {
		change   func(x *index)
		keys     []ed25519.PublicKey // of which one has to have signed
		want     bool                // that the record of the second step is taken
		variants int
	}{
		"nothing":             {func(*index) {}, signer, true, 2},
		"nothing, other key":  {func(*index) {}, []ed25519.PublicKey{stranger}, false, 0},
		"one of two keys":     {func(*index) {}, []ed25519.PublicKey{stranger, public}, true, 2},
		"no key is asked for": {func(x *index) { x.Records[1].Signatures = nil }, nil, true, 2},
		"no signature":        {func(x *index) { x.Records[1].Signatures = nil }, signer, false, 0},
		"other output":        {func(x *index) { x.Records[1].Outputs = x.Records[0].Outputs }, signer, false, 0},
		"other op":            {func(x *index) { x.Records[1].Vertex[0] ^= 1 }, signer, false, 0},
		"other input":         {func(x *index) { x.Records[1].Inputs = []id{{1}} }, signer, false, 0},
		"other key's record":  {func(x *index) { x.Records[0].Keys, x.Records[1].Keys = x.Records[1].Keys, x.Records[0].Keys }, signer, false, 0},
		"other blob":          {func(x *index) { x.Layers[0].Blobs[0].Digest[0] ^= 1 }, signer, false, 0},
		"other diff id":       {func(x *index) { x.Layers[0].DiffID[0] ^= 1 }, signer, false, 0},
		"layers swapped":      {func(x *index) { x.Layers[0].Blobs, x.Layers[1].Blobs = x.Layers[1].Blobs, x.Layers[0].Blobs }, signer, false, 0},
		"other variant":       {func(x *index) { x.Layers[0].Variants[0].Blob.Digest[0] ^= 1 }, signer, true, 1},
		"other kind":          {func(x *index) { x.Layers[0].Variants[0].How = "gzip@8" }, signer, true, 1},
	} {
		x, _, err := load(t.Context(), store)
		if err != nil || len(x.Records) != 2 || len(x.Layers) != 2 {
			t.Fatalf("%+v, %v", x, err)
		}
		test.change(x)
		variants := 0
		i := importFrom(t, openCache(t), write(t, x), Options{Verify: test.keys, Variant: func(blob.Digest, Variant) { variants++ }})
		_, err = i.Lookup(cache.Key{2})
		if (err == nil) != test.want || variants != test.variants {
			t.Errorf("%s: taken %v with %d variants, want %v with %d (%v)", name, err == nil, variants, test.want, test.variants, err)
		}
	}
}

// TestSignedAdds has a signing export meet what others have put there.
func TestSignedAdds(t *testing.T) {
	private, public := keys(t)
	c := openCache(t)
	one := step(t, c, cache.ChainID{}, "one", nil)
	two := step(t, c, one, "two", nil)
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	var read atomic.Int64
	unsigned := ExportOptions{Forms: forms(&read)}
	export := func(o ExportOptions, entries ...Entry) Stats {
		t.Helper()
		s, err := Export(t.Context(), c, store, o, entries, time.Unix(1000, 0))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	export(unsigned, entry(1, one), entry(2, two))
	signed := unsigned
	signed.Sign = private
	// What nobody has signed is not signed because it is there.
	if s := export(signed, entry(1, one)); s.Sent != 1 {
		t.Errorf("%d layers were sent, want the one that the signature is for", s.Sent)
	}
	if s := export(signed, entry(1, one)); s.Sent != 0 {
		t.Errorf("%d layers were sent that the same key had signed", s.Sent)
	}
	// One without a key takes no signature away, also not with a record of its own.
	export(unsigned, entry(2, two))
	export(unsigned, entry(1, two), entry(3, one))
	i := importFrom(t, openCache(t), store, Options{Verify: []ed25519.PublicKey{public}})
	if _, err := i.Lookup(cache.Key{1}); err != nil {
		t.Errorf("the signed record: %v", err)
	}
	if _, err := i.Lookup(cache.Key{2}); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("the other record: %v, want that it is not signed", err)
	}
}

func TestReadKeys(t *testing.T) {
	private, public := keyPair(t)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		err        error
	}{
		{"a public key to sign with", "no private key", second(ReadPrivateKey(public))},
		{"a private key to verify with", "holds a private key", second(ReadPublicKey(private))},
		{"an empty file", "no key in PEM form", second(ReadPublicKey(empty))},
		{"no file", "no such file", second(ReadPublicKey(empty + "x"))},
		{"a folder", "no file of a key", second(ReadPrivateKey(filepath.Dir(empty)))},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", c.name, c.err, c.want)
		}
	}
}

func second[T any](_ T, err error) error { return err }
