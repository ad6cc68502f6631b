package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/request"
)

const (
	// statementType is the media type of what is said of images, and predicateNote
	// is where a descriptor says what kind of thing is said.
	statementType = "application/vnd.in-toto+json"
	predicateNote = "in-toto.io/predicate-type"
	// provenanceTypes is what the types of provenance begin with.
	provenanceTypes = "https://slsa.dev/provenance/"
	// maxProvenance bounds a document that a daemon sends.
	maxProvenance = 64 << 20
)

// provenance reads what a build's images were built from out of the record that the
// daemon keeps of it. A daemon that keeps none has nothing to say.
func (c *Client) provenance(ctx context.Context, ref string) ([]request.Provenance, error) {
	list, err := c.conn.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true})
	if err != nil {
		return nil, err
	}
	var out []request.Provenance
	for {
		e, err := list.Recv()
		switch {
		case errors.Is(err, io.EOF), grpcerrors.Code(err) == codes.Unimplemented:
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("asking %s for the record of the build: %w", c.url, err)
		}
		r := e.GetRecord()
		if r == nil || r.Ref != ref {
			continue
		}
		results := r.Results
		if len(results) == 0 && r.Result != nil {
			results = map[string]*controlapi.BuildResultInfo{"": r.Result}
		}
		for platform, result := range results {
			p, ok, err := c.provenanceOf(ctx, result)
			if err != nil {
				return nil, err
			}
			if p.Platform = platform; ok {
				out = append(out, p)
			}
		}
	}
}

// provenanceOf reads the document of one image.
func (c *Client) provenanceOf(ctx context.Context, result *controlapi.BuildResultInfo) (request.Provenance, bool, error) {
	for _, a := range result.GetAttestations() {
		kind := a.Annotations[predicateNote]
		if a.MediaType != statementType || !strings.HasPrefix(kind, provenanceTypes) {
			continue
		}
		if a.Size < 0 || a.Size > maxProvenance {
			return request.Provenance{}, false, fmt.Errorf("the provenance at %s is of %d bytes", c.url, a.Size)
		}
		desc := ocispecs.Descriptor{MediaType: a.MediaType, Digest: digest.Digest(a.Digest), Size: a.Size}
		data, err := content.ReadBlob(ctx, proxy.NewContentStore(c.conn.ContentClient()), desc)
		if err != nil {
			return request.Provenance{}, false, fmt.Errorf("reading the provenance at %s: %w", c.url, err)
		}
		if got := digest.FromBytes(data); got != desc.Digest {
			return request.Provenance{}, false, fmt.Errorf("%s sent bytes with the digest %s instead of %s", c.url, got, desc.Digest)
		}
		return request.Provenance{Type: kind, Data: data}, true, nil
	}
	return request.Provenance{}, false, nil
}
