package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path"
	"regexp"
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

	cache *cache.Cache
	trees *cache.Bucket // the layer of a commit, by all that makes it

	mu    sync.Mutex
	locks map[string]chan struct{} // by mirror; holding one is having put into it
}

// NewGit makes the source of a state folder.
func NewGit(c *cache.Cache) *Git {
	return &Git{cache: c, trees: c.Bucket("git"), locks: make(map[string]chan struct{})}
}

// gitOp is what the identifier and attributes of a source op say.
type gitOp struct {
	remote     string
	ref        string // empty is the default branch
	subdir     string
	checksum   string // the beginning of the commit's name
	keepDir    bool
	skipSubs   bool
	tokenID    string // secrets for http
	headerID   string
	sshID      string // of the agent
	knownHosts string
}

var (
	gitURL    = regexp.MustCompile(`^(?i:https?|ssh|git)://[^-/]`)
	scpStyle  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9\[][A-Za-z0-9_.:\]-]*:[^-]`)
	gitCommit = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
	gitRef    = regexp.MustCompile(`^[^-\x00-\x20~^:?*\[\\\x7f][^\x00-\x20~^:?*\[\\\x7f]*$`)
	gitPrefix = regexp.MustCompile(`^[0-9a-f]{7,64}$`)
)

// parseGit reads a source op.
func parseGit(op *pb.SourceOp) (*gitOp, error) {
	g := &gitOp{tokenID: "GIT_AUTH_TOKEN", headerID: "GIT_AUTH_HEADER"}
	id, fragment, _ := strings.Cut(strings.TrimPrefix(op.Identifier, "git://"), "#")
	g.remote = id
	g.ref, g.subdir, _ = strings.Cut(fragment, ":")
	for k, v := range op.Attrs {
		switch k {
		case pb.AttrFullRemoteURL:
			g.remote, _, _ = strings.Cut(v, "#")
		case pb.AttrGitChecksum:
			if !gitPrefix.MatchString(v) {
				return nil, fmt.Errorf("%q is no name of a commit, or less than 7 digits of one", v)
			}
			g.checksum = v
		case pb.AttrKeepGitDir:
			g.keepDir = v == "true"
		case pb.AttrGitSkipSubmodules:
			g.skipSubs = v == "true"
		case pb.AttrAuthTokenSecret:
			g.tokenID = v
		case pb.AttrAuthHeaderSecret:
			g.headerID = v
		case pb.AttrMountSSHSock:
			g.sshID = v
		case pb.AttrKnownSSHHosts:
			g.knownHosts = v
		case pb.AttrGitSignatureVerifyPubKey, pb.AttrGitBundle, pb.AttrGitCheckoutBundle:
			return nil, fmt.Errorf("attribute %s is not supported by this version of kiln", k)
		}
	}
	if !strings.Contains(g.remote, "://") && !strings.Contains(g.remote, "::") && !scpStyle.MatchString(g.remote) {
		g.remote = "https://" + g.remote
	}
	g.subdir = strings.TrimPrefix(path.Join("/", g.subdir), "/")
	return g, g.check()
}

func (g *gitOp) check() error {
	if err := checkRemote(g.remote); err != nil {
		return err
	}
	if g.ref != "" && (!gitRef.MatchString(g.ref) || strings.Contains(g.ref, "..")) {
		return fmt.Errorf("%q is not the name of a git branch, tag or commit", g.ref)
	}
	return nil
}

// checkRemote refuses what git would take for something else than a repository
// on another machine: options, local paths, commands.
func checkRemote(remote string) error {
	if strings.ContainsAny(remote, "\x00\n\r") || !gitURL.MatchString(remote) && !scpStyle.MatchString(remote) {
		return fmt.Errorf("%q is not the address of a git repository", redactURL(remote))
	}
	return nil
}

// redactURL hides a password, for people.
func redactURL(s string) string {
	if u, err := url.Parse(s); err == nil {
		return u.Redacted()
	}
	return s
}

// Pin resolves the ref.
func (s *Git) Pin(ctx context.Context, job *solver.Job, op *pb.SourceOp) (string, error) {
	g, err := parseGit(op)
	if err != nil {
		return "", err
	}
	sha, tag := g.ref, ""
	if !gitCommit.MatchString(sha) {
		run, err := s.runner(ctx, job, g)
		if err != nil {
			return "", err
		}
		defer run.close()
		if sha, tag, err = run.lsRemote(ctx, g); err != nil {
			return "", err
		}
	}
	if !strings.HasPrefix(sha, g.checksum) && (tag == "" || !strings.HasPrefix(tag, g.checksum)) {
		return "", fmt.Errorf("%s: %q is the commit %s, and %s was expected", redactURL(g.remote), cmp.Or(g.ref, "HEAD"), sha, g.checksum)
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
	key := fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s\x00%v\x00%v", g.remote, g.ref, pin, g.subdir, g.keepDir, g.skipSubs)
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
	if err := im.commit(ctx, g.remote, g.ref, pin, g.subdir, "", 0); err != nil {
		return none, fmt.Errorf("%s: %w", redactURL(g.remote), err)
	}
	if g.keepDir && g.subdir == "" {
		if err := im.gitDir(ctx, g.remote, pin); err != nil {
			return none, fmt.Errorf("%s: %w", redactURL(g.remote), err)
		}
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
	run, err := s.runner(ctx, job, g)
	if err != nil {
		return none, err
	}
	defer run.close()
	mirror, unlock, err := s.mirror(ctx, run, g.remote)
	if err != nil {
		return none, err
	}
	defer unlock()
	if err := run.fetch(ctx, mirror, g.remote, g.ref, commit); err != nil {
		return none, fmt.Errorf("%s: %w", redactURL(g.remote), err)
	}
	seconds, err := run.commitTime(ctx, mirror, commit)
	if err != nil || seconds == 0 {
		return none, err
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// mirror gives the bare repository of a remote, locked: one fetch at a time.
func (s *Git) mirror(ctx context.Context, run *gitRunner, remote string) (dir string, unlock func(), err error) {
	name := sha256.Sum256([]byte(remote))
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
	unlock = func() { <-lock }
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
	if _, err := run.git(ctx, "", "init", "--quiet", "--bare", "--template=", dir); err != nil {
		unlock()
		return "", nil, err
	}
	return dir, unlock, nil
}
