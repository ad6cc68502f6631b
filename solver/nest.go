package solver

import (
	"context"
	"errors"
	"fmt"

	"github.com/kiln-build/kiln/llb"
)

// A build op makes a graph, and gives what that comes to. Whoever runs it calls Solve
// with the context that Run was called with, and by that the solver knows what waits
// for what: ops that wait for each other in a circle, in one build or in several,
// would wait for ever.

// MaxBuilds bounds build ops that are inside of each other.
const MaxBuilds = 32

var errCircle = errors.New("build operations wait for each other in a circle")

// always says whether a vertex is run whatever the cache holds. A build op is, once in
// a session: what its graph comes to depends on sources that only the graph names, and
// they have to be pinned. The graph's own vertices have their records.
func always(v *llb.Vertex) bool { return v.Meta().IgnoreCache || v.Kind() == "build" }

// recorded says whether what a vertex gave is recorded.
func recorded(v *llb.Vertex) bool { return v.Kind() != "source" && v.Kind() != "build" }

// nestKey is under what a context carries the task that its work is for.
type nestKey struct{}

// nesting gives the context of the worker's call.
func (t *task) nesting() context.Context {
	if t.vertex.Kind() != "build" {
		return t.work.ctx
	}
	return context.WithValue(t.work.ctx, nestKey{}, t)
}

// nest notes which build op the graph is for.
func (b *build) nest(ctx context.Context) error {
	if b.parent, _ = ctx.Value(nestKey{}).(*task); b.parent == nil {
		return nil
	}
	if b.depth = b.parent.depth + 1; b.depth > MaxBuilds {
		return fmt.Errorf("build operations more than %d deep", MaxBuilds)
	}
	return nil
}

// waitedForBy says whether an attempt, or a build op that it waits for, waits for t.
// Solver.mu is held.
func (t *task) waitedForBy(a *attempt) bool {
	seen := make(map[*task]bool)
	stack := []*attempt{a}
	for len(stack) > 0 {
		a := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, u := range a.tasks {
			if u == t {
				return true
			}
			if u.state == running && len(u.work.nested) > 0 && !seen[u] {
				seen[u] = true
				stack = append(stack, u.work.nested...)
			}
		}
	}
	return false
}
