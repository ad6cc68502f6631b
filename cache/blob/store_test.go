package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kiln-build/kiln/cache/internal/guard"
)

func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := OpenStore(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func digest(b []byte) Digest { return sha256.Sum256(b) }

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func put(t testing.TB, s *Store, b []byte) Digest {
	t.Helper()
	d := digest(b)
	if err := s.Put(context.Background(), d, int64(len(b)), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return d
}

// putRecipe stores b as chunks of n bytes.
func putRecipe(t testing.TB, s *Store, b []byte, n int) (Digest, []ChunkID) {
	t.Helper()
	var ids []ChunkID
	for part := range slices.Chunk(b, n) {
		id := ChunkID(sha256.Sum256(append([]byte("chunk"), part...)))
		if err := s.PutChunk(id, part); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	d := digest(b)
	if err := s.PutRecipe(d, int64(len(b)), ids); err != nil {
		t.Fatal(err)
	}
	return d, ids
}

// A blob of chunks is written in its chunks, and an error of the writer ends that.
func TestRecipeIsWrittenInChunks(t *testing.T) {
	s := openStore(t, Options{})
	d, _ := putRecipe(t, s, random(2500), 1000)
	r, _, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var sizes []int
	full := errors.New("full")
	w := writeFunc(func(b []byte) (int, error) {
		if sizes = append(sizes, len(b)); len(sizes) == 2 {
			return 10, full
		}
		return len(b), nil
	})
	if n, err := io.Copy(w, r); n != 1010 || !errors.Is(err, full) {
		t.Errorf("wrote %d bytes, %v; want 1010 and the writer's error", n, err)
	}
	if _, err := io.Copy(w, r); err != nil {
		t.Error(err)
	}
	if want := []int{1000, 1000, 990, 500}; !slices.Equal(sizes, want) {
		t.Errorf("written in pieces of %v, want %v", sizes, want)
	}
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(b []byte) (int, error) { return f(b) }

// TestStore is what holds for a blob in either form.
func TestStore(t *testing.T) {
	for _, form := range []struct {
		name string
		put  func(t *testing.T, s *Store, b []byte) Digest
	}{
		{"file", func(t *testing.T, s *Store, b []byte) Digest { return put(t, s, b) }},
		{"recipe", func(t *testing.T, s *Store, b []byte) Digest { d, _ := putRecipe(t, s, b, 1000); return d }},
		{"ingest", func(t *testing.T, s *Store, b []byte) Digest {
			w, err := s.Ingest(context.Background(), digest(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			return digest(b)
		}},
	} {
		for _, size := range []int{0, 1, 999, 1000, 1001, 54_321} {
			s := openStore(t, Options{})
			b := random(size)
			if s.Has(digest(b)) {
				t.Errorf("%s of %d: here before it was put", form.name, size)
			}
			if _, _, err := s.Open(digest(b)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s of %d: got %v, want fs.ErrNotExist", form.name, size, err)
			}
			d := form.put(t, s, b)
			if !s.Has(d) {
				t.Errorf("%s of %d: not here", form.name, size)
			}
			r, n, err := s.Open(d)
			if err != nil || n != int64(size) {
				t.Fatalf("%s of %d: size %d, %v", form.name, size, n, err)
			}
			if err := iotest.TestReader(r, b); err != nil {
				t.Errorf("%s of %d: %v", form.name, size, err)
			}
			// What is copied begins where reading has come to.
			from := size / 3
			var rest bytes.Buffer
			if _, err := r.Seek(int64(from), io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(&rest, r); err != nil || n != int64(size-from) || !bytes.Equal(rest.Bytes(), b[from:]) {
				t.Errorf("%s of %d: copied %d bytes from %d on, %v", form.name, size, n, from, err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if _, err := r.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("%s of %d: reading after Close: %v", form.name, size, err)
			}
			if _, err := s.Ingest(context.Background(), d, int64(size)); !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s of %d: got %v, want fs.ErrExist", form.name, size, err)
			}
		}
	}
}

func TestPutVerifies(t *testing.T) {
	s := openStore(t, Options{})
	d := digest([]byte("hello"))
	for _, row := range []struct {
		name, data string
		size       int64
	}{
		{"too short", "hell", 5},
		{"too long", "hello!", 5},
		{"other bytes", "hallo", 5},
		{"another size than was said", "hello", 6},
		{"a size below zero", "hello", -1},
	} {
		var bad *MismatchError
		if err := s.Put(context.Background(), d, row.size, strings.NewReader(row.data)); !errors.As(err, &bad) {
			t.Errorf("%s: got %v, want a MismatchError", row.name, err)
		}
		if s.Has(d) {
			t.Errorf("%s: it is here", row.name)
		}
	}
	if names, err := os.ReadDir(filepath.Dir(s.Path(d))); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

func TestIngestResumes(t *testing.T) {
	s := openStore(t, Options{})
	b := random(100_000)
	d := digest(b)
	ctx := context.Background()
	begin := func(want int64) *Writer {
		t.Helper()
		w, err := s.Ingest(ctx, d, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if w.Offset() != want {
			t.Errorf("it goes on from %d, want %d", w.Offset(), want)
		}
		return w
	}
	write := func(w *Writer, b []byte) {
		t.Helper()
		if n, err := w.Write(b); err != nil || n != len(b) {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	w := begin(0)
	write(w, b[:30_000])
	if err := w.Commit(); err == nil {
		t.Error("a part was committed")
	}
	w = begin(30_000)
	write(w, b[30_000:60_000])
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = begin(60_000)
	var bad *MismatchError
	if _, err := w.Write(b); !errors.As(err, &bad) {
		t.Errorf("writing too much: got %v, want a MismatchError", err)
	}
	if err := w.Reset(); err != nil || w.Offset() != 0 {
		t.Fatal(err)
	}
	write(w, make([]byte, len(b))) // the right size, other bytes
	if err := w.Commit(); !errors.As(err, &bad) {
		t.Errorf("got %v, want a MismatchError", err)
	}
	w = begin(0) // those were dropped
	write(w, b)

	// A second one waits, and finds the blob here.
	second := make(chan error, 1)
	go func() {
		_, err := s.Ingest(ctx, d, int64(len(b)))
		second <- err
	}()
	expired, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := s.Ingest(expired, d, int64(len(b))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want context.DeadlineExceeded", err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-second; !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want fs.ErrExist", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestRecipesLoseChunks(t *testing.T) {
	s := openStore(t, Options{})
	b := random(10_000)
	d, ids := putRecipe(t, s, b, 3000)
	if err := s.PutRecipe(Digest{1}, 9000, ids); err == nil {
		t.Error("a recipe of another size was stored")
	}
	if err := s.PutRecipe(Digest{1}, 3000, []ChunkID{{9}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	path := filepath.Join(s.dir, "chunks", chunkName(&ids[1]))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		damage func() error
		seen   bool // by Has
	}{
		{"cut", func() error { return os.Truncate(path, 100) }, true},
		{"a bit turned", func() error {
			bad := bytes.Clone(whole)
			bad[77] ^= 4
			return os.WriteFile(path, bad, 0o600)
		}, false},
		{"removed", func() error { return os.Remove(path) }, true},
	} {
		if err := errors.Join(os.WriteFile(path, whole, 0o600), row.damage()); err != nil {
			t.Fatal(err)
		}
		if row.seen && s.Has(d) {
			t.Errorf("%s: the blob counts as here", row.name)
		}
		r, _, err := s.Open(d)
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v, want fs.ErrNotExist", row.name, err)
		}
	}
	// Cut in another way it is here again.
	d, _ = putRecipe(t, s, b, 4000)
	if !s.Has(d) {
		t.Error("the blob is not here")
	}
}

func TestSweepAndLeases(t *testing.T) {
	var g guard.Guard
	s := openStore(t, Options{Guard: &g})
	kept := put(t, s, []byte("kept"))
	gone := put(t, s, []byte("gone"))
	used := put(t, s, []byte("used"))
	usedRecipe, usedChunks := putRecipe(t, s, []byte("used recipe"), 4)
	goneRecipe, _ := putRecipe(t, s, []byte("recipe that goes"), 4)
	w, err := s.Ingest(context.Background(), digest([]byte("open")), 4)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	broken, err := s.Ingest(context.Background(), digest([]byte("broken")), 6)
	if err != nil {
		t.Fatal(err)
	}
	if err := broken.Close(); err != nil {
		t.Fatal(err)
	}

	end := g.Begin()
	if !s.Has(used) || !s.Has(usedRecipe) {
		t.Fatal("not here")
	}
	during := put(t, s, []byte("during"))
	sweep := func() {
		t.Helper()
		err := s.Sweep(func(d Digest) bool { return d == kept }, func(ChunkID) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	for d, want := range map[Digest]bool{kept: true, gone: false, used: true, usedRecipe: true, goneRecipe: false, during: true} {
		if got := s.Size(d) > 0; got != want {
			t.Errorf("under the lease: %s is here: %v, want %v", d, got, want)
		}
	}
	if s.ChunkSize(usedChunks[0]) == 0 || len(s.Chunks(usedRecipe)) != 3 || s.Chunks(kept) != nil {
		t.Error("chunks of a recipe that was used are gone")
	}
	end()
	sweep()
	for d, want := range map[Digest]bool{kept: true, used: false, usedRecipe: false, during: false} {
		if got := s.Size(d) > 0; got != want {
			t.Errorf("after the lease: %s is here: %v, want %v", d, got, want)
		}
	}
	names, err := os.ReadDir(filepath.Join(s.dir, "partial"))
	want := digest([]byte("open"))
	if err != nil || len(names) != 1 || names[0].Name() != hex.EncodeToString(want[:]) {
		t.Errorf("partial holds %v, %v", names, err)
	}
}

func TestConcurrentPuts(t *testing.T) {
	s := openStore(t, Options{})
	b := random(300_000)
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			if err := s.Put(context.Background(), digest(b), int64(len(b)), bytes.NewReader(b)); err != nil {
				t.Error(err)
			}
			putRecipe(t, s, b[:5000], 700)
		})
	}
	g.Wait()
	if !s.Has(digest(b)) || !s.Has(digest(b[:5000])) {
		t.Error("not here")
	}
}

func TestDigestText(t *testing.T) {
	want := Descriptor{MediaType: "m", Digest: digest([]byte("x")), Size: 1}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), `"digest":"`+want.Digest.String()+`"`) {
		t.Errorf("got %s", b)
	}
	var got Descriptor
	if err := json.Unmarshal(b, &got); err != nil || got.Digest != want.Digest {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "sha256:", "sha512:" + strings.Repeat("0", 64), "sha256:" + strings.Repeat("g", 64), "sha256:" + strings.Repeat("0", 63)} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}

func FuzzParseRecipe(f *testing.F) {
	s := openStore(f, Options{})
	d, _ := putRecipe(f, s, random(5000), 900)
	b, err := s.readRecipe(&d)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecipe(b)
		if err != nil {
			return
		}
		if len(r.chunks) != len(r.ends) || len(r.ends) > 0 && r.ends[len(r.ends)-1] != r.size {
			t.Errorf("got %+v", r)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	s := openStore(b, Options{})
	data := random(4 << 20)
	d := digest(data)
	b.SetBytes(int64(len(data)))
	for range b.N {
		put(b, s, data)
		b.StopTimer()
		if err := os.Remove(s.Path(d)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkReadRecipe(b *testing.B) {
	s := openStore(b, Options{})
	data := random(32 << 20)
	d, _ := putRecipe(b, s, data, 1<<20)
	b.SetBytes(int64(len(data)))
	b.ResetTimer()
	for range b.N {
		r, _, err := s.Open(d)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
