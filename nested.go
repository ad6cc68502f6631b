package kiln

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"sync"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/policy"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
)

// attrPolicy is an attribute that a build operation gets whose sources are held
// against policies. It says which, and keeps the operation from being shared with a
// build that has others: what the graph names is known to the one that runs it only.
const attrPolicy = "kiln.policy"

// nested are the graphs that build operations make in a build, while it goes on.
type nested struct {
	mu      sync.Mutex
	ended   bool
	cancels map[int]context.CancelCauseFunc
	next    int
	group   sync.WaitGroup
	// rules are the policies that hold for the sources of graphs, by attrPolicy.
	rules map[string]nestedRules
}

// nestedRules are policies, and whether they are the build's alone.
type nestedRules struct {
	set *policy.Set
	own bool
}

// begin gives the context for a graph, which ends with the build.
func (n *nested) begin(ctx context.Context) (context.Context, func(), error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return nil, nil, worker.ErrSessionEnded
	}
	ctx, cancel := context.WithCancelCause(ctx)
	id := n.next
	n.next++
	if n.cancels == nil {
		n.cancels = make(map[int]context.CancelCauseFunc)
	}
	n.cancels[id] = cancel
	n.group.Add(1)
	return ctx, func() {
		n.mu.Lock()
		delete(n.cancels, id)
		n.mu.Unlock()
		cancel(nil)
		n.group.Done()
	}, nil
}

// end ends all of them.
func (n *nested) end() {
	n.mu.Lock()
	n.ended = true
	for _, cancel := range n.cancels {
		cancel(worker.ErrSessionEnded)
	}
	n.mu.Unlock()
	n.group.Wait()
}

// mark gives the attrPolicy of build operations in graphs that a set of policies holds
// for. It is nobody else's, and cannot be guessed.
func (n *nested) mark(id solver.SessionID, set *policy.Set, own bool) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, r := range n.rules {
		if own && r.own {
			return name
		}
	}
	if n.rules == nil {
		n.rules = make(map[string]nestedRules)
	}
	sum := sha256.Sum256([]byte("policy\x00" + string(id) + "\x00" + strconv.Itoa(len(n.rules))))
	name := hex.EncodeToString(sum[:16])
	n.rules[name] = nestedRules{set, own}
	return name
}

// marked says whether a build operation has policies of this build already: a graph
// that was solved for a frontend comes again in the result.
func (n *nested) marked(op *pb.BuildOp) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.rules[op.Attrs[attrPolicy]]
	return ok
}

// markBuilds gives v with the attribute, where it is a build operation.
func (n *nested) markBuilds(v *llb.Vertex, mark func() string) (*llb.Vertex, error) {
	if v.Kind() != "build" || n.marked(v.Op().GetBuild()) {
		return v, nil
	}
	op := proto.Clone(v.Op()).(*pb.Op)
	if op.GetBuild().Attrs == nil {
		op.GetBuild().Attrs = map[string]string{}
	}
	op.GetBuild().Attrs[attrPolicy] = mark()
	return llb.New(op, v.Inputs(), v.Meta())
}

// BuildGraph solves a graph that a build operation made, as a part of this build.
func (b *build) BuildGraph(ctx context.Context, op *llb.Vertex, lease solver.Lease, def *pb.Definition) (cache.ChainID, error) {
	var none cache.ChainID
	ctx, done, err := b.nested.begin(ctx)
	if err != nil {
		return none, err
	}
	defer done()
	edge, err := llb.Load(def)
	if err != nil || edge.IsScratch() {
		return none, err
	}
	edges, err := b.admitNested(ctx, op, edge)
	if err == nil {
		err = b.engine.worker.Entitled(b.session, edges...)
	}
	if err != nil {
		return none, err
	}
	b.mu.Lock()
	b.edges = append(b.edges, edges...)
	b.mu.Unlock()
	chains, err := b.engine.solver.Solve(ctx, solver.Request{Session: b.session, Edges: edges, Lease: lease, Observe: b.emit, Report: b.collect})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return none, err
	}
	b.lease.Hold(chains[0])
	return chains[0], nil
}

// admitNested gives the graph with each source as the policies have it that hold for
// the build operation.
func (b *build) admitNested(ctx context.Context, op *llb.Vertex, edge llb.Edge) ([]llb.Edge, error) {
	edges := []llb.Edge{edge}
	b.nested.mu.Lock()
	r, ok := b.nested.rules[op.Op().GetBuild().Attrs[attrPolicy]]
	b.nested.mu.Unlock()
	switch {
	case ok:
		return b.admitUnder(ctx, r.set, r.own, edges)
	case b.guard.set.Empty() && b.guard.check == nil && !b.proxied:
		return edges, nil
	}
	return nil, errors.New("a build operation whose sources were not held against the build's policies")
}

var _ worker.Graphs = (*build)(nil)
