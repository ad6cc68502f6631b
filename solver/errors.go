package solver

import (
	"errors"
	"fmt"

	"github.com/kiln-build/kiln/llb"
)

// VertexError is the failure of a vertex. Solve wraps what went wrong in it once.
type VertexError struct {
	Vertex    llb.Digest
	Name      string
	Locations []llb.Location // what the vertex was compiled from
	Err       error
}

func (e *VertexError) Error() string { return fmt.Sprintf("%s: %v", e.Name, e.Err) }
func (e *VertexError) Unwrap() error { return e.Err }

// vertexError wraps err, unless it is the failure of a vertex already, as that of
// a build op is whose own graph failed.
func vertexError(v *llb.Vertex, err error) error {
	var ve *VertexError
	if errors.As(err, &ve) {
		return err
	}
	return &VertexError{Vertex: v.Digest(), Name: v.Name(), Locations: v.Meta().Locations, Err: err}
}

// panicError is a panic of a worker, which fails the vertex and not the process.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string {
	return fmt.Sprintf("the worker panicked: %v\n%s", e.value, e.stack)
}
