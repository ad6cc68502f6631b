package frontend

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/kiln-build/kiln/llb"
)

// SourceResolver is what a Bridge is besides, where sources of any kind can be
// described before they are read. What a build was told of a source stays so for it.
type SourceResolver interface {
	ResolveSource(ctx context.Context, op *pb.SourceOp, o SourceOptions) (SourceMeta, error)
}

// Admitter is what a Bridge is besides, where a build has source policies. Those of
// the build itself hold in any case.
type Admitter interface {
	// Admit gives the graphs with each source as the policies have it.
	Admit(ctx context.Context, policies []*spb.Policy, edges ...llb.Edge) ([]llb.Edge, error)
}

// Cache is a cache of other machines, in the attribute names that BuildKit's clients
// send.
type Cache struct {
	Type  string
	Attrs map[string]string
}

// CacheReader is what a Bridge is besides, where the engine can look results up in
// caches that a frontend names.
type CacheReader interface {
	// ReadCaches has the rest of the build read caches besides those that it reads
	// already. One that cannot be read is a warning.
	ReadCaches(ctx context.Context, caches []Cache) error
}

// SourceOptions say what is asked about a source, and under which further policies.
type SourceOptions struct {
	ResolveOptions // of images and layouts
	Policies       []*spb.Policy
	GitObjects     bool // give the bytes of the commit and of its tag
	// Checksum asks for another digest of a file ("sha512" for one), with a suffix
	// behind the file's bytes.
	Checksum       string
	ChecksumSuffix []byte
	// Attested asks for what is said of an image beside it, and Predicates for the
	// statements with predicates of these types.
	Attested   bool
	Predicates []string
}

// SourceMeta says what a source stands for. One of the pointers is set.
type SourceMeta struct {
	Op    *pb.SourceOp // as policies have it
	Image *Image
	Git   *GitMeta
	HTTP  *HTTPMeta
	// Attested goes with Image, where it was asked for and the image is in an index.
	Attested *Attested
}

// Attested is what is said of an image beside it: the digests of the index, of the
// manifest of the platform's image, and of that of its attestations, which is empty
// where there are none; and the bytes of those that matter.
type Attested struct {
	Root, Image, Manifest string
	Blobs                 []AttestedBlob
}

// AttestedBlob is a document, by its descriptor.
type AttestedBlob struct {
	MediaType, Digest string
	Annotations       map[string]string
	Data              []byte
}

// GitMeta is what a git source stands for.
type GitMeta struct {
	Ref      string // in full, "refs/tags/v1"
	Checksum string // what the ref names: a commit, or an annotated tag
	Commit   string // the commit of an annotated tag; else empty
	// CommitObject and TagObject are there where they were asked for.
	CommitObject, TagObject []byte
}

// HTTPMeta is what a URL stands for.
type HTTPMeta struct {
	Digest   string
	Filename string
	Modified time.Time // zero where the server does not say
	Checksum string    // where it was asked for
}

// ReplacedError says that policies put something that is no image in an image's place.
type ReplacedError struct {
	Ref string // of the image
	By  string // the identifier of the other source, "local://NAME" for one
}

func (e *ReplacedError) Error() string {
	return fmt.Sprintf("the policies put %s in the place of %s, which is no image", e.By, e.Ref)
}
