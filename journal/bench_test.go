package journal

import (
	"fmt"
	"testing"

	"github.com/kiln-build/kiln/solver"
)

// BenchmarkAddCached is what the journal costs a build of 30 steps that finds
// everything cached.
func BenchmarkAddCached(b *testing.B) {
	j, _ := openJournal(b)
	steps := make([]Step, 30)
	for i := range steps {
		name := fmt.Sprintf("[%d/30] RUN make target%d", i+1, i)
		steps[i] = exec(name, name, name, solver.Unneeded)
	}
	r := &Report{Steps: steps}
	n := 0
	for b.Loop() {
		if err := j.Add(build(n), r); err != nil {
			b.Fatal(err)
		}
		n++
	}
}
