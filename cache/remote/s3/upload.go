package s3

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/kiln-build/kiln/cache/blob"
)

// retryer tries again soon or not at all.
func retryer() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = attempts, maxBackoff })
}

// upload sends a blob.
func (s *Store) upload(ctx context.Context, c *s3.Client, key string, d blob.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	if d.Size > maxPut {
		return s.uploadParts(ctx, c, key, d, open)
	}
	var err error
	for try := range attempts {
		var r io.ReadCloser
		if r, err = open(ctx); err != nil {
			return err
		}
		// A stream cannot be sent twice, so an attempt of the SDK's is one of ours.
		_, err = c.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &s.opt.Bucket, Key: &key, Body: io.LimitReader(r, d.Size), ContentLength: &d.Size, ContentType: &d.MediaType,
		}, once, withPayload(d.Digest))
		r.Close()
		if err == nil || ctx.Err() != nil || !worthRetrying(err) {
			break
		}
		if werr := wait(ctx, time.Duration(try+1)*200*time.Millisecond); werr != nil {
			return werr
		}
	}
	return s.explain("writing", key, err)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// worthRetrying says whether the same request may go better.
func worthRetrying(err error) bool {
	status := statusOf(err)
	return status == 0 || status == 408 || status == 429 || status >= 500
}

func once(o *s3.Options) { o.Retryer = aws.NopRetryer{} }

// withPayload signs a request with the digest that its body is known to have, so
// that the body is read once, and the server checks it.
func withPayload(d blob.Digest) func(*s3.Options) {
	set := middleware.FinalizeMiddlewareFunc("KnownPayload", func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
		return next.HandleFinalize(v4.SetPayloadHash(ctx, hex.EncodeToString(d[:])), in)
	})
	return func(o *s3.Options) {
		o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
			return stack.Finalize.Insert(set, (&v4.ComputePayloadSHA256{}).ID(), middleware.Before)
		})
	}
}

// maxParts is how many parts an object may have.
const maxParts = 10_000

// uploadParts sends a blob that is too large for one request.
func (s *Store) uploadParts(ctx context.Context, c *s3.Client, key string, d blob.Descriptor, open func(context.Context) (io.ReadCloser, error)) (err error) {
	r, err := open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	begun, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &s.opt.Bucket, Key: &key, ContentType: &d.MediaType})
	if err != nil {
		return s.explain("writing", key, err)
	}
	defer func() {
		if err != nil {
			// Also when the build was cancelled: parts of it would be paid for until
			// somebody finds them.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_, aerr := c.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.opt.Bucket, Key: &key, UploadId: begun.UploadId})
			err = errors.Join(err, aerr)
		}
	}()
	parts, err := s.sendParts(ctx, c, key, begun.UploadId, d, r)
	if err != nil {
		return s.explain("writing", key, err)
	}
	_, err = c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &s.opt.Bucket, Key: &key, UploadId: begun.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	return s.explain("writing", key, err)
}

func (s *Store) sendParts(ctx context.Context, c *s3.Client, key string, upload *string, d blob.Descriptor, r io.Reader) (parts []types.CompletedPart, err error) {
	buf := make([]byte, max(64<<20, (d.Size+maxParts-1)/maxParts))
	for left, n := d.Size, int32(1); left > 0; n++ {
		piece := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(r, piece); err != nil {
			return nil, fmt.Errorf("reading the blob: %w", err)
		}
		out, err := c.UploadPart(ctx, &s3.UploadPartInput{
			Bucket: &s.opt.Bucket, Key: &key, UploadId: upload, PartNumber: &n, Body: bytes.NewReader(piece),
		})
		if err != nil {
			return nil, err
		}
		parts = append(parts, types.CompletedPart{ETag: out.ETag, PartNumber: aws.Int32(n)})
		left -= int64(len(piece))
	}
	return parts, nil
}

// copySource names an object to be copied.
type copySource struct{ bucket, key string }

func (c *copySource) String() string {
	return (&url.URL{Path: c.bucket + "/" + c.key}).EscapedPath()
}
