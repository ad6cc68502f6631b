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

// BenchmarkExplainLarge explains a build of a thousand steps that all ran, beside
// a journal full of such builds.
func BenchmarkExplainLarge(b *testing.B) {
	j, _ := openJournal(b)
	large := func(build int) *Report {
		r := &Report{}
		for i := range 1000 {
			name := fmt.Sprintf("[%d/1000] RUN make target%d", i+1, i)
			r.Steps = append(r.Steps, exec(name, fmt.Sprint(name, build), fmt.Sprint(name, build), solver.Ran))
		}
		return r
	}
	for n := range maxReports {
		if err := j.Add(build(n), large(n)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := (&Explainer{Journal: j}).Explain(build(maxReports), large(maxReports)); err != nil {
			b.Fatal(err)
		}
	}
}
