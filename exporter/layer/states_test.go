package layer

import (
	"bytes"
	"crypto/sha256"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// states is a fake of a bucket.
type states struct {
	mu   sync.Mutex
	kept map[string][]byte
	hits int
}

// ofStreams counts the states of hashes of streams.
func (s *states) ofStreams() (n int) {
	for k := range s.kept {
		if len(k) == sha256.Size {
			n++
		}
	}
	return n
}

func (s *states) Get(key []byte) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.kept[string(key)]
	if ok {
		s.hits++
	}
	return v, ok
}

func (s *states) Put(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept[string(key)] = bytes.Clone(value)
	return nil
}

// TestStatesSpareReading edits files at several places of a layer: what lies
// before is not read, and the DiffID is right all the same.
func TestStatesSpareReading(t *testing.T) {
	s := newStore()
	files := s.mixed(4000, 8)
	st := &states{kept: map[string][]byte{}}
	maker := NewMaker(s.Files(), s, 2)
	maker.States = st
	first, err := maker.Make(t.Context(), s.root(t, files), Options{}, Method{}, blob.Digest{})
	if err != nil {
		t.Fatal(err)
	}
	if n := st.ofStreams(); n != len(first.Chunks)/stateEvery || n < 3 {
		t.Fatalf("%d states of %d pieces", n, len(first.Chunks))
	}
	all := s.opens
	// Paths are sorted as text: dir0 comes first, dir9 last.
	for _, e := range []struct {
		name string
		most int // files that may be read
	}{
		{"dir0/sub0/file0", all},         // nothing before it
		{"dir5/sub5/file5", all * 2 / 3}, // in the middle
		{"dir9/sub99/file1007", all / 3}, // near the end
	} {
		edited := map[string]tree.Entry{}
		for k, v := range files {
			edited[k] = v
		}
		edited[e.name] = s.file([]byte("edited " + e.name))
		root := s.root(t, edited)
		want := blob.Digest(sha256.Sum256(s.stream(t, root, Options{})))
		before := s.opens
		m, err := maker.Make(t.Context(), root, Options{}, Method{}, blob.Digest{})
		if err != nil {
			t.Fatal(err)
		}
		if m.DiffID != want {
			t.Errorf("%s: DiffID %s, want %s", e.name, m.DiffID, want)
		}
		if got := s.opens - before; got > e.most {
			t.Errorf("%s: %d files were read, want at most %d", e.name, got, e.most)
		}
	}
	if st.hits == 0 {
		t.Error("no state was found")
	}
	for k := range st.kept {
		st.kept[k] = []byte("garbage")
	}
	again, err := maker.Make(t.Context(), s.root(t, files), Options{}, Method{}, blob.Digest{})
	if err != nil || again.DiffID != first.DiffID {
		t.Errorf("with broken states: %s, %v; want %s", again.DiffID, err, first.DiffID)
	}
}
