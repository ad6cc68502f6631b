package solver

import (
	"slices"

	"github.com/kiln-build/kiln/cache"
)

// ForgetLayer makes the cache forget a layer, and the solver everything solved
// that stands on it, so that the next call of Solve makes it anew.
func (s *Solver) ForgetLayer(id cache.LayerID) error {
	if err := s.cache.ForgetLayer(id); err != nil {
		return err
	}
	// From here on lookups do not find the layer, and what was looked up before
	// cannot be joined any more. What is there already is gone through without
	// the lock, since chains are read for it.
	s.mu.Lock()
	s.forgotten++
	known := s.knownChains()
	s.mu.Unlock()
	stands := s.standsOn(id)
	known = slices.DeleteFunc(known, func(k knownChain) bool { return !stands(k.chains) })
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range known {
		if k.task != nil {
			s.disjoin(k.task)
		} else {
			delete(k.session.results, k.share)
		}
	}
	return nil
}

// knownChain is where a chain is known from: a task, or what a session remembers.
type knownChain struct {
	task    *task
	session *session
	share   cache.Key
	chains  []cache.ChainID
}

// knownChains lists the chains that builds to come could meet. Those of tasks at
// work are not among them: they may well succeed. s.mu is held.
func (s *Solver) knownChains() []knownChain {
	var out []knownChain
	for _, t := range s.tasks {
		switch t.state {
		case solved:
			out = append(out, knownChain{task: t, chains: t.outputs})
		case waiting, toIdentify, toRun:
			var chains []cache.ChainID
			for _, in := range t.inputs {
				if in.task == nil {
					chains = append(chains, in.chain)
				}
			}
			out = append(out, knownChain{task: t, chains: chains})
		}
	}
	for sn := range s.live {
		for share, r := range sn.results {
			out = append(out, knownChain{session: sn, share: share, chains: r.outputs})
		}
	}
	return out
}

// disjoin makes a task, and what waits for it, such that no build can join it. The
// builds that wait for it already do so still. s.mu is held.
func (s *Solver) disjoin(t *task) {
	seen := map[*task]bool{t: true}
	stack := []*task{t}
	for len(stack) > 0 {
		t := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		s.remove(t)
		for _, r := range t.readers {
			if r.state == waiting && !seen[r] {
				seen[r] = true
				stack = append(stack, r)
			}
		}
	}
}

// standsOn gives a function that says whether any of some chains has the layer. A
// chain that cannot be read counts as one that has: nothing can be built on it.
func (s *Solver) standsOn(id cache.LayerID) func([]cache.ChainID) bool {
	known := map[cache.ChainID]bool{{}: false}
	return func(chains []cache.ChainID) bool {
		for _, c := range chains {
			var path []cache.ChainID
			answer, ok := known[c]
			for !ok {
				path = append(path, c)
				link, err := s.cache.Chain(c)
				if err != nil || link.Layer == id {
					answer = true
					break
				}
				c = link.Parent
				answer, ok = known[c]
			}
			for _, c := range path {
				known[c] = answer
			}
			if answer {
				return true
			}
		}
		return false
	}
}
