package source

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/solver"
)

// GitDescription is what a git source stands for now.
type GitDescription struct {
	Ref      string // in full, "refs/tags/v1"
	Checksum string // what the ref names: a commit, or an annotated tag
	// Commit is the commit that an annotated tag is of; empty where the ref names
	// the commit itself.
	Commit string
	// CommitObject and TagObject are the objects' bytes, where they were asked for.
	CommitObject, TagObject []byte
}

// Describe says what op stands for now, with the bytes of the objects where they
// are asked for.
func (s *Git) Describe(ctx context.Context, job *solver.Job, op *pb.SourceOp, objects bool) (GitDescription, error) {
	g, err := parseGit(op)
	if err != nil {
		return GitDescription{}, err
	}
	commit, err := s.Pin(ctx, job, op)
	if err != nil {
		return GitDescription{}, err
	}
	return s.describe(ctx, job, g, commit, objects)
}

// describe says what g stands for, whose commit is known.
func (s *Git) describe(ctx context.Context, job *solver.Job, g *gitOp, commit string, objects bool) (GitDescription, error) {
	d := GitDescription{Checksum: commit, Ref: g.ref}
	if !gitCommit.MatchString(g.ref) && !g.byCommit && (g.bundle == nil || g.ref != "") {
		at, err := s.at(ctx, job, g)
		if err != nil {
			return d, err
		}
		d.Ref = at.name
		if at.tag != "" {
			d.Checksum, d.Commit = at.tag, at.commit
		}
	}
	if !objects {
		return d, nil
	}
	if err := s.mayRead(ctx, job, g); err != nil {
		return d, err
	}
	run, err := s.runner(ctx, job, g)
	if err != nil {
		return d, err
	}
	defer run.close()
	mirror, unlock, err := s.mirror(ctx, run, g.place(), commit)
	if err != nil {
		return d, err
	}
	defer unlock()
	for _, want := range []struct {
		kind, name string
		into       *[]byte
	}{{"commit", commit, &d.CommitObject}, {"tag", d.Checksum, &d.TagObject}} {
		if want.kind == "tag" && d.Commit == "" {
			continue
		}
		err := run.fetch(ctx, mirror, g.place(), d.Ref, want.name)
		if err == nil {
			*want.into, err = run.git(ctx, mirror, "cat-file", want.kind, want.name)
		}
		if err != nil {
			return d, fmt.Errorf("%s: %w", redactURL(g.remote), err)
		}
	}
	return d, nil
}

// refOf asks the op's place for its ref.
func (s *Git) refOf(ctx context.Context, run *gitRunner, g *gitOp) (remoteRef, error) {
	if g.bundle != nil {
		return s.bundleRef(ctx, run, g)
	}
	return run.lsRemote(ctx, g)
}

// at asks the op's place for its ref, once in a session.
func (s *Git) at(ctx context.Context, job *solver.Job, g *gitOp) (remoteRef, error) {
	return s.seen.ask(job, g.place().name()+"\x00"+g.ref, func() (remoteRef, error) {
		run, err := s.runner(ctx, job, g)
		if err != nil {
			return remoteRef{}, err
		}
		defer run.close()
		return s.refOf(ctx, run, g)
	})
}

// Forget drops what a session was told of remotes.
func (s *Git) Forget(id solver.SessionID) { s.seen.forget(id) }

// HTTPDescription is what a URL stands for now.
type HTTPDescription struct {
	Digest   blob.Digest
	Filename string
	Modified time.Time // zero where the server does not say
}

// Describe says what op stands for now.
func (s *HTTP) Describe(ctx context.Context, job *solver.Job, op *pb.SourceOp) (HTTPDescription, error) {
	h, err := parseHTTP(op)
	if err != nil {
		return HTTPDescription{}, err
	}
	if h.checked {
		return HTTPDescription{Digest: h.checksum, Filename: fileName(h, nil)}, s.verify(ctx, job, h, h.checksum)
	}
	m, err := s.ask(ctx, job, h)
	if err != nil {
		return HTTPDescription{}, err
	}
	if err := s.verify(ctx, job, h, m.Pin.Digest); err != nil {
		return HTTPDescription{}, err
	}
	d := HTTPDescription{Digest: m.Pin.Digest, Filename: m.Pin.Name}
	if h.filename != "" {
		d.Filename = safeName(h.filename)
	}
	if m.Pin.MTime != 0 {
		d.Modified = time.Unix(m.Pin.MTime, 0).UTC()
	}
	return d, nil
}

// maxSuffix bounds what Checksum takes behind a file, as BuildKit does.
const maxSuffix = 4 << 10

// Checksum gives the digest, as "sha512:…", of the file that op stands for with a
// suffix behind it: signatures are of such a text.
func (s *HTTP) Checksum(ctx context.Context, job *solver.Job, op *pb.SourceOp, algorithm string, suffix []byte) (string, error) {
	if len(suffix) > maxSuffix {
		return "", fmt.Errorf("checksum suffix exceeds max size: it has %d bytes, and %d at most are taken", len(suffix), maxSuffix)
	}
	var h hash.Hash
	switch algorithm {
	case "sha256":
		h = sha256.New()
	case "sha384":
		h = sha512.New384()
	case "sha512":
		h = sha512.New()
	default:
		return "", fmt.Errorf("unsupported checksum algorithm %q: the algorithms are sha256, sha384 and sha512", algorithm)
	}
	d, err := s.Describe(ctx, job, op)
	if err != nil {
		return "", err
	}
	parsed, err := parseHTTP(op)
	if err != nil {
		return "", err
	}
	if _, err := s.present(ctx, job, parsed, httpPin{Digest: d.Digest}); err != nil {
		return "", err
	}
	r, _, err := s.cache.Blobs().Open(d.Digest)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(h, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return "", err
	}
	h.Write(suffix)
	return algorithm + ":" + hex.EncodeToString(h.Sum(nil)), nil
}

// ask gives what the URL stands for, as the job's build saw it first.
func (s *HTTP) ask(ctx context.Context, job *solver.Job, h *httpOp) (httpMemory, error) {
	return s.seen.ask(job, string(h.key()), func() (httpMemory, error) { return s.get(ctx, job, h) })
}

// Forget drops what a session was told of URLs.
func (s *HTTP) Forget(id solver.SessionID) { s.seen.forget(id) }
