package source

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil/gitobject"
	"github.com/moby/buildkit/util/gitutil/gitsign"
	"github.com/moby/buildkit/util/pgpsign"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/solver"
)

// Signatures that a graph asks for are verified whenever its sources are pinned, in
// every build: neither the files of a commit nor a file that somebody else has fetched
// before say anything about them.

// signedBy says by whom a commit, or the annotated tag that names it, has to be signed.
type signedBy struct {
	key []byte // PGP keys in armour, or an SSH key as a line of authorized_keys
	// rejectExpired refuses signatures of keys that have expired by now.
	rejectExpired bool
	// requireTag refuses a commit without a signed tag, and ignoreTag looks at the
	// commit's own signature only.
	requireTag, ignoreTag bool
}

// set takes one attribute, and reports whether it is one of these.
func (s *signedBy) set(name, value string) bool {
	switch name {
	case pb.AttrGitSignatureVerifyPubKey:
		s.key = []byte(value)
	case pb.AttrGitSignatureVerifyRejectExpired:
		s.rejectExpired = value == "true"
	case pb.AttrGitSignatureVerifyRequireSignedTag:
		s.requireTag = value == "true"
	case pb.AttrGitSignatureVerifyIgnoreSignedTag:
		s.ignoreTag = value == "true"
	default:
		return false
	}
	return true
}

// asked reports whether a signature is to be verified.
func (s *signedBy) asked() bool { return len(s.key) > 0 }

func (s *signedBy) check() error {
	if !s.asked() && (s.rejectExpired || s.requireTag || s.ignoreTag) {
		return fmt.Errorf("a signature is to be verified, and there is no key to do it with: attribute %s", pb.AttrGitSignatureVerifyPubKey)
	}
	if s.requireTag && s.ignoreTag {
		return fmt.Errorf("attributes %s and %s exclude each other", pb.AttrGitSignatureVerifyRequireSignedTag, pb.AttrGitSignatureVerifyIgnoreSignedTag)
	}
	return nil
}

// verify looks for a signature on the tag, if there is one, and else on the commit.
func (s *signedBy) verify(d GitDescription) error {
	tagErr := errors.New("no annotated tag names the commit")
	if len(d.TagObject) > 0 && !s.ignoreTag {
		if tagErr = s.verifyObject(d.TagObject, d.Checksum); tagErr == nil {
			return nil
		}
		tagErr = fmt.Errorf("the signature of the tag %s: %w", d.Ref, tagErr)
	}
	if s.requireTag {
		return fmt.Errorf("a signed tag is required: %w", tagErr)
	}
	commit := d.Checksum
	if d.Commit != "" {
		commit = d.Commit
	}
	if err := s.verifyObject(d.CommitObject, commit); err != nil {
		return fmt.Errorf("the signature of commit %s: %w", commit, err)
	}
	return nil
}

func (s *signedBy) verifyObject(object []byte, name string) error {
	o, err := gitobject.Parse(object)
	if err != nil {
		return err
	}
	if err := o.VerifyChecksum(name); err != nil {
		return err
	}
	return gitsign.VerifySignature(o, s.key, &pgpsign.VerifyPolicy{RejectExpiredKeys: s.rejectExpired})
}

// verify verifies the signature that the op asks for, if it does.
func (s *Git) verify(ctx context.Context, job *solver.Job, g *gitOp, commit string) error {
	if !g.signed.asked() {
		return nil
	}
	d, err := s.describe(ctx, job, g, commit, true)
	if err != nil {
		return err
	}
	if err := g.signed.verify(d); err != nil {
		return fmt.Errorf("%s: %w", redactURL(g.remote), err)
	}
	return nil
}

// fileSignature is a detached PGP signature of a file, in armour, and the keys that it
// may be of.
type fileSignature struct{ key, signature []byte }

// set takes one attribute, and reports whether it is one of these.
func (f *fileSignature) set(name, value string) bool {
	switch name {
	case pb.AttrHTTPSignatureVerifyPubKey:
		f.key = []byte(value)
	case pb.AttrHTTPSignatureVerify:
		f.signature = []byte(value)
	default:
		return false
	}
	return true
}

func (f *fileSignature) check() error {
	if (len(f.key) > 0) != (len(f.signature) > 0) {
		return fmt.Errorf("to verify a signature takes both %s and %s", pb.AttrHTTPSignatureVerifyPubKey, pb.AttrHTTPSignatureVerify)
	}
	return nil
}

// verify verifies the signature that the op asks for, if it does.
func (s *HTTP) verify(ctx context.Context, job *solver.Job, h *httpOp, d blob.Digest) error {
	if len(h.signed.signature) == 0 {
		return nil
	}
	if _, err := s.present(ctx, job, h, httpPin{Digest: d}); err != nil {
		return err
	}
	r, _, err := s.cache.Blobs().Open(d)
	if err != nil {
		return err
	}
	err = pgpsign.VerifyArmoredDetachedSignature(r, h.signed.signature, h.signed.key, nil)
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("%s: failed to verify pgp signature: %w", h.redacted(), err)
	}
	return nil
}
