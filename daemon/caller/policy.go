package caller

import (
	"context"
	"errors"
	"fmt"
	"maps"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"
)

// maxPolicyCalls bounds how often a client is asked about one source: it may ask
// back, and convert the source, in circles.
const maxPolicyCalls = 10

// Describe answers what a client asks back about a source.
type Describe func(ctx context.Context, req *gwpb.ResolveSourceMetaRequest) (*gwpb.ResolveSourceMetaResponse, error)

// CheckSource asks the client whether a build may read a source. The client may ask
// back what the source stands for, and put another in its place, which changes op
// and is to be judged again.
func (c *Caller) CheckSource(ctx context.Context, op *pb.Op, describe Describe) (converted bool, err error) {
	conn, err := c.get(ctx)
	if err != nil {
		return false, err
	}
	verifier := policysession.NewPolicyVerifierClient(conn.Conn())
	source := op.GetSource()
	req := &policysession.CheckPolicyRequest{Platform: op.Platform, Source: &gwpb.ResolveSourceMetaResponse{Source: source}}
	for range maxPolicyCalls {
		resp, err := verifier.CheckPolicy(conn.Context(ctx), req)
		if err != nil {
			return false, fmt.Errorf("asking the client about the source %s: %w", source.Identifier, err)
		}
		if ask := resp.GetRequest(); ask != nil {
			if ask.Source.GetIdentifier() != source.Identifier || !maps.Equal(ask.Source.GetAttrs(), source.Attrs) {
				return false, fmt.Errorf("the client was asked about the source %s, and asks back about %s", source.Identifier, ask.Source.GetIdentifier())
			}
			if req.Source, err = describe(ctx, ask); err != nil {
				return false, fmt.Errorf("error resolving source metadata from policy request: %w", err)
			}
			continue
		}
		d := resp.GetDecision()
		switch {
		case d == nil:
			return false, errors.New("no decision in policy response")
		case d.Action == spb.PolicyAction_CONVERT && d.Update == nil:
			return false, errors.New("convert action requires updated source")
		case d.Action == spb.PolicyAction_CONVERT:
			source.Identifier, source.Attrs = d.Update.Identifier, d.Update.Attrs
			return true, nil
		case d.Action == spb.PolicyAction_ALLOW:
			return false, nil
		default:
			return false, &DeniedError{Source: source.Identifier, Decision: d}
		}
	}
	return false, fmt.Errorf("too many policy requests about the source %s", source.Identifier)
}

// DeniedError says that the client does not let its build read a source.
type DeniedError struct {
	Source   string
	Decision *policysession.DecisionResponse
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("source %q not allowed by policy: action %s", e.Source, e.Decision.Action)
}

// Detail gives the client its own reasons back, as a typed detail of the error.
func (e *DeniedError) Detail() (kind string, value any) {
	return "policysession.DecisionResponse+json", &policysession.DecisionResponse{Action: spb.PolicyAction_DENY, DenyMessages: e.Decision.DenyMessages}
}
