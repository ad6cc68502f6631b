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
	making map[passKey]chan struct{} // closed when the one who makes it is done
}

// passKey is what a pass is good for. Of passwords the scope is empty.
type passKey struct{ host, scope string }

// maxPasses bounds how many passes are held for one Credentials: a daemon's own may
// see any number of repositories.
const maxPasses = 1000

func newPasses(clock func() time.Time) *passes {
	return &passes{clock: clock, held: map[passKey]pass{}, making: map[passKey]chan struct{}{}}
}

// get gives the header for a scope: a token, or the password of the host.
func (p *passes) get(host, scope string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range [2]passKey{{host, scope}, {host, ""}} {
		if v, ok := p.held[k]; ok {
			if v.expires.IsZero() || p.clock().Before(v.expires) {
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

// obtain gives the header for k, which one of those who want it at once makes.
// It is held for each of also, besides.
func (p *passes) obtain(ctx context.Context, k passKey, also []passKey, fetch func() (pass, error)) (string, error) {
	for {
		p.mu.Lock()
		if v, ok := p.held[k]; ok && (v.expires.IsZero() || p.clock().Before(v.expires)) {
			p.mu.Unlock()
			return v.header, nil
		}
		busy, ok := p.making[k]
		if !ok {
			break // and p.mu is held
		}
		p.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	busy := make(chan struct{})
	p.making[k] = busy
	p.mu.Unlock()
	v, err := fetch()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.making, k)
	close(busy)
	if err != nil {
		return "", err
	}
	if len(p.held) >= maxPasses {
		clear(p.held)
	}
	for _, k := range append(also, k) {
		p.held[k] = v
	}
	return v.header, nil
}
