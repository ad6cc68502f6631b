package layer

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/tree"
)

// store is a fake of the cache: nodes, files and chunks in memory.
type store struct {
	nodes *tree.MemNodes
	mu    sync.Mutex
	files map[blob.Digest][]byte
	kept  map[blob.ChunkID][]byte
	puts  int
	opens int
}

func newStore() *store {
	return &store{nodes: tree.NewMemNodes(), files: map[blob.Digest][]byte{}, kept: map[blob.ChunkID][]byte{}}
}

func (s *store) Files() Files { return Files{Nodes: s.nodes, Open: s.open} }

func (s *store) open(e tree.Entry) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens++
	b, ok := s.files[e.Content]
	if !ok {
		return nil, fmt.Errorf("file %s: %w", e.Content, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (s *store) Chunk(id blob.ChunkID) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.kept[id]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

func (s *store) PutChunk(id blob.ChunkID, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts++
	s.kept[id] = bytes.Clone(data)
	return nil
}

// file gives an entry with those contents.
func (s *store) file(data []byte) tree.Entry {
	d := blob.Digest(sha256.Sum256(data))
	s.files[d] = data
	return tree.Entry{Kind: tree.File, Mode: 0o644, Size: int64(len(data)), Content: d, MTime: 1700000000e9}
}

// root makes a tree of what entries has by path.
func (s *store) root(t testing.TB, entries map[string]tree.Entry) tree.Entry {
	t.Helper()
	var b tree.Builder
	for path, e := range entries {
		if err := b.Set(path, e); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
	}
	root, err := b.Root(s.nodes)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// blob gives the bytes of what was made.
func (s *store) blob(m Made) []byte {
	var out []byte
	for _, id := range m.Chunks {
		out = append(out, s.kept[id]...)
	}
	return out
}

// mixed gives a tree of n files of all sizes, the same for the same seed.
func (s *store) mixed(n int, seed uint64) map[string]tree.Entry {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 500)
	for i := range words {
		words[i] = fmt.Sprintf("word%x ", r.Uint32())
	}
	out := map[string]tree.Entry{}
	for i := range n {
		size := r.IntN(9000)
		if r.IntN(500) == 0 {
			size = 3<<20 + r.IntN(1<<20)
		}
		var b bytes.Buffer
		for b.Len() < size {
			b.WriteString(words[r.IntN(len(words))])
		}
		e := s.file(b.Bytes())
		e.Tag = uint64(i) + 1
		out[fmt.Sprintf("dir%d/sub%d/file%d", i%13, i%101, i)] = e
	}
	return out
}

// stream gives a tree's tar stream.
func (s *store) stream(t testing.TB, root tree.Entry, o Options) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := (Stream{Files: s.Files(), Options: o}).Write(t.Context(), &b, root); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// everything is a layer of everything that a layer can hold.
func (s *store) everything() map[string]tree.Entry {
	linked := s.file([]byte("two names"))
	linked.Tag = 7
	other := linked
	other.Tag = 8
	caps := s.file([]byte("#!/bin/true\n"))
	caps.Mode, caps.Xattrs = 0o4755, []tree.Xattr{{Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}, {Name: "user.k", Value: "v"}}
	long := strings.Repeat("long-name/", 20) + strings.Repeat("n", 120)
	return map[string]tree.Entry{
		"a":              linked,
		"b":              linked,
		"c":              other,
		"caps":           caps,
		"dir":            {Kind: tree.Dir, Mode: 0o1777, UID: 1000, GID: 70000, MTime: 1600000000e9 + 5},
		"dir/gone":       {Kind: tree.Whiteout},
		"empty":          s.file(nil),
		"fifo":           {Kind: tree.Fifo, Mode: 0o600},
		"link":           {Kind: tree.Symlink, Mode: 0o777, Target: "../etc/" + strings.Repeat("x", 150)},
		"sock":           {Kind: tree.Socket, Mode: 0o600},
		"null":           {Kind: tree.CharDev, Mode: 0o666, Dev: 1<<8 | 3},
		"disk":           {Kind: tree.BlockDev, Mode: 0o660, Dev: 8 << 8},
		"opaque":         {Kind: tree.Dir, Mode: 0o755, Opaque: true},
		"opaque/f":       s.file([]byte("only this")),
		"grüße-\xff\xfe": s.file([]byte("neither ASCII nor UTF-8")),
		long:             s.file([]byte("deep")),
		"past":           {Kind: tree.Fifo, MTime: -1},
	}
}
