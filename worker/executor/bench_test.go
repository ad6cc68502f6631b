package executor

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// BenchmarkRun is a step that does nothing, from the empty upper folder to the
// end of its process.
func BenchmarkRun(b *testing.B) {
	n := newNative(b)
	for _, layers := range []int{1, 10, 100} {
		lower := []string{busybox}
		for i := range layers - 1 {
			dir := filepath.Join(b.TempDir(), strconv.Itoa(i))
			if err := os.Mkdir(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			lower = append(lower, dir)
		}
		b.Run("layers="+strconv.Itoa(layers), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				s := onLayers(b, lower, "/bin/busybox", "true")
				s.Network = NetworkDefault
				b.StartTimer()
				if err := n.Run(context.Background(), s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
