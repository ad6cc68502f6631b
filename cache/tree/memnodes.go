package tree

import (
	"fmt"
	"io/fs"
	"sync"
)

// MemNodes keeps nodes in memory. It is safe for concurrent use.
type MemNodes struct {
	mu    sync.RWMutex
	nodes map[Addr][]byte
	puts  int
	bytes int64
}

// NewMemNodes makes a store that is empty.
func NewMemNodes() *MemNodes { return &MemNodes{nodes: make(map[Addr][]byte)} }

// Node implements Nodes.
func (m *MemNodes) Node(a Addr) ([]byte, error) {
	m.mu.RLock()
	b, ok := m.nodes[a]
	m.mu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("node %.12s: %w", a, fs.ErrNotExist)
	}
	return b, nil
}

// PutNode implements Nodes.
func (m *MemNodes) PutNode(a Addr, node []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes[a] = node
	m.puts++
	m.bytes += int64(len(node))
	return nil
}

// Written gives how many nodes were put, and their bytes, repetitions counted.
func (m *MemNodes) Written() (nodes int, bytes int64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.puts, m.bytes
}

var _ Nodes = (*MemNodes)(nil)
