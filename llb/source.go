package llb

import "github.com/moby/buildkit/solver/pb"

// Source makes a vertex that brings something in from outside: identifier is
// "docker-image://…", "local://…", "git://…", "https://…", "oci-layout://…", and
// the names of attrs are the pb.Attr constants.
func Source(identifier string, attrs map[string]string, options ...Option) (*Vertex, error) {
	op := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: identifier, Attrs: attrs}}}
	return makeVertex(op, nil, options)
}
