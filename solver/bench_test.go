package solver

import (
	"context"
	"fmt"
	"testing"

	"github.com/kiln-build/kiln/llb"
)

const manyVertices = 100_000

// The shapes of graphs with about n vertices.
var shapes = []struct {
	name string
	make func(t testing.TB, n int) llb.Edge
}{
	{"deep", func(t testing.TB, n int) llb.Edge {
		e := source(t, "image")
		for i := range n - 1 {
			e = step(t, fmt.Sprint("v", i), e)
		}
		return e
	}},
	{"wide", func(t testing.TB, n int) llb.Edge {
		leaves := make([]llb.Edge, 0, n)
		for i := range n - 1 {
			leaves = append(leaves, step(t, fmt.Sprint("v", i)))
		}
		v, err := llb.Merge(leaves)
		if err != nil {
			t.Fatal(err)
		}
		return v.Output(0)
	}},
	{"diamonds", func(t testing.TB, n int) llb.Edge {
		e := source(t, "image")
		for i := range n / 3 {
			e = step(t, fmt.Sprint("join", i), step(t, fmt.Sprint("left", i), e), step(t, fmt.Sprint("right", i), e))
		}
		return e
	}},
}

func BenchmarkSolve(b *testing.B) {
	for _, shape := range shapes {
		e := shape.make(b, manyVertices)
		b.Run(shape.name+"/first", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f := newFixture(b, Options{})
				if _, err := f.Solve(context.Background(), Request{Edges: edges(e)}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/manyVertices, "ns/vertex")
		})
		b.Run(shape.name+"/cached", func(b *testing.B) {
			f := newFixture(b, Options{})
			if _, err := f.Solve(context.Background(), Request{Edges: edges(e)}); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.Solve(context.Background(), Request{Edges: edges(e)}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/manyVertices, "ns/vertex")
		})
	}
}

// A graph of any shape is solved whole, with an observer, and nothing overflows.
func TestLargeGraphs(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			f := newFixture(t, Options{})
			e := shape.make(t, manyVertices/5)
			completed, cached := 0, 0
			observe := func(e Event) {
				switch e.(type) {
				case VertexCompleted:
					completed++
				case VertexCached:
					cached++
				}
			}
			solve(t, f, Request{Edges: edges(e), Observe: observe})
			want := len(llb.Walk(e))
			steps := 0
			for _, v := range llb.Walk(e) {
				if v.Kind() != "source" {
					steps++
				}
			}
			if sources := completed - want; sources < 0 || sources > 1 {
				t.Errorf("%d vertices completed, want %d, and a source's pin", completed, want)
			}
			solve(t, f, Request{Edges: edges(e), Observe: observe})
			if cached != steps {
				t.Errorf("%d steps cached, want %d", cached, steps)
			}
		})
	}
}
