package solver

import (
	"time"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
)

// Event is something that happens to a vertex of a build: VertexStarted,
// VertexCached, VertexCompleted, VertexLog, VertexProgress or Warning.
type Event interface {
	// On says which vertex the event is about, and when it happened.
	On() Subject
}

// Subject is the vertex that an event is about, as the observing build knows it.
type Subject struct {
	Vertex llb.Digest
	Name   string
	Inputs []llb.Digest // of the vertices that it reads, each once
	Group  *pb.ProgressGroup
	Time   time.Time
}

// On gives the subject itself.
func (s Subject) On() Subject { return s }

// VertexStarted says that a vertex runs. A source starts and completes twice: when
// it is pinned, and when it is brought in, should it be needed.
type VertexStarted struct {
	Subject
	// Why says why no record was used.
	Why string
}

// VertexCached says that a vertex need not run.
type VertexCached struct {
	Subject
	// Why says what answered for it.
	Why string
}

// VertexCompleted says that a vertex that had started has ended.
type VertexCompleted struct {
	Subject
	Started time.Time
	// Err is nil for success, and context.Canceled where this build stopped wanting
	// the vertex, whatever for.
	Err error
}

// VertexLog is output of a vertex.
type VertexLog struct {
	Subject
	Stream int // 1 is standard output, 2 standard error
	Data   []byte
}

// VertexProgress says how far a part of a vertex is.
type VertexProgress struct {
	Subject
	Progress
}

// Warning is something that a user should know of.
type Warning struct {
	Subject
	Text string
}

// Progress is how far a part of a step is: a layer that is pulled, for one.
type Progress struct {
	ID             string // unique in the vertex
	Action         string // "downloading", "extracting", "transferring"
	Current, Total int64  // bytes or items; Total 0 is unknown
	Started        time.Time
	Completed      time.Time // zero while it goes on
}

func subjectOf(v *llb.Vertex) Subject {
	s := Subject{Vertex: v.Digest(), Name: v.Name(), Group: v.Meta().Group}
	inputs := v.Inputs()
	if len(inputs) == 0 {
		return s
	}
	s.Inputs = make([]llb.Digest, 0, len(inputs))
	seen := make(map[llb.Digest]struct{}, len(inputs))
	for _, in := range inputs {
		d := in.Vertex.Digest()
		if _, ok := seen[d]; !ok {
			seen[d] = struct{}{}
			s.Inputs = append(s.Inputs, d)
		}
	}
	return s
}
