package dockerfile

import (
	"sync"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// fsys is a file system that the graph will have. Instructions are compiled to
// these and not to vertices, as a vertex never changes, and which files of the
// context a build reads is known only when all its instructions have been seen.
// A nil *fsys is scratch.
type fsys struct {
	make func() (llb.Edge, error)
	once sync.Once
	edge llb.Edge
	err  error
}

// get makes the file system's vertex and those below it, the first time.
func (f *fsys) get() (llb.Edge, error) {
	if f == nil {
		return llb.Edge{}, nil
	}
	f.once.Do(func() { f.edge, f.err = f.make() })
	return f.edge, f.err
}

// fixed is the file system of an edge that is there already.
func fixed(e llb.Edge) *fsys {
	if e.IsScratch() {
		return nil
	}
	return &fsys{make: func() (llb.Edge, error) { return e, nil }}
}

// output is the one output of a vertex that was just made.
func output(v *llb.Vertex, err error) (llb.Edge, error) {
	if err != nil {
		return llb.Edge{}, err
	}
	return llb.Edge{Vertex: v}, nil
}

// source makes a source vertex. Only images differ by platform; others have none.
func source(id string, attrs map[string]string, p *ocispecs.Platform, meta llb.Meta) (llb.Edge, error) {
	options := []llb.Option{llb.WithMeta(meta)}
	if p != nil {
		options = append(options, forPlatform(*p))
	}
	return output(llb.Source(id, attrs, options...))
}

func forPlatform(p ocispecs.Platform) llb.Option {
	return llb.WithPlatform(&pb.Platform{
		OS:           p.OS,
		Architecture: p.Architecture,
		Variant:      p.Variant,
		OSVersion:    p.OSVersion,
		OSFeatures:   p.OSFeatures,
	})
}
