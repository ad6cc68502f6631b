package llb

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
)

// What Load accepts at most. The figures are far above any build that is known
// (buildx bakes of thousands of targets stay below 50,000 vertices), and low
// enough that a hostile definition costs memory in the order of its own size.
const (
	MaxVertices = 200_000
	MaxInputs   = 2_000_000 // the inputs of all vertices together
	// MaxNesting bounds definitions inside of definitions (of build ops).
	MaxNesting = 100
)

// Load reads a definition and gives the edge that it names as its result. It
// trusts nothing: vertices are named by what their bytes hash to, and whatever
// does not fit together is an error that names the op. The bytes of an op are
// kept as they came, so that digests are the sender's even where it marshals in
// another way. A definition without ops is scratch.
func Load(def *pb.Definition) (Edge, error) {
	edges, err := LoadAll(def)
	if err != nil || len(edges) == 0 {
		return Edge{}, err
	}
	return edges[0], nil
}

// LoadAll is Load for a definition that names several results (Marshal's more).
func LoadAll(def *pb.Definition) ([]Edge, error) {
	if len(def.GetDef()) == 0 {
		return nil, nil
	}
	l, err := parse(def)
	if err != nil {
		return nil, fmt.Errorf("llb: loading a definition: %w", err)
	}
	edges, err := l.build(def)
	if err != nil {
		return nil, fmt.Errorf("llb: loading a definition: %w", err)
	}
	return edges, nil
}

// loading is a definition whose ops are parsed and not yet linked.
type loading struct {
	ops      []parsed
	byDigest map[Digest]int // an index into ops
	terminal *pb.Op
}

type parsed struct {
	digest Digest
	raw    []byte
	op     *pb.Op
	inputs []int // indexes into ops, one for each input
}

func parse(def *pb.Definition) (*loading, error) {
	last := len(def.Def) - 1
	if last > MaxVertices {
		return nil, fmt.Errorf("%d ops are more than the limit of %d", last, MaxVertices)
	}
	if last == 0 {
		return nil, errors.New("one op alone: the last op names the result, and there is none to name")
	}
	l := &loading{ops: make([]parsed, 0, last), byDigest: make(map[Digest]int, last)}
	for i, raw := range def.Def {
		op := new(pb.Op)
		if err := (proto.UnmarshalOptions{RecursionLimit: MaxNesting}).Unmarshal(raw, op); err != nil {
			return nil, fmt.Errorf("op %d: %w", i, err)
		}
		if i == last {
			l.terminal = op
			break
		}
		d := Digest(sha256.Sum256(raw))
		if _, ok := l.byDigest[d]; ok {
			continue // the very same op once more, which BuildKit accepts too
		}
		l.byDigest[d] = len(l.ops)
		l.ops = append(l.ops, parsed{digest: d, raw: raw, op: op})
	}
	if l.terminal.Op != nil {
		return nil, errors.New("the last op has a body, where it should only name the result: the definition is cut off")
	}
	if len(l.terminal.Inputs) == 0 {
		return nil, errors.New("the last op names no result")
	}
	return l, l.link()
}

// link finds the ops that inputs name.
func (l *loading) link() error {
	total := 0
	for i := range l.ops {
		p := &l.ops[i]
		if total += len(p.op.Inputs); total > MaxInputs {
			return fmt.Errorf("more than %d inputs", MaxInputs)
		}
		p.inputs = make([]int, len(p.op.Inputs))
		for k, in := range p.op.Inputs {
			to, err := l.find(in)
			if err != nil {
				return fmt.Errorf("op %d (%s): input %d: %w", i, p.digest, k, err)
			}
			p.inputs[k] = to
		}
	}
	return nil
}

func (l *loading) find(in *pb.Input) (int, error) {
	d, err := ParseDigest(in.GetDigest())
	if err != nil {
		return 0, err
	}
	to, ok := l.byDigest[d]
	if !ok {
		return 0, fmt.Errorf("%s is not in the definition", d)
	}
	return to, nil
}

// order gives the ops so that each comes after its inputs. Digests cannot go in
// circles; were sha256 broken, the circle's ops would be left over.
func (l *loading) order() ([]int, error) {
	waits := make([]int, len(l.ops))
	readers := make([][]int, len(l.ops))
	ready := make([]int, 0, len(l.ops))
	for i, p := range l.ops {
		waits[i] = len(p.inputs)
		for _, in := range p.inputs {
			readers[in] = append(readers[in], i)
		}
		if waits[i] == 0 {
			ready = append(ready, i)
		}
	}
	for next := 0; next < len(ready); next++ {
		for _, r := range readers[ready[next]] {
			if waits[r]--; waits[r] == 0 {
				ready = append(ready, r)
			}
		}
	}
	if len(ready) != len(l.ops) {
		return nil, errors.New("ops depend on themselves")
	}
	return ready, nil
}

func (l *loading) build(def *pb.Definition) ([]Edge, error) {
	order, err := l.order()
	if err != nil {
		return nil, err
	}
	places, err := readLocations(def.Source)
	if err != nil {
		return nil, err
	}
	vertices := make([]*Vertex, len(l.ops))
	for _, i := range order {
		v, err := l.vertex(i, vertices)
		if err != nil {
			return nil, fmt.Errorf("op %d (%s): %w", i, l.ops[i].digest, err)
		}
		name := v.digest.String()
		if v.meta, err = readMeta(def.Metadata[name]); err != nil {
			return nil, fmt.Errorf("op %d (%s): %w", i, name, err)
		}
		v.meta.Locations = places[name]
		vertices[i] = v
	}
	edges := make([]Edge, len(l.terminal.Inputs))
	for k, in := range l.terminal.Inputs {
		to, err := l.find(in)
		if err != nil {
			return nil, fmt.Errorf("result %d: %w", k, err)
		}
		if edges[k], err = output(vertices[to], in.Index); err != nil {
			return nil, fmt.Errorf("result %d: %w", k, err)
		}
	}
	return edges, nil
}

// vertex makes ops[i], the vertices of whose inputs are made.
func (l *loading) vertex(i int, vertices []*Vertex) (*Vertex, error) {
	p := &l.ops[i]
	n, err := check(p.op)
	if err != nil {
		return nil, err
	}
	v := &Vertex{digest: p.digest, op: p.op, raw: p.raw, outputs: n, inputs: make([]Edge, len(p.inputs))}
	for k, in := range p.inputs {
		if v.inputs[k], err = output(vertices[in], p.op.Inputs[k].Index); err != nil {
			return nil, fmt.Errorf("input %d: %w", k, err)
		}
	}
	v.privileged = v.isPrivileged()
	return v, nil
}

func output(v *Vertex, index int64) (Edge, error) {
	if index < 0 || index >= int64(v.outputs) {
		return Edge{}, fmt.Errorf("output index %d of %s, which has %d outputs", index, v.digest, v.outputs)
	}
	return Edge{Vertex: v, Output: int(index)}, nil
}
