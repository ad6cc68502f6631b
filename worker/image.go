package worker

import (
	"context"
	"fmt"
	"strconv"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/source"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageSource is "docker-image://…". Its pin is the digest of the manifest for
// the op's platform.
type imageSource struct{ w *Worker }

var _ Source = (*imageSource)(nil)

// platformOf gives the platform that a vertex is for; unset is the machine's.
func platformOf(p *pb.Platform) ocispecs.Platform {
	if p == nil {
		return ocispecs.Platform{}
	}
	return ocispecs.Platform{
		OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures,
	}
}

// imageKey is under what a session remembers a resolved image.
func imageKey(op *pb.SourceOp, p *pb.Platform, pin string) string {
	return op.Identifier + "\x00" + p.String() + "\x00" + pin
}

// Pin resolves the image.
func (s *imageSource) Pin(ctx context.Context, job *solver.Job, op *pb.SourceOp) (string, error) {
	mode, err := source.ParseMode(op.Attrs[pb.AttrImageResolveMode])
	if err != nil {
		return "", err
	}
	platform := job.Vertex.Op().Platform
	img, err := s.w.images.Resolve(ctx, s.w.credentials(job), refOf(op), platformOf(platform), mode)
	if err != nil {
		return "", err
	}
	pin := img.Manifest.Digest.String()
	if want := op.Attrs[pb.AttrImageChecksum]; want != "" && want != pin && want != img.Digest.String() {
		return "", fmt.Errorf("image digest %s for %s does not match expected checksum %s", img.Digest, img.Ref, want)
	}
	for _, sess := range s.w.of(job) {
		sess.mu.Lock()
		sess.images[imageKey(op, platform, pin)] = img
		sess.mu.Unlock()
	}
	return pin, nil
}

// Chain gives the chain of a resolved image. No layer is fetched.
func (s *imageSource) Chain(ctx context.Context, job *solver.Job, op *pb.SourceOp, pin string) (cache.ChainID, error) {
	limit := 0
	if v := op.Attrs[pb.AttrImageLayerLimit]; v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n <= 0 {
			return cache.ChainID{}, fmt.Errorf("invalid layer limit %q", v)
		}
		limit = n
	}
	img, err := s.resolved(ctx, job, op, pin)
	if err != nil {
		return cache.ChainID{}, err
	}
	id, _, err := s.w.images.Chain(ctx, img, limit)
	return id, err
}

func (s *imageSource) resolved(ctx context.Context, job *solver.Job, op *pb.SourceOp, pin string) (source.Image, error) {
	platform := job.Vertex.Op().Platform
	key := imageKey(op, platform, pin)
	for _, sess := range s.w.of(job) {
		sess.mu.Lock()
		img, ok := sess.images[key]
		sess.mu.Unlock()
		if ok {
			return img, nil
		}
	}
	img, err := s.w.images.Resolve(ctx, s.w.credentials(job), refOf(op), platformOf(platform), source.ModeDefault)
	if err == nil && img.Manifest.Digest.String() != pin {
		err = fmt.Errorf("image %s changed from %s to %s during the build", img.Ref, pin, img.Manifest.Digest)
	}
	return img, err
}
