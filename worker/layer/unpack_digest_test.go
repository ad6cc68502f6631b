package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// The digest is that of the stream, and those of the files are of the files,
// whatever their sizes, and where the stream has less of a file than the file.
func TestUnpackDigest(t *testing.T) {
	dir := t.TempDir()
	noise := make([]byte, 3*copySize)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(noise)
	// A file with a hole between its ends.
	f, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 8 << 20} {
		if _, err := f.WriteAt(noise[:smallFile+512], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	streams := map[string][]byte{}
	for _, format := range []string{"gnu", "posix"} {
		out, err := exec.Command("tar", "-C", dir, "--format", format, "--sparse", "-cf", "-", "holes").Output()
		if err != nil {
			t.Fatal(err)
		}
		streams["sparse "+format] = out
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	contents := [][]byte{noise[:100], noise[:smallFile], noise[:smallFile+1], noise[:300_001], noise[:copySize], noise[77:], make([]byte, 1<<20), append(make([]byte, copySize), noise[:99]...), append(noise[:copySize:copySize], make([]byte, copySize)...)}
	for i, data := range contents {
		if err := w.WriteHeader(&tar.Header{Name: string(rune('a' + i)), Size: int64(len(data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	streams["plain"] = append(b.Bytes(), "what follows the archive"...)
	for name, stream := range streams {
		c := openCache(t)
		var got blob.Digest
		root, _, err := Unpack(context.Background(), c, bytes.NewReader(stream), UnpackOptions{Digest: &got})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := sha256.Sum256(stream); got != want {
			t.Errorf("%s: the stream's digest is %x, want %x", name, got, want)
		}
		r := tar.NewReader(bytes.NewReader(stream))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			e, err := tree.Lookup(c, root, h.Name)
			if err != nil {
				t.Fatal(err)
			}
			if want := sha256.Sum256(data); e.Content != want {
				t.Errorf("%s: the digest of %s is %x, want %x", name, h.Name, e.Content, want)
			}
			f, err := c.Pool().Open(e)
			if err != nil {
				t.Fatal(err)
			}
			kept, err := io.ReadAll(f)
			if err != nil || !bytes.Equal(kept, data) {
				t.Errorf("%s: the pool has other bytes of %s (%d for %d): %v", name, h.Name, len(kept), len(data), err)
			}
			f.Close()
		}
	}
}
