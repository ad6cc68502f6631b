package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache/blob"
)

// TestLeftBehind has an export find what earlier ones, which were killed, left: of
// processes that had its own number, as all have in containers. Of long ago it is removed.
func TestLeftBehind(t *testing.T) {
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	data := []byte("a blob")
	d := descriptor("tar", data)
	path := filepath.Join(store.dir, blobPath(d.Digest))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	leave := func(name string, age time.Duration) string {
		t.Helper()
		at := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(name, []byte("a bl"), 0o644), os.Chtimes(name, at, at)); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for n := range 1000 {
		leave(fmt.Sprintf("%s.%d-%d.part", path, os.Getpid(), n), time.Minute)
	}
	old := leave(path+".1-1.part", 25*time.Hour)
	others := leave(filepath.Join(filepath.Dir(path), "another.part"), 25*time.Hour)
	open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	if err := store.Put(t.Context(), d, nil, open); err != nil {
		t.Fatal(err)
	}
	manifest := []byte("{}")
	if _, err := store.Commit(t.Context(), descriptor(manifestType, manifest), manifest, blob.Digest{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the blob is %q, %v", got, err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was left a day ago is still there: %v", err)
	}
	left, err := filepath.Glob(path + ".*.part")
	if _, serr := os.Stat(others); err != nil || serr != nil || len(left) != 1000 {
		t.Errorf("%d of what may still be written are there, and of what is not kiln's: %v, %v", len(left), serr, err)
	}
}
