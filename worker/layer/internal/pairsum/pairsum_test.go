package pairsum

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"math/rand/v2"
	"testing"
)

// A processor with the instructions uses them: what they are tested by is there.
func TestFast(t *testing.T) {
	if Fast != supported {
		t.Errorf("supported is %v, and Fast is %v: crypto/sha256 has changed the form of its states", supported, Fast)
	}
}

// Both sums are those of sha256, in whatever pieces the bytes come and wherever the
// second begins.
func TestWrite(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(7, seed))
		a, b, wantA, wantB := sha256.New(), sha256.New(), sha256.New(), sha256.New()
		before := make([]byte, rng.IntN(4)*64+rng.IntN(2)*rng.IntN(64))
		a.Write(before)
		wantA.Write(before)
		for range 1 + rng.IntN(5) {
			p := make([]byte, rng.IntN(3*shortest))
			if rng.IntN(2) == 0 {
				p = p[:len(p)&^63]
			}
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			Write(a, b, p)
			wantA.Write(p)
			wantB.Write(p)
		}
		if !bytes.Equal(a.Sum(nil), wantA.Sum(nil)) || !bytes.Equal(b.Sum(nil), wantB.Sum(nil)) {
			t.Fatalf("seed %d: got %x and %x, want %x and %x", seed, a.Sum(nil), b.Sum(nil), wantA.Sum(nil), wantB.Sum(nil))
		}
	}
}

func FuzzWrite(f *testing.F) {
	f.Add([]byte("before"), bytes.Repeat([]byte("0123456789abcdef"), 1000), 4096)
	f.Add([]byte{}, bytes.Repeat([]byte{0xff}, 2*shortest+1), shortest)
	f.Fuzz(func(t *testing.T, before, p []byte, cut int) {
		cut = max(0, min(cut, len(p)))
		a, b := sha256.New(), sha256.New()
		a.Write(before)
		Write(a, b, p[:cut])
		Write(a, b, p[cut:])
		if want := sha256.Sum256(append(bytes.Clone(before), p...)); [32]byte(a.Sum(nil)) != want {
			t.Errorf("the first sum is %x, want %x", a.Sum(nil), want)
		}
		if want := sha256.Sum256(p); [32]byte(b.Sum(nil)) != want {
			t.Errorf("the second sum is %x, want %x", b.Sum(nil), want)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	for _, row := range []struct {
		name  string
		write func(x, y hash.Hash, p []byte)
	}{
		{"one", func(x, _ hash.Hash, p []byte) { x.Write(p) }},
		{"two", func(x, y hash.Hash, p []byte) { x.Write(p); y.Write(p) }},
		{"both", Write},
	} {
		for _, size := range []int{4 << 10, 256 << 10} {
			b.Run(fmt.Sprintf("%s-%dk", row.name, size>>10), func(b *testing.B) {
				x, y, p := sha256.New(), sha256.New(), make([]byte, size)
				b.SetBytes(int64(size))
				for b.Loop() {
					row.write(x, y, p)
				}
			})
		}
	}
}
