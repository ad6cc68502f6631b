package llb

import "github.com/moby/buildkit/solver/pb"

// Option sets what every kind of vertex has.
type Option func(*settings)

type settings struct {
	platform    *pb.Platform
	constraints *pb.WorkerConstraints
	meta        Meta
}

// WithPlatform says which platform the vertex is for: the image to pick, the
// machine to run on.
func WithPlatform(p *pb.Platform) Option { return func(s *settings) { s.platform = p } }

// WithConstraints says which workers may run the vertex, as filters in
// containerd's syntax.
func WithConstraints(filters ...string) Option {
	return func(s *settings) { s.constraints = &pb.WorkerConstraints{Filter: filters} }
}

// WithMeta sets what is said of the vertex.
func WithMeta(m Meta) Option { return func(s *settings) { s.meta = m } }

// WithName sets the name alone and leaves the rest of the Meta as it is.
func WithName(name string) Option { return func(s *settings) { s.meta.Name = name } }

func makeVertex(op *pb.Op, inputs []Edge, options []Option) (*Vertex, error) {
	var s settings
	for _, o := range options {
		o(&s)
	}
	op.Platform, op.Constraints = s.platform, s.constraints
	return New(op, inputs, s.meta)
}

// inputList numbers the inputs of an op that is being made; an edge that is used
// twice is one input.
type inputList struct{ edges []Edge }

// index gives the number of e, which is -1 for scratch.
func (l *inputList) index(e Edge) int64 {
	if e.IsScratch() {
		return int64(pb.Empty)
	}
	for i, in := range l.edges {
		if in.Output == e.Output && in.Vertex.digest == e.Vertex.digest {
			return int64(i)
		}
	}
	l.edges = append(l.edges, e)
	return int64(len(l.edges) - 1)
}
