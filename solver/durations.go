package solver

import (
	"encoding/binary"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
)

type noDurations struct{}

func (noDurations) Get([]byte) ([]byte, bool) { return nil, false }
func (noDurations) Put(_, _ []byte) error     { return nil }

// expect says how long a vertex will take. Only the order of the figures for what
// has not run before matters: building takes longer than pulling, and that longer
// than moving files.
func (s *Solver) expect(n *node) time.Duration {
	switch n.vertex.Kind() {
	case "exec", "build":
		if d, ok := s.remembered(n); ok {
			return d
		}
		return 5 * time.Second
	case "source":
		if d, ok := s.remembered(n); ok {
			return d
		}
		return time.Second
	default:
		return 10 * time.Millisecond
	}
}

// durationKey is what durations are remembered under: the op without its inputs,
// so that a step is known again when what it stands on has changed.
func durationKey(v *llb.Vertex, op opKey, dk cache.Key) []byte {
	if v.Kind() == "source" {
		return dk[:] // with the pin, which says what is pulled
	}
	return op[:]
}

func (s *Solver) remembered(n *node) (time.Duration, bool) {
	b, ok := s.o.Durations.Get(durationKey(n.vertex, n.op, n.dk))
	if !ok || len(b) != 8 {
		return 0, false
	}
	// A bound, so that sums along a path cannot overflow.
	return min(time.Duration(binary.LittleEndian.Uint64(b)&(1<<62-1)), 24*time.Hour), true
}

// brief is how long a source takes that brought nothing in.
const brief = 100 * time.Millisecond

// remember notes how long a vertex took. That it could not be noted matters to
// nobody. Sources run in every build, and most of those bring nothing in: what
// they took is noted only where it changes what is expected, so that a build that
// finds everything cached writes nothing.
func (s *Solver) remember(t *task, d time.Duration) {
	switch t.vertex.Kind() {
	case "exec", "build", "source":
	default:
		return
	}
	if t.vertex.Kind() == "source" && d < brief {
		return
	}
	if old, ok := s.remembered(&node{vertex: t.vertex, op: t.op, dk: t.dk}); ok && d/2 < old && old/2 < d {
		return
	}
	_ = s.o.Durations.Put(durationKey(t.vertex, t.op, t.dk), binary.LittleEndian.AppendUint64(nil, uint64(max(d, 0))))
}
