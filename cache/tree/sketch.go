package tree

import "sync"

// Sketch is Nodes that holds back what is put there until Keep says which trees of
// it are wanted: one that is worked out in many steps leaves the nodes of each, and
// only those of the last are ever read again. A Sketch is safe for concurrent use.
type Sketch struct {
	base Nodes

	mu sync.RWMutex
	// nodes are held back; nil is when they took more than sketchBytes, and what is put
	// goes to base.
	nodes map[Addr][]byte
	size  int
}

// sketchBytes bounds the memory of a sketch.
const sketchBytes = 16 << 20

var _ Nodes = (*Sketch)(nil)

// NewSketch makes a sketch of trees that are to be kept in base.
func NewSketch(base Nodes) *Sketch { return &Sketch{base: base, nodes: make(map[Addr][]byte)} }

// Node implements Nodes.
func (s *Sketch) Node(a Addr) ([]byte, error) {
	s.mu.RLock()
	b, ok := s.nodes[a]
	s.mu.RUnlock()
	if ok {
		return b, nil
	}
	return s.base.Node(a)
}

// PutNode implements Nodes.
func (s *Sketch) PutNode(a Addr, node []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil {
		return s.base.PutNode(a, node)
	}
	if _, ok := s.nodes[a]; ok {
		return nil
	}
	s.nodes[a] = node
	if s.size += len(node); s.size <= sketchBytes {
		return nil
	}
	for a, b := range s.nodes {
		if err := s.base.PutNode(a, b); err != nil {
			return err
		}
	}
	s.nodes = nil
	return nil
}

// Keep puts the nodes of trees into the base, those below before those above.
func (s *Sketch) Keep(roots ...Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range roots {
		if e.Children == (Ref{}) {
			continue
		}
		if err := s.keep(e.Children.Addr); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sketch) keep(a Addr) error {
	b, ok := s.nodes[a]
	if !ok {
		return nil // the base has it, and all below it
	}
	for ref, err := range Refs(b) {
		if err != nil {
			return err
		}
		if err := s.keep(ref.Addr); err != nil {
			return err
		}
	}
	delete(s.nodes, a)
	return s.base.PutNode(a, b)
}
