package tree

// Nodes is where directory nodes are kept, each under the sha256 of its bytes.
// An implementation is safe for concurrent use.
type Nodes interface {
	// Node gives the bytes stored under a. Callers must not change them. A node
	// that is not here is an error that wraps fs.ErrNotExist.
	Node(a Addr) ([]byte, error)
	// PutNode stores node under a, which is its sha256. The caller leaves node
	// alone afterwards, so that an implementation may keep it as it is.
	PutNode(a Addr, node []byte) error
}
