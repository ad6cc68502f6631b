// Package llb holds the graph that a build is: LLB, the low-level build
// definition of BuildKit (https://github.com/moby/buildkit, solver/pb/ops.proto).
//
// A Vertex is one operation; it is immutable, and named by the sha256 of its
// marshalled form, which holds the digests of its inputs. An Edge is one output
// of a vertex. A graph is the set of vertices that an edge reaches: there is no
// other container, and equal vertices may be shared between graphs.
//
// New and the constructors in the other files make vertices, Marshal turns an
// edge into the wire form (pb.Definition), and Load reads that back, trusting
// nothing in it. Whichever way a vertex came to be, its op is well formed: every
// index in it is in range, and no message that its kind needs is missing.
//
// Vertices and edges never change and may be used concurrently. The builders
// (Exec, Files) belong to one goroutine.
package llb

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
)

// Digest names a vertex: the sha256 of its marshalled op.
type Digest [sha256.Size]byte

// String gives the digest as LLB writes it, "sha256:" and 64 hex digits.
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// ParseDigest reads what String writes.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 2*len(d) {
		return d, fmt.Errorf("llb: %q is not a sha256 digest", s)
	}
	if _, err := hex.Decode(d[:], []byte(h)); err != nil {
		return d, fmt.Errorf("llb: %q is not a sha256 digest: %w", s, err)
	}
	return d, nil
}

// Vertex is one operation of a graph. It never changes once made.
type Vertex struct {
	digest Digest
	op     *pb.Op
	raw    []byte
	inputs []Edge
	meta   Meta

	outputs    int
	privileged bool
}

// Edge is one output of a vertex. The zero Edge is scratch: an empty file system.
type Edge struct {
	Vertex *Vertex
	Output int
}

// IsScratch reports whether e is the empty file system.
func (e Edge) IsScratch() bool { return e.Vertex == nil }

// Meta is what is said of a vertex besides its op. The digest does not cover it.
type Meta struct {
	// Name is the line that progress shows, "[build 2/5] RUN make" for one.
	Name string
	// IgnoreCache makes the solver run the vertex though a record of it exists.
	IgnoreCache bool
	// Description holds further text that nothing here interprets
	// (LLB's description map, without Name's key "llb.customname").
	Description map[string]string
	// Group puts the vertex under another in progress displays; may be nil.
	Group *pb.ProgressGroup
	// ExportCache says whether cache exports keep the vertex; nil lets them choose.
	ExportCache *bool
	// Resources limit the step, and are no part of its key; may be nil.
	Resources *pb.LinuxResources
	// Locations say which lines of which file the vertex was compiled from.
	Locations []Location
}

// New makes a vertex of op, whose Inputs it sets from inputs, and refuses an op
// that is not well formed. The op must not be changed afterwards. Scratch is no
// input: where an op reads scratch its input index is -1 (pb.Empty).
func New(op *pb.Op, inputs []Edge, meta Meta) (*Vertex, error) {
	if op == nil {
		return nil, errNilOp
	}
	op.Inputs = make([]*pb.Input, len(inputs))
	for i, in := range inputs {
		if in.IsScratch() {
			return nil, fmt.Errorf("llb: input %d is scratch; say so by an input index of -1", i)
		}
		if in.Output < 0 || in.Output >= in.Vertex.outputs {
			return nil, fmt.Errorf("llb: input %d is output %d of %s, which has %d", i, in.Output, in.Vertex.digest, in.Vertex.outputs)
		}
		op.Inputs[i] = &pb.Input{Digest: in.Vertex.digest.String(), Index: int64(in.Output)}
	}
	outputs, err := check(op)
	if err != nil {
		return nil, fmt.Errorf("llb: %w", err)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(op)
	if err != nil {
		return nil, fmt.Errorf("llb: marshalling a vertex: %w", err)
	}
	v := &Vertex{digest: sha256.Sum256(raw), op: op, raw: raw, inputs: inputs, meta: meta, outputs: outputs}
	v.privileged = v.isPrivileged()
	return v, nil
}

// Digest names the vertex.
func (v *Vertex) Digest() Digest { return v.digest }

// Op is what the vertex does. Callers must not change it.
func (v *Vertex) Op() *pb.Op { return v.op }

// Inputs are the edges that the vertex reads. Callers must not change them.
func (v *Vertex) Inputs() []Edge { return v.inputs }

// Meta is what is said of the vertex besides its op.
func (v *Vertex) Meta() Meta { return v.meta }

// Outputs is the number of the vertex's outputs.
func (v *Vertex) Outputs() int { return v.outputs }

// Privileged reports whether the vertex, or one that it stands on, asks for more than a
// build has unless it was granted: the host's network, an insecure sandbox, or a device.
func (v *Vertex) Privileged() bool { return v.privileged }

// isPrivileged finds it out, when the inputs know it of themselves.
func (v *Vertex) isPrivileged() bool {
	for _, in := range v.inputs {
		if in.Vertex.privileged {
			return true
		}
	}
	op := v.op.GetExec()
	return op != nil && (op.Security == pb.SecurityMode_INSECURE || Unproxied(op.Network) == pb.NetMode_HOST || len(op.CdiDevices) > 0)
}

// Output gives the edge of output i.
func (v *Vertex) Output(i int) Edge { return Edge{Vertex: v, Output: i} }

// Raw is the marshalled op that the digest is of. Callers must not change it.
func (v *Vertex) Raw() []byte { return v.raw }
