package gunzip

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"

	fast "github.com/klauspost/compress/gzip"
)

// samples are contents of several kinds by name.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 700_000)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	few := make([]byte, 500_000)
	for i := range few {
		few[i] = "abcd"[rng.IntN(4)]
	}
	// Frequencies like Fibonacci's numbers make the longest codes.
	var steep []byte
	for i, a, b := 0, 1, 1; i < 24; i, a, b = i+1, b, a+b {
		steep = append(steep, bytes.Repeat([]byte{byte(i * 7)}, a)...)
	}
	rng.Shuffle(len(steep), func(i, j int) { steep[i], steep[j] = steep[j], steep[i] })
	var far []byte // matches from as far back as there can be
	for len(far) < 400_000 {
		far = append(far, noise[:32_700]...)
		far = append(far, fmt.Sprint(len(far))...)
	}
	var mixed []byte // blocks of all kinds behind each other
	for i := range 40 {
		mixed = append(append(mixed, noise[i*9000:i*9000+20_000+977*i]...), bytes.Repeat([]byte("some text, "), 50*i)...)
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"nothing": nil, "a byte": {7}, "noise": noise, "four letters": few, "steep": steep, "far": far, "mixed": mixed,
		"zeros": make([]byte, 1_000_000), "pairs": bytes.Repeat([]byte("xyz"), 100_000), "program": program[:min(len(program), 2<<20)],
	}
}

// packed gives data as gzip streams of every level of two writers.
func packed(t testing.TB, data []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
		var a, b bytes.Buffer
		w, err := gzip.NewWriterLevel(&a, level)
		if err != nil {
			t.Fatal(err)
		}
		f, err := fast.NewWriterLevel(&b, level)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range []io.WriteCloser{w, f} {
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		out[fmt.Sprintf("standard %d", level)], out[fmt.Sprintf("fast %d", level)] = a.Bytes(), b.Bytes()
	}
	return out
}

func read(r io.Reader) ([]byte, error) {
	z, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func TestRead(t *testing.T) {
	for name, data := range samples(t) {
		for how, stream := range packed(t, data) {
			got, err := read(bytes.NewReader(stream))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, %s: got %d bytes, %v; want %d", name, how, len(got), err, len(data))
			}
		}
	}
}

// A source may give a byte at a time, or its end with its last bytes; and a reader
// may take a byte at a time.
func TestSmallReads(t *testing.T) {
	data := samples(t)["steep"]
	for how, stream := range packed(t, data) {
		for _, source := range []io.Reader{iotest.OneByteReader(bytes.NewReader(stream)), iotest.DataErrReader(bytes.NewReader(stream))} {
			z, err := NewReader(source)
			if err != nil {
				t.Fatal(err)
			}
			if err := iotest.TestReader(onlyRead{z}, data); err != nil {
				t.Errorf("%s: %v", how, err)
			}
		}
	}
}

type onlyRead struct{ io.Reader }

// Members follow each other, whose matches do not reach into the one before; headers
// may have every field.
func TestMembers(t *testing.T) {
	var stream bytes.Buffer
	var want []byte
	for i, name := range []string{"four letters", "nothing", "noise", "zeros"} {
		data := samples(t)[name]
		w := gzip.NewWriter(&stream)
		if i%2 == 1 {
			w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		want = append(want, data...)
	}
	got, err := read(&stream)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
	}
}

// Streams that are cut, or have something behind them, or a wrong checksum.
func TestBadStreams(t *testing.T) {
	stream := packed(t, samples(t)["steep"])["standard 6"]
	for n := range len(stream) {
		if n > 300 && n < len(stream)-300 && n%97 != 0 {
			continue
		}
		if _, err := read(bytes.NewReader(stream[:n])); err != io.ErrUnexpectedEOF {
			t.Fatalf("cut after %d of %d bytes: got %v", n, len(stream), err)
		}
	}
	for _, c := range []struct {
		stream []byte
		want   error
	}{
		{append(bytes.Clone(stream), "something behind it"...), ErrHeader},
		{append(bytes.Clone(stream), make([]byte, 100)...), ErrHeader},
		{with(stream, len(stream)-8), ErrChecksum},
		{with(stream, len(stream)-1), ErrChecksum},
		{with(stream, 2), ErrHeader},
		// A match before the beginning: of a member that has the letters before it.
		{append(packed(t, []byte("abc"))["standard 6"], 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 0x03, 0x02, 0), ErrCorrupt},
		{[]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 0x07}, ErrCorrupt},              // a block of kind 3
		{[]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 0}, ErrCorrupt},     // lengths that do not agree
		{[]byte{0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0}, ErrHeader},   // the header's own checksum
		{[]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0, 255, 255}, io.ErrUnexpectedEOF}, // and its fields
		{[]byte{0x1f, 0x8b, 8, 24, 0, 0, 0, 0, 0, 0, 'n', 0, 'c'}, io.ErrUnexpectedEOF},
	} {
		if _, err := read(bytes.NewReader(c.stream)); !errors.Is(err, c.want) {
			t.Errorf("%.20x…: got %v, want %v", c.stream, err, c.want)
		}
	}
	broken := errors.New("broken")
	if _, err := read(io.MultiReader(bytes.NewReader(stream[:5000]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("got %v, want the source's error", err)
	}
}

// with gives data with one bit changed.
func with(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at] ^= 1
	return data
}

// FuzzRead compares with the standard library: what one refuses the other does too,
// and what they take is the same.
func FuzzRead(f *testing.F) {
	for _, name := range []string{"a byte", "nothing"} {
		for _, stream := range packed(f, samples(f)[name]) {
			f.Add(stream)
		}
	}
	for _, name := range []string{"steep", "pairs", "far", "program"} {
		for _, stream := range packed(f, samples(f)[name][:3000]) {
			f.Add(stream)
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		const most = 1 << 20
		got, err := readSome(NewReader(bytes.NewReader(stream)))(most)
		want, wantErr := readSome(gzip.NewReader(bytes.NewReader(stream)))(most)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("got %v, and the standard library %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes that are not the standard library's %d", len(got), len(want))
		}
	})
}

func readSome[R io.Reader](r R, err error) func(int64) ([]byte, error) {
	return func(most int64) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		return io.ReadAll(io.LimitReader(r, most))
	}
}

func BenchmarkRead(b *testing.B) {
	for _, name := range []string{"program", "four letters", "noise"} {
		data := samples(b)[name]
		stream := packed(b, data)["standard 6"]
		for _, how := range []struct {
			name string
			open func() (io.Reader, error)
		}{
			{"kiln", func() (io.Reader, error) { return NewReader(bytes.NewReader(stream)) }},
			{"klauspost", func() (io.Reader, error) { return fast.NewReader(bytes.NewReader(stream)) }},
		} {
			b.Run(name+"/"+how.name, func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					r, err := how.open()
					if err == nil {
						_, err = io.Copy(io.Discard, onlyRead{r})
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
