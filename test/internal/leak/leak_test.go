package leak

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const secret = "a-secret-of-some-length"

func zipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packed(t *testing.T, data []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(data, nil)
}

func tarball(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Size: int64(len(data)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// noise is what does not compress.
func noise() []byte {
	data := make([]byte, 10000)
	rand.NewChaCha8([32]byte{}).Read(data)
	return data
}

func TestSearch(t *testing.T) {
	raw := []byte("before " + secret + " after")
	between := func(data []byte) []byte {
		return append(append([]byte("of a database \x28\xb5\x2f"), data...), "and more"...)
	}
	for _, test := range []struct {
		name  string
		data  []byte
		found bool
	}{
		{"nothing", []byte("before a-secret-of-some after"), false},
		{"plain", raw, true},
		{"hex", []byte(hex.EncodeToString(raw)), true},
		{"base64", []byte(base64.StdEncoding.EncodeToString(raw)), true},
		{"base64 one byte further on", []byte(base64.URLEncoding.EncodeToString(raw[1:])), true},
		{"gzip", zipped(t, raw), true},
		{"zstd", packed(t, raw), true},
		{"gzip, cut off", zipped(t, append([]byte(secret), noise()...))[:4000], true},
		{"tarball in gzip in a tarball", tarball(t, zipped(t, tarball(t, raw))), true},
		{"gzip in the middle of a file", between(zipped(t, raw)), true},
		{"zstd in the middle of a file", between(packed(t, bytes.Repeat(raw, 30))), true},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), test.data, 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := New(secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Folder(dir); err != nil {
			t.Fatal(err)
		}
		if (len(s.Found) > 0) != test.found || s.Files != 1 {
			t.Errorf("%s: found in %v of %d files, want it found: %v", test.name, s.Found, s.Files, test.found)
		}
	}
	if _, err := New("short"); err == nil {
		t.Error("a secret that is found by chance was taken")
	}
}
