package remote

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/moby/buildkit/client"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"

	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/request"
)

// Graphs has the daemon's frontend compile a request, and gives the graph of each
// image, in the order of the platforms' names. No step runs but what the frontend
// asks for on the way.
func (c *Client) Graphs(ctx context.Context, r *request.Request) ([]llb.Edge, error) {
	var out []llb.Edge
	err := c.run(ctx, r, func(*client.SolveStatus) {}, func(ctx context.Context, opt *client.SolveOpt, ch chan *client.SolveStatus) error {
		ask := gwclient.SolveRequest{Frontend: opt.Frontend, FrontendOpt: opt.FrontendAttrs}
		opt.Frontend, opt.FrontendAttrs = "", nil
		_, err := c.conn.Build(ctx, *opt, "", func(ctx context.Context, g gwclient.Client) (*gwclient.Result, error) {
			res, err := g.Solve(ctx, ask)
			if err != nil {
				return nil, err
			}
			refs := res.Refs
			if len(refs) == 0 && res.Ref != nil {
				refs = map[string]gwclient.Reference{"": res.Ref}
			}
			if len(refs) == 0 {
				return nil, errors.New("the frontend made no image")
			}
			for _, platform := range slices.Sorted(maps.Keys(refs)) {
				e, err := graph(ctx, refs[platform])
				if err != nil {
					return nil, fmt.Errorf("taking the graph from the frontend: %w", err)
				}
				out = append(out, e)
			}
			return gwclient.NewResult(), nil
		}, ch)
		return err
	})
	return out, err
}

// graph gives what a reference was compiled to. An empty one is scratch.
func graph(ctx context.Context, ref gwclient.Reference) (llb.Edge, error) {
	if ref == nil {
		return llb.Edge{}, nil
	}
	state, err := ref.ToState()
	if err != nil {
		return llb.Edge{}, err
	}
	def, err := state.Marshal(ctx)
	if err != nil || len(def.Def) == 0 {
		return llb.Edge{}, err
	}
	return llb.Load(def.ToPB())
}
