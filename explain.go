package kiln

import (
	"errors"

	"github.com/kiln-build/kiln/frontend/dockerfile"
	"github.com/kiln-build/kiln/solver"
)

// explain gives the failure of a vertex with the lines that it was compiled from.
func explain(err error) error {
	var failed *solver.VertexError
	if !errors.As(err, &failed) || len(failed.Locations) == 0 {
		return err
	}
	e := &dockerfile.Error{File: failed.Locations[0].File, Err: failed}
	for _, l := range failed.Locations {
		if l.File == e.File {
			e.Lines = append(e.Lines, dockerfile.Lines{Start: l.Start, End: l.End})
		}
	}
	return e
}
