package solver

import (
	"context"
	"fmt"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
)

// A graph is solved twice; the second time nothing runs.
func ExampleSolver_Solve() {
	c := newFakeCache() // a *cache.Cache, outside of tests
	s := New(c, newFakeWorker(c), Options{})
	defer s.Close()

	image, err := llb.Source("docker-image://docker.io/library/alpine:3.20", nil, llb.WithName("alpine"))
	if err != nil {
		panic(err)
	}
	x := llb.Exec{Meta: &pb.Meta{Args: []string{"make"}}, Mounts: []llb.Mount{llb.Root(image.Output(0))}}
	run, err := x.Vertex()
	if err != nil {
		panic(err)
	}
	for range 2 {
		_, err := s.Solve(context.Background(), Request{
			Edges: []llb.Edge{run.Output(0)},
			Observe: func(e Event) {
				switch e := e.(type) {
				case VertexCompleted:
					fmt.Println("ran", e.Name)
				case VertexCached:
					fmt.Println("cached", e.Name)
				}
			},
		})
		if err != nil {
			panic(err)
		}
	}
	// Output:
	// ran alpine
	// ran alpine
	// ran make
	// ran alpine
	// cached make
}
