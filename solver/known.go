package solver

import (
	"encoding/hex"
	"strings"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/llb"
)

// folderPin begins the pins of local folders.
const folderPin = "tree:"

// FolderPin is what a local folder is pinned to whose tree has that root.
func FolderPin(root tree.Entry) string {
	id := root.ID()
	return folderPin + hex.EncodeToString(id[:])
}

// IsFolderPin reports whether a pin is a local folder's.
func IsFolderPin(pin string) bool { return strings.HasPrefix(pin, folderPin) }

// Pins gives what the sources of a session are pinned to, of those that are known.
func (s *Solver) Pins(id SessionID) map[llb.Digest]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	session := s.sessions[id]
	if session == nil {
		return nil
	}
	out := make(map[llb.Digest]string, len(session.pins))
	for d, p := range session.pins {
		select {
		case <-p.done:
			if p.err == nil {
				out[d] = p.pin
			}
		default: // it is still being asked for
		}
	}
	return out
}

// Known gives what vertices of graphs came to, of those that records tell of. It
// looks at records only, and runs nothing. Sources have no records.
func (s *Solver) Known(id SessionID, edges ...llb.Edge) map[llb.Digest][]cache.ChainID {
	pins := s.Pins(id)
	p := newPlan(edges)
	for i := range p.nodes {
		p.nodes[i].pin = pins[p.nodes[i].vertex.Digest()]
	}
	p.makeKeys()
	out := make(map[llb.Digest][]cache.ChainID, len(p.nodes))
	for i := range p.nodes {
		n := &p.nodes[i]
		if n.vertex.Op().GetSource() != nil {
			continue
		}
		if r, err := s.o.Lookup(id, n.dk); err == nil {
			out[n.vertex.Digest()] = r.Outputs
		}
	}
	return out
}
