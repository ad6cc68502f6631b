package worker

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kiln-build/kiln/llb"
)

// context20k makes a folder of 20,000 files of 6 KB, 118 MB together.
func context20k(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	body := make([]byte, 6000)
	for i := range 20_000 {
		d := filepath.Join(dir, fmt.Sprintf("d%02d/e%03d", i/1000, i/10%100))
		if i%10 == 0 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		copy(body, fmt.Sprint(i))
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("f%d", i)), body, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// BenchmarkCopy20k is the first COPY of a context of 20,000 files.
func BenchmarkCopy20k(b *testing.B) {
	dir := context20k(b)
	for range b.N {
		b.StopTimer()
		r := newRig(b, Session{})
		r.locals["ctx"] = dir
		ctx := vertex(r, must(llb.Source("local://ctx", nil)))
		b.StartTimer()
		r.solve(r.copied(llb.Edge{}, ctx, "/", "/app/"))
	}
}

// BenchmarkCopyFrom20k copies 20,000 files from one stage to another.
func BenchmarkCopyFrom20k(b *testing.B) {
	r := newRig(b, Session{})
	r.locals["ctx"] = context20k(b)
	from := r.copied(llb.Edge{}, vertex(r, must(llb.Source("local://ctx", nil))), "/", "/app/")
	r.solve(from)
	b.ResetTimer()
	for i := range b.N {
		r.solve(r.copied(llb.Edge{}, from, "/app", fmt.Sprintf("/to%d", i)))
	}
}

// BenchmarkStep is a step that does nothing, on a chain that grows by it.
func BenchmarkStep(b *testing.B) {
	r := newRig(b, Session{})
	e := r.busybox()
	r.solve(e)
	b.ResetTimer()
	for i := range b.N {
		e = r.run(e, fmt.Sprintf("echo %d > /f%d", i, i))
		r.solve(e)
	}
}
