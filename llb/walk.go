package llb

import "crypto/sha256"

func hash(b []byte) [sha256.Size]byte { return sha256.Sum256(b) }

// Walk lists the vertices that edges reach, each once and after all its inputs,
// in an order that the edges alone decide. Two vertices of one digest are one: the
// first that is met stands for both.
func Walk(edges ...Edge) []*Vertex {
	// A depth-first walk with a stack of its own: graphs may be deeper than
	// goroutine stacks should grow.
	type frame struct {
		v    *Vertex
		next int // the input to look at
	}
	var out []*Vertex
	var stack []frame
	seen := make(map[Digest]struct{})
	for _, e := range edges {
		for v := e.Vertex; v != nil; {
			if _, ok := seen[v.digest]; !ok {
				seen[v.digest] = struct{}{}
				stack = append(stack, frame{v: v})
			}
			v = nil
			for len(stack) > 0 && v == nil {
				top := &stack[len(stack)-1]
				if top.next == len(top.v.inputs) {
					out = append(out, top.v)
					stack = stack[:len(stack)-1]
					continue
				}
				in := top.v.inputs[top.next].Vertex
				top.next++
				if _, ok := seen[in.digest]; !ok {
					v = in
				}
			}
		}
	}
	return out
}
