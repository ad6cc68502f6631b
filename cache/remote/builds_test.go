package remote

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
)

// exportBuild exports a new record, and the packed build that made it.
func exportBuild(t *testing.T, c *cache.Cache, to Target, words string, n byte, sign ed25519.PrivateKey, now time.Time, mounts ...Mount) {
	t.Helper()
	var read atomic.Int64
	at := step(t, c, cache.ChainID{}, words, nil)
	x := Begin(t.Context(), c, to, ExportOptions{Forms: forms(&read), Sign: sign, Packed: func() []byte { return []byte(words) }})
	defer x.Close()
	if _, err := x.Finish(t.Context(), []Entry{entry(n, at)}, mounts, now); err != nil {
		t.Fatal(err)
	}
}

// indexIn reads the index of a cache, and the manifest that names it.
func indexIn(t *testing.T, s Store) (*index, document) {
	t.Helper()
	data, err := s.Manifest(t.Context(), blob.Digest{})
	if err != nil {
		t.Fatal(err)
	}
	x, _, err := loadManifest(t.Context(), s, data)
	if err != nil {
		t.Fatal(err)
	}
	var m document
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	return x, m
}

func wordsOf(builds []PackedBuild) (words []string) {
	for _, b := range builds {
		words = append(words, string(b.Data))
	}
	return words
}

// TestBuilds has several machines export, and reads what the last ones had to say. A
// build that adds nothing says nothing, and nobody says it twice.
func TestBuilds(t *testing.T) {
	from := openCache(t)
	dir := filepath.Join(t.TempDir(), "c")
	store := NewLayout(dir, "", blob.Digest{})
	const builds = maxBuilds + 3
	at := func(n int) time.Time { return time.Unix(int64(1000+n), 0) }
	for n := range builds {
		exportBuild(t, from, store, fmt.Sprint("build ", n), byte(n+1), nil, at(n))
	}
	exportBuild(t, from, store, fmt.Sprint("build ", builds-1), builds, nil, at(builds))
	got := importFrom(t, openCache(t), store, Options{}).Builds(t.Context())
	if len(got) != maxBuilds || string(got[0].Data) != fmt.Sprint("build ", builds-1) || !got[0].Exported.Equal(at(builds-1)) || string(got[maxBuilds-1].Data) != "build 3" {
		t.Errorf("got %q, the newest of %v", wordsOf(got), got[0].Exported)
	}
	// One that is damaged is left out.
	x, _ := indexIn(t, store)
	d := x.Builds[1].Blob.Digest
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", fmt.Sprintf("%x", d[:])), []byte("damage"), 0o600); err != nil {
		t.Fatal(err)
	}
	words := wordsOf(importFrom(t, openCache(t), store, Options{}).Builds(t.Context()))
	if len(words) != maxBuilds-1 || slices.Contains(words, fmt.Sprint("build ", builds-2)) {
		t.Errorf("with a damaged one: %q", words)
	}
	// Four weeks later they are old.
	exportBuild(t, from, store, "late", 200, nil, at(builds).Add(maxUnused+time.Hour))
	if words := wordsOf(importFrom(t, openCache(t), store, Options{}).Builds(t.Context())); !slices.Equal(words, []string{"late"}) {
		t.Errorf("four weeks later: %q", words)
	}
}

func TestBuildsSigned(t *testing.T) {
	from := openCache(t)
	private, public := keys(t)
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	exportBuild(t, from, store, "signed", 1, private, time.Unix(1000, 0))
	exportBuild(t, from, store, "unsigned", 2, nil, time.Unix(1001, 0))
	for _, c := range []struct {
		verify []ed25519.PublicKey
		want   []string
	}{
		{nil, []string{"unsigned", "signed"}},
		{[]ed25519.PublicKey{public}, []string{"signed"}},
	} {
		i := importFrom(t, openCache(t), store, Options{Verify: c.verify})
		if got := wordsOf(i.Builds(t.Context())); !slices.Equal(got, c.want) {
			t.Errorf("with %d keys: got %q, want %q", len(c.verify), got, c.want)
		}
	}
}

// TestManifestListsAll finds every blob that the index names in the manifest: what a
// registry does not find there, its collection of garbage takes.
func TestManifestListsAll(t *testing.T) {
	from := openCache(t)
	store := NewLayout(filepath.Join(t.TempDir(), "c"), "", blob.Digest{})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	exportBuild(t, from, store, "build", 1, nil, time.Unix(1000, 0), Mount{ID: "mount", Dir: dir})
	x, m := indexIn(t, store)
	wanted := map[string]blob.Digest{
		"layer": x.Layers[0].Blobs[0].Digest, "mount's list": x.Mounts[0].List.Digest,
		"mount's piece": x.Mounts[0].Pieces[0].Blob.Digest, "build": x.Builds[0].Blob.Digest,
	}
	for what, d := range wanted {
		if !slices.ContainsFunc(m.Layers, func(l blob.Descriptor) bool { return l.Digest == d }) {
			t.Errorf("the manifest does not list the blob of the %s", what)
		}
	}
}
