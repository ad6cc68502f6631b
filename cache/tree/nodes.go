package tree

// Nodes is where directory nodes are kept, each under the sha256 of its bytes.
type Nodes interface {
	// Node gives the bytes stored under a. Callers must not change them.
	Node(a Addr) ([]byte, error)
	// PutNode stores node under a, which is its sha256.
	PutNode(a Addr, node []byte) error
}
