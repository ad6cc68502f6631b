package frontend

import (
	"context"
	"sync"

	"github.com/kiln-build/kiln/llb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Call is one request to a frontend, and what the frontend asked the engine for on
// the way: the provenance of what it made tells of both. A frontend may call
// others. A Call travels with the context of a build; it is safe for concurrent use.
type Call struct {
	// Frontend is its name in BuildKit's API, "dockerfile.v0" for one; empty for a
	// graph, and for a function of a client.
	Frontend string
	Opts     map[string]string
	Inputs   map[string]llb.Edge
	// Caller is the call that made this one; nil for a build's own.
	Caller *Call
	// Makers are the calls that inputs came from, as far as they are known.
	Makers map[string]*Call

	mu     sync.Mutex // guards what is below
	images []Asked
	reads  []llb.Edge
	calls  []*Call
}

// Asked is an image that a frontend asked about.
type Asked struct {
	Image
	Platform *ocispecs.Platform // nil where it named none
	Layout   bool
}

type callKey struct{}

// WithCall gives a context in which what is asked of a bridge is c's asking.
func WithCall(ctx context.Context, c *Call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// CallOf gives the call that a context belongs to, or nil.
func CallOf(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*Call)
	return c
}

// Sub begins a call of another frontend within the one of ctx.
func Sub(ctx context.Context, name string, req Request) (context.Context, *Call) {
	c := &Call{Frontend: name, Opts: req.Opts, Inputs: req.Inputs, Caller: CallOf(ctx)}
	if c.Caller != nil {
		c.Caller.mu.Lock()
		c.Caller.calls = append(c.Caller.calls, c)
		c.Caller.mu.Unlock()
	}
	return WithCall(ctx, c), c
}

// Attributor is what a Bridge is besides, where the engine remembers which call a
// graph came from, while the build of that call goes on. Other builds see it too.
type Attributor interface {
	Attribute(e llb.Edge, by *Call)
	Maker(e llb.Edge) *Call // nil where none is known, or several that differ
}

// Attribute notes which calls made c's inputs.
func (c *Call) Attribute(b Bridge) {
	a, ok := b.(Attributor)
	if !ok {
		return
	}
	for name, e := range c.Inputs {
		if maker := a.Maker(e); maker != nil {
			if c.Makers == nil {
				c.Makers = map[string]*Call{}
			}
			c.Makers[name] = maker
		}
	}
}

// Made notes that the images of a result came from c, unless from another call.
func (c *Call) Made(r *Result) *Result {
	if r == nil {
		return nil
	}
	for i := range r.Images {
		if r.Images[i].Call == nil {
			r.Images[i].Call = c
		}
	}
	return r
}

// Ask notes an image that the frontend asked about.
func (c *Call) Ask(a Asked) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images = append(c.images, a)
}

// Read notes a graph that the frontend had solved.
func (c *Call) Read(e llb.Edge) {
	if c == nil || e.IsScratch() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads = append(c.reads, e)
}

// All gives what the frontend asked for, with that of the frontends that it called.
func (c *Call) All() (images []Asked, reads []llb.Edge) {
	c.mu.Lock()
	images, reads = append(images, c.images...), append(reads, c.reads...)
	calls := append([]*Call(nil), c.calls...)
	c.mu.Unlock()
	for _, sub := range calls {
		i, r := sub.All()
		images, reads = append(images, i...), append(reads, r...)
	}
	return images, reads
}

// Root gives the first call above c that asked for something at all; nil is none.
func (c *Call) Root() *Call {
	var root *Call
	for at := c.Caller; at != nil; at = at.Caller {
		if at.Frontend != "" || len(at.Opts) > 0 || len(at.Inputs) > 0 {
			root = at
		}
	}
	return root
}
