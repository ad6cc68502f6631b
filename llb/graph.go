package llb

import "github.com/moby/buildkit/solver/pb"

// Merge makes a vertex that lays its inputs over each other, the first one lowest.
// Scratch among them is left out.
func Merge(inputs []Edge, options ...Option) (*Vertex, error) {
	op := &pb.MergeOp{}
	var edges []Edge
	for _, e := range inputs {
		if e.IsScratch() {
			continue
		}
		op.Inputs = append(op.Inputs, &pb.MergeInput{Input: int64(len(edges))})
		edges = append(edges, e)
	}
	return makeVertex(&pb.Op{Op: &pb.Op_Merge{Merge: op}}, edges, options)
}

// Diff makes a vertex that holds what upper has and lower does not, and removes
// what lower has and upper does not.
func Diff(lower, upper Edge, options ...Option) (*Vertex, error) {
	var edges []Edge
	side := func(e Edge) int64 {
		if e.IsScratch() {
			return int64(pb.Empty)
		}
		// As BuildKit counts them, the same edge on both sides is two inputs.
		edges = append(edges, e)
		return int64(len(edges) - 1)
	}
	op := &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: side(lower)}, Upper: &pb.UpperDiffInput{Input: side(upper)}}
	return makeVertex(&pb.Op{Op: &pb.Op_Diff{Diff: op}}, edges, options)
}

// Build makes a vertex whose result is that of a graph found in def: a marshalled
// definition in the file that attrs name (pb.AttrLLBDefinitionFilename).
func Build(def Edge, attrs map[string]string, options ...Option) (*Vertex, error) {
	var inputs inputList
	op := &pb.BuildOp{Builder: int64(pb.LLBBuilder), Attrs: attrs, Inputs: map[string]*pb.BuildInput{
		pb.LLBDefinitionInput: {Input: inputs.index(def)},
	}}
	return makeVertex(&pb.Op{Op: &pb.Op_Build{Build: op}}, inputs.edges, options)
}

// Passthrough makes a vertex that needs all of inputs and gives on those whose
// numbers outputs lists.
func Passthrough(id string, inputs []Edge, outputs []int, options ...Option) (*Vertex, error) {
	op := &pb.PassthroughOp{Id: id}
	for _, o := range outputs {
		op.Outputs = append(op.Outputs, int64(o))
	}
	return makeVertex(&pb.Op{Op: &pb.Op_Passthrough{Passthrough: op}}, inputs, options)
}
