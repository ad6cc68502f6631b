package registry

import (
	"context"
	"sync"
	"time"
)

// pass is what a request shows to be let in: the Authorization header.
type pass struct {
	header  string
	expires time.Time // zero: it is good until it is refused
}

// passes are what one Credentials has led to. They are safe for concurrent use.
type passes struct {
	clock func() time.Time

	mu     sync.Mutex // guards what is below
	held   map[passKey]pass
	making map[passKey]*making
}

// making is somebody's making a pass.
type making struct {
	done chan struct{}
	err  error // why there is none; set before done is closed
}

// passKey is what a pass is good for. Of passwords the scope is empty.
type passKey struct{ host, scope string }

// maxPasses bounds how many passes are held for one Credentials: a daemon's own may
// see any number of repositories.
const maxPasses = 1000

func newPasses(clock func() time.Time) *passes {
	return &passes{clock: clock, held: map[passKey]pass{}, making: map[passKey]*making{}}
}

// get gives the header for a scope: a token, or the password of the host.
func (p *passes) get(host, scope string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range [2]passKey{{host, scope}, {host, ""}} {
		if v, ok := p.held[k]; ok {
			if p.good(v) {
				return v.header
			}
			delete(p.held, k)
		}
	}
	return ""
}

// drop forgets a header that was refused.
func (p *passes) drop(host, header string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, v := range p.held {
		if k.host == host && v.header == header {
			delete(p.held, k)
		}
	}
}

// obtain gives the header for k, which one of those who want it at once makes; that it
// cannot be had is so for all of them. It is held for each of also, besides.
func (p *passes) obtain(ctx context.Context, k passKey, also []passKey, fetch func() (pass, error)) (string, error) {
	for {
		p.mu.Lock()
		if v, ok := p.held[k]; ok && p.good(v) {
			p.mu.Unlock()
			return v.header, nil
		}
		other := p.making[k]
		if other == nil {
			break // and p.mu is held
		}
		p.mu.Unlock()
		select {
		case <-other.done:
			if other.err != nil {
				return "", other.err
			}
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	m := &making{done: make(chan struct{})}
	p.making[k] = m
	p.mu.Unlock()
	defer func() { // also where fetch panics
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.making, k)
		close(m.done)
	}()
	v, err := fetch()
	if err != nil {
		if ctx.Err() == nil { // else that is this one's own end
			m.err = err
		}
		return "", err
	}
	p.hold(v, append(also, k))
	return v.header, nil
}

func (p *passes) hold(v pass, keys []passKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.held) >= maxPasses {
		clear(p.held)
	}
	for _, k := range keys {
		p.held[k] = v
	}
}

func (p *passes) good(v pass) bool { return v.expires.IsZero() || p.clock().Before(v.expires) }
