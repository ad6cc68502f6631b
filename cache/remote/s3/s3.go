// Package s3 keeps remote caches in buckets of Amazon's S3 and of servers that
// speak its protocol: MinIO, Cloudflare's R2, Backblaze's B2.
//
// Blobs are objects called by their digests, below a prefix that several caches may
// share; a cache's name is an object that holds the manifest. Names are changed
// with conditional writes, so that of two exports at the same moment the later one
// finds out. A server that knows no conditions is found out too, and the export
// then looks again, as package remote does for all stores of that kind.
package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/cache/remote"
	"github.com/kiln-build/kiln/cache/remote/internal/pace"
)

// Options say which bucket, and how it is reached. Bucket and Name are needed.
type Options struct {
	Bucket string
	// Region is where the bucket is; empty is what the SDK's configuration says.
	Region string
	// Endpoint is the address of another server than Amazon's; empty is what the
	// SDK's configuration says.
	Endpoint string
	// BlobsPrefix and ManifestsPrefix are where objects lie; Name is the cache's.
	BlobsPrefix, ManifestsPrefix, Name string
	// KeyID, Secret and Token are credentials; where KeyID is empty they are looked
	// for as the SDK does: the environment, the shared files, the machine's role.
	KeyID, Secret, Token string
	// PathStyle has the bucket in the path of an address and not in its host.
	PathStyle bool
	// PlainEncoding leaves a header out that Google's servers change on the way,
	// which makes the signature wrong.
	PlainEncoding bool
	// Touch is the age at which an object that is still used is written again, for
	// buckets that remove what is old; 0 is a day.
	Touch time.Duration
	// Patience is how long the server may stand still; 0 is 15 s.
	Patience time.Duration
	// Clock tells the time; nil is time.Now.
	Clock func() time.Time
}

const (
	// attempts is how often a request is made that fails.
	attempts = 3
	// maxBackoff keeps attempts close: a build can do without its cache.
	maxBackoff = 2 * time.Second
	// maxPut is the largest object that one request may write.
	maxPut = 5 << 30
)

// Store is a cache in a bucket. It is safe for concurrent use.
type Store struct {
	opt Options
	// connect reads the configuration and makes the client, when it is first wanted.
	connect func() (*s3.Client, error)

	mu    sync.Mutex // guards what follows
	etags map[blob.Digest]string
	// conditional says whether the server minds conditions; unknown until it was asked.
	conditional *bool
}

var _ remote.Target = (*Store)(nil)

// New gives a cache. Nothing is read before it is used.
func New(o Options) (*Store, error) {
	if u, err := url.Parse(o.Endpoint); o.Endpoint != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil) {
		return nil, errors.New("endpoint_url: want http://HOST or https://HOST")
	}
	if o.Touch == 0 {
		o.Touch = 24 * time.Hour
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	s := &Store{opt: o, etags: map[blob.Digest]string{}}
	s.connect = sync.OnceValues(s.client)
	return s, nil
}

// Name gives what people call the cache.
func (s *Store) Name() string {
	return "s3://" + s.opt.Bucket + "/" + s.opt.ManifestsPrefix + s.opt.Name
}

// Place gives all that chooses which objects are the cache's.
func (s *Store) Place() string {
	o := s.opt
	return strings.Join([]string{o.Endpoint, o.Region, o.Bucket, o.BlobsPrefix, o.ManifestsPrefix, o.Name}, "\x00")
}

