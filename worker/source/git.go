package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/solver"
)

// Git is the source of a commit's files ("git://host/path#ref:subdir"). Its pin is
// the commit. It is safe for concurrent use.
//
// Repositories are kept as bare mirrors in the state folder. The files come from
// git's object store straight into the pool: nothing is checked out, and so no
// hook, filter, attribute or link of a repository can do anything here. Every
// file has the time of the commit, which makes results the same each time.
type Git struct {
	// Secret and SSH lend what the sessions of a job have for logins; nil has none.
	Secret func(ctx context.Context, job *solver.Job, id string) ([]byte, error)
	SSH    func(ctx context.Context, job *solver.Job, id string) (net.Conn, error)
	// Blobs are where bundles lie; nil has none.
	Blobs *Blob

	cache *cache.Cache
	trees *cache.Bucket // the layer of a commit, by all that makes it

	seen  seen[remoteRef]
	mu    sync.Mutex
	locks map[string]chan struct{} // by mirror; holding one is having put into it
}

// NewGit makes the source of a state folder.
func NewGit(c *cache.Cache) *Git {
	return &Git{cache: c, trees: c.Bucket("git"), locks: make(map[string]chan struct{})}
}

// Pin resolves the ref, and verifies the signature that the op asks for.
func (s *Git) Pin(ctx context.Context, job *solver.Job, op *pb.SourceOp) (string, error) {
	g, err := parseGit(op)
	if err != nil {
		return "", err
	}
	commit, err := s.resolve(ctx, job, g)
	if err != nil {
		return "", err
	}
	return commit, s.verify(ctx, job, g, commit)
}

// resolve gives the commit.
func (s *Git) resolve(ctx context.Context, job *solver.Job, g *gitOp) (string, error) {
	sha, tag := g.ref, ""
	switch {
	case gitCommit.MatchString(sha):
	case g.byCommit || g.bundle != nil && g.ref == "":
		return g.checksum, nil // what the remote has under the ref does not matter
	default:
		at, err := s.at(ctx, job, g)
		if err != nil {
			return "", err
		}
		sha, tag = at.commit, at.tag
	}
	if !strings.HasPrefix(sha, g.checksum) && (tag == "" || !strings.HasPrefix(tag, g.checksum)) {
		return "", fmt.Errorf("%s: expected checksum to match %s, got %s, which is the commit of %q", redactURL(g.remote), g.checksum, sha, cmp.Or(g.ref, "HEAD"))
	}
	return sha, nil
}

// Chain gives the chain of one layer that holds the commit's files.
func (s *Git) Chain(ctx context.Context, job *solver.Job, op *pb.SourceOp, pin string) (cache.ChainID, error) {
	var none cache.ChainID
	g, err := parseGit(op)
	if err != nil {
		return none, err
	}
	if !gitCommit.MatchString(pin) {
		return none, fmt.Errorf("%q is no commit", pin)
	}
	if err := s.mayRead(ctx, job, g); err != nil {
		return none, err
	}
	key := fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s\x00%v\x00%v", g.remote, g.ref, pin, g.subdir, g.keepDir, g.skipSubs)
	if g.bundle != nil || g.asBundle {
		key = fmt.Appendf(key, "\x00%s\x00%v", g.place().name(), g.asBundle)
	}
	if v, ok := s.trees.Get(key); ok && len(v) == sha256.Size {
		if l, err := s.cache.Layer(cache.LayerID(v)); err == nil {
			return s.cache.Extend(none, l.ID)
		}
	}
	run, err := s.runner(ctx, job, g)
	if err != nil {
		return none, err
	}
	defer run.close()
	im := &gitImport{git: s, run: run, skipSubs: g.skipSubs}
	if err := im.build(ctx, g, pin); err != nil {
		return none, fmt.Errorf("%s: %w", redactURL(g.remote), err)
	}
	root, err := im.tree.Root(s.cache)
	if err != nil {
		return none, err
	}
	l := cache.Layer{ID: cache.TreeLayerID(root), Root: root, Size: im.size}
	if err := s.cache.PutLayer(l); err != nil {
		return none, err
	}
	_ = s.trees.Put(key, l.ID[:]) // losing it costs an import
	return s.cache.Extend(none, l.ID)
}

// Time gives the committer's time of the commit that op stands for now.
func (s *Git) Time(ctx context.Context, job *solver.Job, op *pb.SourceOp) (time.Time, error) {
	var none time.Time
	commit, err := s.Pin(ctx, job, op)
	if err != nil {
		return none, err
	}
	g, err := parseGit(op)
	if err != nil {
		return none, err
	}
	if err := s.mayRead(ctx, job, g); err != nil {
		return none, err
	}
	run, err := s.runner(ctx, job, g)
	if err != nil {
		return none, err
	}
	defer run.close()
	mirror, unlock, err := s.mirror(ctx, run, g.place(), commit)
	if err != nil {
		return none, err
	}
	defer unlock()
	if err := run.fetch(ctx, mirror, g.place(), g.ref, commit); err != nil {
		return none, fmt.Errorf("%s: %w", redactURL(g.remote), err)
	}
	seconds, err := run.commitTime(ctx, mirror, commit)
	if err != nil || seconds == 0 {
		return none, err
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// gitPlace is where a commit comes from: a remote, or a bundle in its stead.
type gitPlace struct {
	remote string
	bundle *blobPlace
}

// name tells the mirrors of places apart. What a bundle holds is of no use to those
// who ask the remote, since anybody can make one that lacks half of a commit.
func (p gitPlace) name() string {
	if p.bundle != nil {
		return "bundle\x00" + p.bundle.digest.String()
	}
	return p.remote
}

// mirror gives the bare repository of a place, locked: one fetch at a time. A
// repository names its objects by SHA-1 or by SHA-256, as its commits show.
func (s *Git) mirror(ctx context.Context, run *gitRunner, at gitPlace, commit string) (dir string, unlock func(), err error) {
	format := objectFormat(commit)
	name := sha256.Sum256([]byte(at.name()))
	if format != "sha1" {
		name = sha256.Sum256([]byte(format + "\x00" + at.name()))
	}
	dir = s.cache.Path("git", hex.EncodeToString(name[:16]))
	s.mu.Lock()
	lock := s.locks[dir]
	if lock == nil {
		lock = make(chan struct{}, 1)
		s.locks[dir] = lock
	}
	s.mu.Unlock()
	select {
	case lock <- struct{}{}:
	case <-ctx.Done():
		return "", nil, context.Cause(ctx)
	}
	let := s.cache.HoldFolder("git", filepath.Base(dir)) // from being collected
	unlock = func() { let(); <-lock }
	if _, err := os.Stat(dir + "/HEAD"); err == nil {
		return dir, unlock, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		unlock()
		return "", nil, err
	}
	if err := os.MkdirAll(s.cache.Path("git"), 0o700); err != nil {
		unlock()
		return "", nil, err
	}
	if _, err := run.git(ctx, "", "init", "--quiet", "--bare", "--template=", "--object-format="+format, dir); err != nil {
		unlock()
		return "", nil, err
	}
	return dir, unlock, nil
}

// objectFormat is git's name for the hash that a commit's name is made with.
func objectFormat(commit string) string {
	if len(commit) == sha256.Size*2 {
		return "sha256"
	}
	return "sha1"
}
