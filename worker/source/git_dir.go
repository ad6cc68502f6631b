package source

import (
	"context"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/kiln-build/kiln/cache/tree"
)

// gitDir makes the .git folder that a clone of the commit has: HEAD is the commit,
// and the branch or tag that the op names is there too, so that git describe says
// what it says in a clone. Other refs are not: which are known here is chance.
func (im *gitImport) gitDir(ctx context.Context, g *gitOp, commit string) error {
	at, err := im.keptRef(ctx, g, commit)
	if err != nil {
		return err
	}
	mirror, unlock, err := im.git.mirror(ctx, im.run, g.place(), commit)
	if err != nil {
		return err
	}
	defer unlock()
	want := commit
	if at.tag != "" {
		want = at.tag
		if err := im.run.fetch(ctx, mirror, g.place(), at.name, at.tag); err != nil {
			return err
		}
	}
	dir := filepath.Join(im.run.dir, "kept.git")
	local := [][2]string{{"protocol.file.allow", "always"}, {"core.logAllRefUpdates", "false"}}
	steps := [][]string{
		{"init", "--quiet", "--template=", "--object-format=" + objectFormat(commit), dir},
		{"config", "core.bare", "false"},
		{"remote", "add", "origin", withoutLogin(g.remote)},
		{"fetch", "--quiet", "--no-tags", "--depth=1", "--", "file://" + mirror, want},
		{"update-ref", "--no-deref", "HEAD", commit},
	}
	if at.name != "" {
		steps = append(steps, []string{"update-ref", "--no-deref", at.name, want})
	}
	for _, args := range append(steps, []string{"read-tree", commit}) {
		if _, err := im.run.finish(ctx, im.run.command(ctx, dir, local, args...)); err != nil {
			return err
		}
	}
	return im.keep(ctx, dir)
}

// keptRef says which ref a kept .git folder has; none has no name.
func (im *gitImport) keptRef(ctx context.Context, g *gitOp, commit string) (remoteRef, error) {
	if gitCommit.MatchString(g.ref) || g.ref == "" && (g.byCommit || g.bundle != nil) {
		return remoteRef{}, nil
	}
	at := remoteRef{name: g.ref, commit: commit}
	if !g.byCommit {
		var err error
		if at, err = im.git.refOf(ctx, im.run, g); err != nil {
			return at, err
		}
		if at.commit != commit {
			// It moved after it was resolved. The tag that was there has gone with it.
			at.commit, at.tag = commit, ""
		}
	} else if !strings.HasPrefix(at.name, "refs/") {
		at.name = "refs/heads/" + at.name
	}
	if !strings.HasPrefix(at.name, "refs/") {
		return remoteRef{}, nil // HEAD of a remote without a default branch
	}
	return at, nil
}

// keep puts the files of a git folder into the tree.
func (im *gitImport) keep(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "FETCH_HEAD" { // it names the mirror, a path of this machine
			return err
		}
		at := path.Join(".git", p)
		if d.IsDir() {
			return im.tree.Set(at, tree.Entry{Kind: tree.Dir, Mode: 0o755, MTime: im.tree.MTime})
		}
		f, err := root.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil || !st.Mode().IsRegular() {
			return err
		}
		return im.put(ctx, at, 0o644, st.Size(), im.tree.MTime, f)
	})
}

// withoutLogin drops user and password from what the result will hold.
func withoutLogin(remote string) string {
	u, err := url.Parse(remote)
	if err != nil || u.Scheme == "ssh" {
		return remote
	}
	u.User = nil
	return u.String()
}