func (s *Store) client() (*s3.Client, error) {
	// Finding credentials may ask other servers; it must not hang either.
	ctx, cancel := context.WithTimeout(context.Background(), pace.After)
	defer cancel()
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRegion(s.opt.Region),
		// Servers other than Amazon's know no checksums of other kinds than those that
		// are part of the signature.
		awsconfig.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		awsconfig.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	if s.opt.KeyID != "" {
		options = append(options, awsconfig.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(s.opt.KeyID, s.opt.Secret, s.opt.Token)))
	}
	c, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of AWS: %w", err)
	}
	if c.Region == "" {
		if s.opt.Endpoint == "" {
			return nil, errors.New("region=REGION (or AWS_REGION) is missing")
		}
		c.Region = "us-east-1" // which servers other than Amazon's take for their own
	}
	return s3.NewFromConfig(c, func(o *s3.Options) {
		if s.opt.PlainEncoding {
			o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
				_, err := stack.Finalize.Remove("DisableAcceptEncodingGzip")
				return err
			})
		}
		o.HTTPClient = &http.Client{Transport: pace.New(s.opt.Patience)}
		o.UsePathStyle = s.opt.PathStyle
		o.RetryMaxAttempts = attempts
		o.Retryer = retryer()
		if s.opt.Endpoint != "" {
			o.BaseEndpoint = aws.String(s.opt.Endpoint)
		}
	}), nil
}

// blobKey names a blob's object.
func (s *Store) blobKey(d blob.Digest) string { return s.opt.BlobsPrefix + d.String() }

func (s *Store) nameKey() string { return s.opt.ManifestsPrefix + s.opt.Name }

// explain says in the standard library's way that there is no such object, and
// leaves out what only the SDK's authors want to know.
func (s *Store) explain(doing, key string, err error) error {
	if err == nil {
		return nil
	}
	var api smithy.APIError
	if statusOf(err) == http.StatusNotFound {
		return fmt.Errorf("%s s3://%s/%s: %w", doing, s.opt.Bucket, key, errors.Join(fs.ErrNotExist, plain(err)))
	}
	if errors.As(err, &api) {
		return fmt.Errorf("%s s3://%s/%s: %w", doing, s.opt.Bucket, key, plain(err))
	}
	return fmt.Errorf("%s s3://%s/%s: %w", doing, s.opt.Bucket, key, err)
}

// plain gives the server's own words.
func plain(err error) error {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return err
	}
	if api.ErrorMessage() == "" {
		return errors.New("the server answered " + api.ErrorCode())
	}
	return fmt.Errorf("the server answered %s: %s", api.ErrorCode(), api.ErrorMessage())
}

// statusOf gives the status that the server answered with, or 0.
func statusOf(err error) int {
	var r interface{ HTTPStatusCode() int }
	if errors.As(err, &r) {
		return r.HTTPStatusCode()
	}
	return 0
}

// Manifest makes a Store a remote.Store.
func (s *Store) Manifest(ctx context.Context, d blob.Digest) ([]byte, error) {
	key := s.nameKey()
	if !d.IsZero() {
		key = s.blobKey(d)
	}
	c, err := s.connect()
	if err != nil {
		return nil, err
	}
	out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.opt.Bucket, Key: &key})
	if err != nil {
		return nil, s.explain("reading", key, err)
	}
	defer out.Body.Close()
	data, err := remote.ReadManifest(out.Body, d)
	if err == nil && out.ContentLength != nil && *out.ContentLength != int64(len(data)) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, s.explain("reading", key, err)
	}
	if d.IsZero() && out.ETag != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.etags[sha256.Sum256(data)] = *out.ETag
	}
	return data, nil
}

// Blob makes a Store a remote.Store.
func (s *Store) Blob(ctx context.Context, d blob.Descriptor, offset int64) (io.ReadCloser, error) {
	c, err := s.connect()
	if err != nil {
		return nil, err
	}
	key := s.blobKey(d.Digest)
	in := &s3.GetObjectInput{Bucket: &s.opt.Bucket, Key: &key}
	if offset > 0 {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	out, err := c.GetObject(ctx, in)
	if err != nil {
		return nil, s.explain("reading", key, err)
	}
	if offset > 0 && (out.ContentRange == nil || *out.ContentRange == "") {
		// A server that knows no ranges sends all of it.
		if _, err := io.CopyN(io.Discard, out.Body, offset); err != nil {
			return nil, s.explain("reading", key, errors.Join(err, out.Body.Close()))
		}
	}
	return out.Body, nil
}

// Put makes a Store a remote.Target.
func (s *Store) Put(ctx context.Context, d blob.Descriptor, _ []string, open func(context.Context) (io.ReadCloser, error)) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	key := s.blobKey(d.Digest)
	head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.opt.Bucket, Key: &key})
	switch {
	case err == nil && head.ContentLength != nil && *head.ContentLength == d.Size:
		return s.touch(ctx, c, key, head)
	case err != nil && statusOf(err) != http.StatusNotFound && statusOf(err) != http.StatusForbidden:
		// Without the right to list a bucket, what is not there is forbidden.
		return s.explain("looking for", key, err)
	}
	return s.upload(ctx, c, key, d, open)
}

