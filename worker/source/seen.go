package source

import (
	"sync"

	"github.com/kiln-build/kiln/solver"
)

// seen is what servers answered builds, by session and by what was asked: a build
// that asks twice, a frontend first and the graph after it, sees one state of the
// world. It is safe for concurrent use.
type seen[T any] struct {
	mu      sync.Mutex
	answers map[solver.SessionID]map[string]T
}

// ask gives what one of the job's sessions was answered before, or else the answer
// of fetch, which it notes for all of them.
func (s *seen[T]) ask(job *solver.Job, key string, fetch func() (T, error)) (T, error) {
	if job == nil {
		return fetch()
	}
	sessions := job.Sessions()
	s.mu.Lock()
	for _, id := range sessions {
		if v, ok := s.answers[id][key]; ok {
			s.mu.Unlock()
			return v, nil
		}
	}
	s.mu.Unlock()
	v, err := fetch()
	if err != nil {
		return v, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers == nil {
		s.answers = map[solver.SessionID]map[string]T{}
	}
	for _, id := range sessions {
		if s.answers[id] == nil {
			s.answers[id] = map[string]T{}
		}
		s.answers[id][key] = v
	}
	return v, nil
}

// forget drops what a session was answered.
func (s *seen[T]) forget(id solver.SessionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.answers, id)
}
