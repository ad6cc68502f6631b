package worker

import (
	"context"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/source"
)

// lentBy is a job that has what one session lends, and no vertex.
func lentBy(id solver.SessionID) *solver.Job {
	return &solver.Job{Sessions: func() []solver.SessionID { return []solver.SessionID{id} }}
}

// DescribeGit says what a git source stands for, asked for with what a session
// lends; the session's later steps see the same. The bytes of the commit and its
// tag come along where they are asked for.
func (w *Worker) DescribeGit(ctx context.Context, id solver.SessionID, op *pb.SourceOp, objects bool) (source.GitDescription, error) {
	return w.git.Describe(ctx, lentBy(id), op, objects)
}

// DescribeHTTP says what a URL stands for, as DescribeGit does of a commit.
func (w *Worker) DescribeHTTP(ctx context.Context, id solver.SessionID, op *pb.SourceOp) (source.HTTPDescription, error) {
	return w.web.Describe(ctx, lentBy(id), op)
}

// ChecksumHTTP gives a digest of what DescribeHTTP describes, with a suffix behind it.
func (w *Worker) ChecksumHTTP(ctx context.Context, id solver.SessionID, op *pb.SourceOp, algorithm string, suffix []byte) (string, error) {
	return w.web.Checksum(ctx, lentBy(id), op, algorithm, suffix)
}