// touch writes an object that is old once more, without sending it.
func (s *Store) touch(ctx context.Context, c *s3.Client, key string, head *s3.HeadObjectOutput) error {
	if head.LastModified == nil || s.opt.Clock().Sub(*head.LastModified) < s.opt.Touch {
		return nil
	}
	source := (&copySource{s.opt.Bucket, key}).String()
	_, err := c.CopyObject(ctx, &s3.CopyObjectInput{
		Bucket: &s.opt.Bucket, Key: &key, CopySource: &source, MetadataDirective: types.MetadataDirectiveReplace,
	})
	if err != nil && ctx.Err() == nil {
		return nil // it is there, which is what was asked for
	}
	return err
}

// Commit makes a Store a remote.Target.
func (s *Store) Commit(ctx context.Context, d blob.Descriptor, manifest []byte, old blob.Digest) (sure bool, err error) {
	c, err := s.connect()
	if err != nil {
		return false, err
	}
	etag, ok := s.etag(old)
	if !ok && !old.IsZero() {
		// The index was read by another store, that of an import for one.
		if remote.Changed(ctx, s, old) {
			return false, fmt.Errorf("%s: %w", s.Name(), remote.ErrChanged)
		}
		etag, _ = s.etag(old)
	}
	in := s.putInput(s.nameKey(), d, manifest)
	if old.IsZero() {
		in.IfNoneMatch = aws.String("*")
	} else if etag != "" {
		in.IfMatch = &etag
	}
	_, err = c.PutObject(ctx, in)
	switch status := statusOf(err); {
	case err == nil:
		return s.minds(ctx, c, d, manifest), nil
	case status == http.StatusPreconditionFailed || status == http.StatusConflict:
		return false, fmt.Errorf("%s: %w", s.Name(), remote.ErrChanged)
	case status != http.StatusNotImplemented && status != http.StatusBadRequest && status != http.StatusNotFound:
		return false, s.explain("writing", s.nameKey(), err)
	}
	// A server that refuses conditions, or whose object went away meanwhile.
	_, err = c.PutObject(ctx, s.putInput(s.nameKey(), d, manifest))
	return false, s.explain("writing", s.nameKey(), err)
}

func (s *Store) etag(manifest blob.Digest) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	etag, ok := s.etags[manifest]
	return etag, ok
}

func (s *Store) putInput(key string, d blob.Descriptor, data []byte) *s3.PutObjectInput {
	return &s3.PutObjectInput{
		Bucket: &s.opt.Bucket, Key: &key, Body: bytes.NewReader(data), ContentType: &d.MediaType, ContentLength: aws.Int64(int64(len(data))),
	}
}

// minds reports whether the server minds conditions. Amazon's does. Another is
// asked once to write a blob that it is to refuse; should it write, it writes what
// is there, or what might as well be.
func (s *Store) minds(ctx context.Context, c *s3.Client, d blob.Descriptor, manifest []byte) bool {
	if s.opt.Endpoint == "" {
		return true
	}
	s.mu.Lock()
	known := s.conditional
	s.mu.Unlock()
	if known != nil {
		return *known
	}
	in := s.putInput(s.blobKey(d.Digest), d, manifest)
	in.IfMatch = aws.String(`"` + hex.EncodeToString(make([]byte, 16)) + `"`)
	_, err := c.PutObject(ctx, in)
	status := statusOf(err)
	if err != nil && (status == 0 || status >= 500) && status != http.StatusNotImplemented {
		return false // nothing that could be learned from
	}
	// An object that does not exist matches nothing, which some servers say so.
	minds := status == http.StatusPreconditionFailed || status == http.StatusNotFound
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conditional = &minds
	return minds
}
