package source

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/solver"
)

// A bundle is a file that holds commits with all that they need, and names for some
// of them: what git bundle makes. A git source can be read from one that lies in a
// repository or a layout as a blob (git.bundle), and can become one instead of a
// folder of files (git.checkoutbundle). Whoever made a bundle is trusted with
// nothing: git checks every object against its name, and that none is missing.

const (
	// bundleName is what the file is called in the result, as with BuildKit.
	bundleName = "bundle"
	// maxBundleHead bounds the lines before the objects.
	maxBundleHead = 16 << 20
	// gitAllocLimit bounds what git may hold of one object in memory while it reads
	// a bundle: a few bytes of one can ask for gigabytes.
	gitAllocLimit = "1g"
)

// setBundle takes the attributes that say where the commit comes from.
func (g *gitOp) setBundle(attrs map[string]string) error {
	locator := attrs[pb.AttrGitBundle]
	if locator == "" {
		return nil
	}
	p, err := parseBlobPlace(locator, attrs)
	if err != nil {
		return fmt.Errorf("attribute %s: %w", pb.AttrGitBundle, err)
	}
	if p.layout && p.store == "" {
		p.store, _, _ = strings.Cut(p.ref, "@")
	}
	g.bundle = &p
	return nil
}

// checkBundle refuses what does not go together.
func (g *gitOp) checkBundle() error {
	switch {
	case g.asBundle && g.keepDir:
		return fmt.Errorf("%s is incompatible with %s", pb.AttrGitCheckoutBundle, pb.AttrKeepGitDir)
	case g.asBundle && g.subdir != "":
		return fmt.Errorf("%s is incompatible with git.subdir", pb.AttrGitCheckoutBundle)
	case g.bundle == nil:
		return nil
	case g.checksum == "":
		return fmt.Errorf("%s requires %s to be set", pb.AttrGitBundle, pb.AttrGitChecksum)
	case gitCommit.MatchString(g.ref) && !strings.HasPrefix(g.ref, g.checksum):
		return fmt.Errorf("expected checksum to match %s, got %s", g.checksum, g.ref)
	case g.ref == "" && !gitCommit.MatchString(g.checksum):
		return fmt.Errorf("a bundle needs a ref, or the commit's whole name as the checksum, and %q is not one", g.checksum)
	}
	return nil
}

// mayRead asks whether the op's bundle is where the op says: what others brought here
// is not had by its digest alone.
func (s *Git) mayRead(ctx context.Context, job *solver.Job, g *gitOp) error {
	if g.bundle == nil {
		return nil
	}
	if s.Blobs == nil {
		return errNoBlobs
	}
	if err := s.Blobs.check(ctx, job, *g.bundle); err != nil {
		return fmt.Errorf("the bundle %s: %w", g.bundle.ref, err)
	}
	return nil
}

var errNoBlobs = errors.New("no blobs are lent to this build")

// bundleHead is what the lines at the beginning of a bundle say.
type bundleHead struct {
	refs   map[string]string // the names of objects by ref
	needed bool              // there are commits that whoever reads it must have
}

// parseBundleHead reads the lines before the objects.
func parseBundleHead(r *bufio.Reader) (h bundleHead, err error) {
	h.refs = make(map[string]string)
	n := 0
	line := func() (string, error) {
		s, err := r.ReadSlice('\n')
		if n += len(s); err != nil || n > maxBundleHead {
			return "", errors.New("it is no git bundle, or one that is damaged")
		}
		return string(s[:len(s)-1]), nil
	}
	first, err := line()
	if err != nil {
		return h, err
	}
	if first != "# v2 git bundle" && first != "# v3 git bundle" {
		return h, errors.New("it is no git bundle of version 2 or 3")
	}
	for {
		s, err := line()
		switch {
		case err != nil:
			return h, err
		case s == "":
			return h, nil
		case s[0] == '@' && first == "# v3 git bundle": // a capability, for git to judge
		case s[0] == '-':
			h.needed = true
		default:
			object, ref, ok := strings.Cut(s, " ")
			if !ok || !gitCommit.MatchString(object) {
				return h, fmt.Errorf("its line %.100q names no object", s)
			}
			h.refs[ref] = object
		}
	}
}

// fetchBundle brings the op's bundle into a file of the runner's, once.
func (r *gitRunner) fetchBundle(ctx context.Context) (file string, h bundleHead, err error) {
	file = filepath.Join(r.dir, "received.bundle")
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		if err = r.saveBundle(ctx, file); err == nil {
			f, err = os.Open(file)
		}
	}
	if err != nil {
		return "", h, err
	}
	defer f.Close()
	h, err = parseBundleHead(bufio.NewReaderSize(f, 64<<10))
	if err == nil && h.needed {
		err = errors.New("the bundle is only a part: it needs commits that it does not hold")
	}
	return file, h, err
}

