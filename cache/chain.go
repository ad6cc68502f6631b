package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/kiln-build/kiln/cache/tree"
)

// Extend puts a layer on top of a chain. The parent must be known.
func (c *Cache) Extend(parent ChainID, top LayerID) (ChainID, error) {
	below, err := c.Chain(parent)
	if err != nil {
		return ChainID{}, fmt.Errorf("extending chain %.12s: %w", parent, err)
	}
	b := append(make([]byte, 0, 96), "kiln chain 1\x00"...)
	b = append(b, parent[:]...)
	id := ChainID(sha256.Sum256(append(b, top[:]...)))
	defer c.guard.Use((*[32]byte)(&id)).RUnlock()
	key := dbKey(prefixChain, (*[32]byte)(&id))
	if c.db.has(key) {
		return id, nil
	}
	v := append(make([]byte, 0, 72), parent[:]...)
	v = append(v, top[:]...)
	v = binary.AppendUvarint(v, uint64(below.Depth)+1)
	return id, c.db.put(key, v)
}

// Chain gives the top link of a chain; the empty chain's is the zero Chain. A
// chain that is not known is a *GoneError.
func (c *Cache) Chain(id ChainID) (Chain, error) {
	if id == (ChainID{}) {
		return Chain{}, nil
	}
	defer c.guard.Use((*[32]byte)(&id)).RUnlock()
	return c.chain(id)
}

// chain is Chain without counting as a use.
func (c *Cache) chain(id ChainID) (Chain, error) {
	v := c.db.get(dbKey(prefixChain, (*[32]byte)(&id)))
	d := decoder{b: v}
	ch := Chain{Parent: d.id(), Layer: d.id(), Depth: int(d.uint())}
	if err := d.end(); err != nil {
		if v == nil {
			err = errUnknown
		}
		return Chain{}, &GoneError{Err: fmt.Errorf("chain %.12s: %w", id, err)}
	}
	return ch, nil
}

// Layers gives a chain's layers, bottom first.
func (c *Cache) Layers(id ChainID) ([]Layer, error) {
	var layers []Layer
	for id != (ChainID{}) {
		ch, err := c.Chain(id)
		if err != nil {
			return nil, err
		}
		l, err := c.Layer(ch.Layer)
		if err != nil {
			return nil, err
		}
		if layers == nil {
			layers = make([]Layer, 0, min(ch.Depth, 1<<20))
		}
		layers = append(layers, l)
		id = ch.Parent
	}
	slices.Reverse(layers)
	return layers, nil
}

// scratch is the state of the empty chain.
var scratch = tree.Entry{Kind: tree.Dir, Mode: 0o755}

// Merged gives the state that a chain's layers make together: an Entry of kind
// Dir. It is worked out when first asked for, from the nearest chain below whose
// state is known, and kept. A layer that is not unpacked is a *NotUnpackedError.
func (c *Cache) Merged(id ChainID) (tree.Entry, error) {
	if e, ok := c.state(id); ok {
		return e, nil
	}
	v, err, _ := c.merged.Do(string(id[:]), func() (any, error) { return c.workOut(id) })
	if err != nil {
		return tree.Entry{}, fmt.Errorf("working out the state of chain %.12s: %w", id, err)
	}
	return v.(tree.Entry), nil
}

// state gives the state of a chain where it is known.
func (c *Cache) state(id ChainID) (tree.Entry, bool) {
	if id == (ChainID{}) {
		return scratch, true
	}
	defer c.guard.Use((*[32]byte)(&id)).RUnlock()
	d := decoder{b: unstamp(c.db.get(dbKey(prefixState, (*[32]byte)(&id))))}
	e := d.entry()
	if d.end() != nil || e.Kind != tree.Dir {
		return tree.Entry{}, false
	}
	return e, true
}

func (c *Cache) workOut(id ChainID) (tree.Entry, error) {
	state, err := c.applyUp(id)
	if errors.Is(err, fs.ErrNotExist) {
		// What is missing may belong to the state that it began with.
		if err := c.forgetStates(); err != nil {
			return tree.Entry{}, err
		}
		state, err = c.applyUp(id)
	}
	if err != nil {
		return tree.Entry{}, err
	}
	return state, c.SetMerged(id, state)
}

// forgetStates drops the states of all chains; they can be worked out again.
func (c *Cache) forgetStates() error {
	return c.db.each([]byte{prefixState}, false, func(k, _ []byte) error { return c.db.delete(k) })
}

// applyUp works a chain's state out from that of the nearest chain below whose
// state is known.
func (c *Cache) applyUp(id ChainID) (tree.Entry, error) {
	var above []LayerID
	at := id
	state, ok := c.state(at)
	for !ok {
		ch, err := c.Chain(at)
		if err != nil {
			return tree.Entry{}, err
		}
		above = append(above, ch.Layer)
		at = ch.Parent
		state, ok = c.state(at)
	}
	for _, id := range slices.Backward(above) {
		l, err := c.Layer(id)
		if err != nil {
			return tree.Entry{}, err
		}
		if l.Root.Kind == tree.None {
			return tree.Entry{}, &NotUnpackedError{Layer: id}
		}
		if state, err = tree.Apply(c, state, l.Root); err != nil {
			return tree.Entry{}, goneIfMissing(id, err)
		}
	}
	return state, nil
}

// SetMerged notes the state of a chain where the caller has it at hand.
func (c *Cache) SetMerged(id ChainID, root tree.Entry) error {
	if id == (ChainID{}) {
		return nil
	}
	defer c.guard.Use((*[32]byte)(&id)).RUnlock()
	key, body := dbKey(prefixState, (*[32]byte)(&id)), appendEntry(nil, root)
	if bytes.Equal(unstamp(c.db.get(key)), body) {
		return nil
	}
	return c.stamped(key, body)
}

// verified are the chains whose layers are all known.
type verified struct {
	mu     sync.Mutex
	chains map[ChainID]struct{}
	round  int // goes up with forget: what was looked at before says nothing
}

// maxVerified bounds the memory that verified takes to some 10 MB.
const maxVerified = 200_000

func (v *verified) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.chains, v.round = nil, v.round+1
}

// verify checks that a chain's links and layers are all known.
func (c *Cache) verify(id ChainID) error {
	v := &c.chains
	v.mu.Lock()
	round := v.round
	v.mu.Unlock()
	var path []ChainID
	for id != (ChainID{}) {
		v.mu.Lock()
		_, ok := v.chains[id]
		v.mu.Unlock()
		if ok {
			break
		}
		ch, err := c.chain(id)
		if err != nil {
			return err
		}
		if !c.db.has(dbKey(prefixLayer, (*[32]byte)(&ch.Layer))) {
			return &GoneError{Layer: ch.Layer, Err: errUnknown}
		}
		path = append(path, id)
		id = ch.Parent
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.round != round {
		return nil
	}
	if len(v.chains)+len(path) > maxVerified {
		v.chains = nil
	}
	if v.chains == nil {
		v.chains = make(map[ChainID]struct{}, len(path))
	}
	for _, id := range path {
		v.chains[id] = struct{}{}
	}
	return nil
}
