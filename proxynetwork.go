package kiln

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/exporter/provenance"
	"github.com/kiln-build/kiln/llb"
)

// network gives the mode of a process's network that stands in the place of m.
func (b *build) network(m pb.NetMode) pb.NetMode {
	if b.proxied {
		return llb.Proxied(m)
	}
	return m
}

// requests judges what the steps of a build ask the proxy network for, as if each
// request were a source.
type requests struct{ *build }

// Admit holds a request for a URL against the build's policies, which may put another
// in its place.
func (r requests) Admit(ctx context.Context, url string) (string, error) {
	if r.guard.set.Empty() && r.guard.check == nil {
		return url, nil
	}
	op := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: url}}}
	if _, err := r.judge(ctx, r.guard.set, op); err != nil {
		return "", err
	}
	if len(op.GetSource().Attrs) > 0 {
		return "", fmt.Errorf("the policies set attributes for %s, which a step's request has none of", url)
	}
	return op.GetSource().Identifier, nil
}

// fetched notes what the steps of an image's graph fetched over the proxy network.
// chains are what vertices came to, where that is known.
func (b *build) fetched(c *provenance.Capture, e llb.Edge, chains map[llb.Digest][]cache.ChainID) {
	for _, v := range llb.Walk(e) {
		if !llb.IsProxied(v.Op().GetExec().GetNetwork()) {
			continue
		}
		r := b.engine.worker.Fetched(v, chains[v.Digest()])
		for _, f := range r.Files {
			c.AddHTTP(provenance.HTTP{URL: f.URL, Digest: f.Digest})
		}
		for _, m := range r.Missed {
			c.AddMissed(v, provenance.Missed{Method: m.Method, URI: m.URL, Reason: m.Reason})
		}
	}
}