// saveBundle brings the bundle into a file, which gets its name when the digest is
// known to be the right one.
func (r *gitRunner) saveBundle(ctx context.Context, file string) error {
	in, size, err := r.openBundle(ctx)
	if err != nil {
		return fmt.Errorf("the bundle %s: %w", r.bundle.ref, err)
	}
	defer in.Close()
	f, err := os.Create(file + ".part")
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(in, size+1))
	if got := blob.Digest(h.Sum(nil)); err == nil && got != r.bundle.digest {
		err = fmt.Errorf("it has the digest %s, and %s was expected", got, r.bundle.digest)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("the bundle %s: %w", r.bundle.ref, err)
	}
	return os.Rename(file+".part", file)
}

// unbundle puts all that the op's bundle holds into a mirror of its own. A mirror in
// which that failed is emptied: what git fetched before it saw that something was
// missing stays there.
func (r *gitRunner) unbundle(ctx context.Context, mirror string) (bundleHead, error) {
	file, h, err := r.fetchBundle(ctx)
	if err != nil {
		return h, err
	}
	local := [][2]string{{"protocol.file.allow", "always"}, {"fetch.unpackLimit", "1"}, {"core.logAllRefUpdates", "false"}}
	cmd := r.command(ctx, mirror, local, "fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--force", "--", file, "+refs/*:refs/*")
	cmd.Env = append(cmd.Env, "GIT_ALLOC_LIMIT="+gitAllocLimit)
	if _, err := r.finish(ctx, cmd); err != nil {
		return h, errors.Join(fmt.Errorf("reading the bundle: %w", err), os.RemoveAll(mirror))
	}
	return h, nil
}

// bundleRef finds the op's ref among those of its bundle.
func (s *Git) bundleRef(ctx context.Context, run *gitRunner, g *gitOp) (remoteRef, error) {
	_, h, err := run.fetchBundle(ctx)
	if err != nil {
		return remoteRef{}, err
	}
	for _, name := range []string{g.ref, "refs/heads/" + g.ref, "refs/tags/" + g.ref, "refs/" + g.ref} {
		object, ok := h.refs[name]
		if !ok || !strings.HasPrefix(name, "refs/") {
			continue
		}
		mirror, unlock, err := s.mirror(ctx, run, g.place(), object)
		if err != nil {
			return remoteRef{}, err
		}
		defer unlock()
		if err := run.fetch(ctx, mirror, g.place(), g.ref, object); err != nil {
			return remoteRef{}, err
		}
		out, err := run.git(ctx, mirror, "rev-parse", "--verify", "--end-of-options", object+"^{commit}")
		if err != nil {
			return remoteRef{}, err
		}
		at := remoteRef{name: name, commit: strings.TrimSpace(string(out))}
		if at.commit != object {
			at.tag = object
		}
		return at, nil
	}
	return remoteRef{}, fmt.Errorf("the bundle %s has no branch or tag %q", g.bundle.ref, g.ref)
}

// pack makes a bundle of a commit and its history. Submodules are not in it.
func (im *gitImport) pack(ctx context.Context, g *gitOp, commit string) error {
	repo := filepath.Join(im.run.dir, "packed.git")
	if _, err := im.run.git(ctx, "", "init", "--quiet", "--bare", "--template=", "--object-format="+objectFormat(commit), repo); err != nil {
		return err
	}
	if err := im.fetchWhole(ctx, repo, g, commit); err != nil {
		return err
	}
	seconds, err := im.run.commitTime(ctx, repo, commit)
	if err != nil {
		return err
	}
	target, file := bundleTarget(g.ref), filepath.Join(im.run.dir, "made.bundle")
	// One thread: the same commits make the same bytes.
	one := [][2]string{{"pack.threads", "1"}, {"core.logAllRefUpdates", "false"}}
	for _, args := range [][]string{{"update-ref", "--no-deref", target, commit}, {"bundle", "create", "--quiet", file, target}} {
		if _, err := im.run.finish(ctx, im.run.command(ctx, repo, one, args...)); err != nil {
			return err
		}
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	im.tree.MTime = seconds * 1e9
	return im.put(ctx, bundleName, 0o644, st.Size(), im.tree.MTime, f)
}

// fetchWhole brings a commit with its history into an empty repository. The mirrors
// of remotes hold commits without their history.
func (im *gitImport) fetchWhole(ctx context.Context, repo string, g *gitOp, commit string) error {
	if g.bundle != nil {
		_, err := im.run.unbundle(ctx, repo)
		return err
	}
	var tries [][]string
	for _, what := range [][]string{{commit}, {g.ref}, {"+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"}} {
		if what[0] != "" {
			tries = append(tries, append([]string{"fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--force", "--", g.remote}, what...))
		}
	}
	return im.run.fetchBy(ctx, repo, commit, tries)
}

// bundleTarget is what the commit is called in a bundle: what the op calls it, as far
// as that is known to be a tag, and else a branch.
func bundleTarget(ref string) string {
	switch {
	case ref == "" || gitCommit.MatchString(ref):
		return "refs/heads/main"
	case strings.HasPrefix(ref, "refs/tags/"):
		return ref
	}
	return "refs/heads/" + strings.TrimPrefix(strings.TrimPrefix(ref, "refs/"), "heads/")
}
