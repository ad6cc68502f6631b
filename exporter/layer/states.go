package layer

import (
	"crypto/sha256"
	"encoding"
	"fmt"
)

// States keeps how far the hash of a stream had come after some pieces, so that a
// stream which begins with the same pieces need not be read so far. A
// *cache.Bucket does; losing one costs time only.
type States interface {
	Get(key []byte) (value []byte, ok bool)
	Put(key, value []byte) error
}

// stateEvery is the number of pieces between two states. A state costs some 150
// bytes in the database; what lies behind the last one is read again.
const stateEvery = 8

// planned is a piece with what is known of it before anything is read.
type planned struct {
	p  *piece
	id pieceID
	// skip says that the piece's bytes are not needed for the DiffID: state, which
	// the last piece so skipped has, is the hash after it.
	skip  bool
	state []byte
	// key, where it is set, is what the hash after this piece is to be kept under.
	key []byte
}

// skipper finds the states that are known of a stream's beginning. It holds back
// pieces, which are headers only so far, until it knows whether they are skipped.
type skipper struct {
	states States // nil finds nothing
	emit   func(planned) error

	held   []planned
	chain  [sha256.Size]byte // names all pieces so far
	missed bool
}

// add takes the next piece.
func (s *skipper) add(p *piece) error {
	pl := planned{p: p, id: p.id()}
	if s.states == nil {
		return s.emit(pl)
	}
	s.chain = sha256.Sum256(append(s.chain[:], pl.id[:]...))
	s.held = append(s.held, pl)
	if len(s.held) < stateEvery {
		return nil
	}
	last := &s.held[len(s.held)-1]
	if state, ok := s.find(); ok {
		for i := range s.held {
			s.held[i].skip = true
		}
		last.state = state
	} else {
		s.missed = true
		last.key = append([]byte(nil), s.chain[:]...)
	}
	return s.end()
}

// find gives the state after all pieces so far. Behind one that is missing there
// are no others to look for.
func (s *skipper) find() ([]byte, bool) {
	if s.missed {
		return nil, false
	}
	state, ok := s.states.Get(s.chain[:])
	return state, ok && sha256.New().(encoding.BinaryUnmarshaler).UnmarshalBinary(state) == nil
}

// end gives on what is held back.
func (s *skipper) end() error {
	for _, p := range s.held {
		if err := s.emit(p); err != nil {
			return err
		}
	}
	s.held = s.held[:0]
	return nil
}

// hashState sets or keeps the state of the stream's hash after a piece.
func (r *run) hashState(j *job) error {
	switch {
	case j.state != nil:
		if err := r.raw.(encoding.BinaryUnmarshaler).UnmarshalBinary(j.state); err != nil {
			return fmt.Errorf("resuming the hash of a layer: %w", err)
		}
	case j.key != nil:
		state, err := r.raw.(encoding.BinaryMarshaler).MarshalBinary()
		if err == nil {
			err = r.states.Put(j.key, state)
		}
		if err != nil {
			return fmt.Errorf("keeping the hash of a layer: %w", err)
		}
	}
	return nil
}
