package kiln

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestCollectorRests has a build end while the collector rests, and none after it: what
// it left is collected all the same, once the rest is over.
func TestCollectorRests(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "kiln.toml")
	if err := os.WriteFile(config, []byte("[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = \"1MB\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := Open(t.Context(), Options{Root: filepath.Join(dir, "state"), ConfigFile: config})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	data := bytes.Repeat([]byte("what a build left"), 1<<18)
	w, err := e.cache.Blobs().Ingest(t.Context(), sha256.Sum256(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	e.collector.rest = e.clock().Add(time.Second)
	e.collector.begin()
	if !e.cache.Blobs().Has(sha256.Sum256(data)) {
		t.Error("the collector collected while it rests")
	}
	for deadline := time.Now().Add(30 * time.Second); e.cache.Blobs().Has(sha256.Sum256(data)); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing was collected after the rest")
		}
	}
}
