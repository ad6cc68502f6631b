// Package spans keeps the spans that clients send of their own, so that a build's
// trace holds them beside the daemon's.
//
// A span belongs to a trace, whose id the client chooses. A build claims the trace
// that its client named (Claim), and finds in it what came until it lets go. What
// comes for a trace that nobody claims waits a minute for its build.
//
// Spans arrive in OpenTelemetry's wire form (wire.go), and are kept in the JSON that
// clients read (Span), so that the bounds are those of what is written in the end.
package spans

import (
	"encoding/hex"
	"encoding/json"
	"slices"
	"sync"
	"time"
)

const (
	// maxTrace bounds the bytes of one trace. A build of buildx's is some 200 KB.
	maxTrace = 8 << 20
	// maxTotal bounds those of all traces together.
	maxTotal = 64 << 20
	// maxUnclaimed bounds those of traces that no build has claimed.
	maxUnclaimed = 4 << 20
	// unclaimed is for how long such a trace is kept.
	unclaimed = time.Minute
	// maxRequest bounds the spans of one request; clients send 512 at once.
	maxRequest = 10_000
	// overhead is what a span, and a trace, takes beside its bytes.
	overhead = 128
)

// TraceID names a trace.
type TraceID [16]byte

// ParseTraceID reads an id in hexadecimal.
func ParseTraceID(s string) (id TraceID, ok bool) {
	n, err := hex.Decode(id[:], []byte(s[:min(len(s), 2*len(id))]))
	return id, err == nil && n == len(id) && len(s) == 2*len(id) && id != TraceID{}
}

// Store keeps spans. It is safe for concurrent use.
type Store struct {
	clock func() time.Time

	mu     sync.Mutex // guards what is below
	traces map[TraceID]*trace
	size   int // of all traces
	idle   int // of those that nobody has claimed
}

// trace is what came of one.
type trace struct {
	spans   []json.RawMessage
	size    int
	dropped int // spans that did not fit
	claims  int
	last    time.Time // when one came
}

// NewStore makes a store; clock tells the time.
func NewStore(clock func() time.Time) *Store {
	return &Store{clock: clock, traces: map[TraceID]*trace{}}
}

// Claim is a build's hold on a trace.
type Claim struct {
	store *Store
	id    TraceID
}

// Claim keeps what comes of a trace until the claim is released.
func (s *Store) Claim(id TraceID) *Claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.traces[id]
	if t == nil {
		t = s.begin(id)
	}
	if t.claims == 0 {
		s.idle -= t.size
	}
	t.claims++
	return &Claim{s, id}
}

// Release gives what came, in the order in which it did, and how much did not fit.
// It is called once.
func (c *Claim) Release() (spans []json.RawMessage, dropped int) {
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.traces[c.id]
	spans, dropped = slices.Clone(t.spans), t.dropped
	if t.claims--; t.claims == 0 {
		s.idle += t.size
		t.last = s.clock()
		s.tidy()
	}
	return spans, dropped
}

// begin makes a trace known. s.mu is held.
func (s *Store) begin(id TraceID) *trace {
	t := &trace{size: overhead}
	s.traces[id] = t
	s.size += t.size
	s.idle += t.size
	return t
}

// add keeps a span where there is room for it.
func (s *Store) add(id TraceID, span json.RawMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.traces[id]
	if t == nil {
		t = s.begin(id)
	}
	t.last = s.clock()
	size := len(span) + overhead
	if t.size+size > maxTrace || t.claims > 0 && s.size-s.idle+size > maxTotal-maxUnclaimed || t.claims == 0 && t.size+size > maxUnclaimed {
		t.dropped++
		return
	}
	t.spans = append(t.spans, span)
	t.size += size
	s.size += size
	if t.claims == 0 {
		s.idle += size
	}
	if s.idle > maxUnclaimed {
		s.tidy()
	}
}

// full says whether a span of that many bytes cannot be kept, so that it need not be read.
func (s *Store) full(id TraceID, size int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.traces[id]
	if t == nil {
		return size > maxTrace
	}
	if t.size+size+overhead <= maxTrace {
		return false
	}
	t.dropped++
	return true
}

// clean drops what has waited in vain.
func (s *Store) clean() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tidy()
}

// tidy drops the traces that nobody has claimed in time, and as many others of them,
// the oldest first, as there are too many. s.mu is held.
func (s *Store) tidy() {
	before := s.clock().Add(-unclaimed)
	var idle []TraceID
	for id, t := range s.traces {
		switch {
		case t.claims > 0:
		case t.last.Before(before):
			s.drop(id)
		default:
			idle = append(idle, id)
		}
	}
	if s.idle <= maxUnclaimed {
		return
	}
	slices.SortFunc(idle, func(a, b TraceID) int { return s.traces[a].last.Compare(s.traces[b].last) })
	for _, id := range idle {
		if s.idle <= maxUnclaimed/2 { // so that this is not done for every span
			return
		}
		s.drop(id)
	}
}

// drop forgets a trace that nobody has claimed. s.mu is held.
func (s *Store) drop(id TraceID) {
	size := s.traces[id].size
	s.size -= size
	s.idle -= size
	delete(s.traces, id)
}
