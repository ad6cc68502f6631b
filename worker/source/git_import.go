package source

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/worker/layer"
)

const (
	// maxSubmodules bounds submodules in submodules, so that two repositories that
	// name each other end in an error.
	maxSubmodules = 16
	// gitInMemory bounds the files that are held in memory while they are hashed.
	gitInMemory = 4 << 20
)

// gitImport makes a tree of commits.
type gitImport struct {
	git      *Git
	run      *gitRunner
	tree     tree.Builder
	size     int64 // of the files so far
	room     int64 // for files
	skipSubs bool
}

// gitEntry is a line of git ls-tree.
type gitEntry struct {
	mode, kind, object string
	path               string
}

// build makes what an op wants of a commit.
func (im *gitImport) build(ctx context.Context, g *gitOp, commit string) (err error) {
	if im.room, err = diskRoom(im.git.cache.Path("tmp")); err != nil {
		return err
	}
	if g.asBundle {
		return im.pack(ctx, g, commit)
	}
	if err := im.commit(ctx, g.place(), g.ref, commit, g.subdir, "", 0); err != nil {
		return err
	}
	if g.keepDir && g.subdir == "" {
		return im.gitDir(ctx, g, commit)
	}
	return nil
}

// commit puts the files of a commit, below subdir, at the path at.
func (im *gitImport) commit(ctx context.Context, from gitPlace, ref, commit, subdir, at string, depth int) error {
	mirror, unlock, err := im.git.mirror(ctx, im.run, from, commit)
	if err != nil {
		return err
	}
	entries, subs, err := im.list(ctx, mirror, from, ref, commit, subdir)
	if err == nil {
		err = im.files(ctx, mirror, commit, at, entries)
	}
	unlock()
	if err != nil {
		return err
	}
	for _, sub := range subs {
		if depth == maxSubmodules {
			return fmt.Errorf("submodules more than %d deep", maxSubmodules)
		}
		if err := im.commit(ctx, gitPlace{remote: sub.remote}, "", sub.commit, "", joinPath(at, sub.path), depth+1); err != nil {
			return fmt.Errorf("submodule %s (%s): %w", sub.path, redactURL(sub.remote), err)
		}
	}
	return nil
}

type submodule struct{ path, remote, commit string }

// list fetches a commit and lists what is in it.
func (im *gitImport) list(ctx context.Context, mirror string, from gitPlace, ref, commit, subdir string) (entries []gitEntry, subs []submodule, err error) {
	if err := im.run.fetch(ctx, mirror, from, ref, commit); err != nil {
		return nil, nil, err
	}
	object := commit + ":" + subdir
	if kind, err := im.run.git(ctx, mirror, "cat-file", "-t", object); err != nil || strings.TrimSpace(string(kind)) != "tree" {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		return nil, nil, fmt.Errorf("commit %s has no folder %q", commit, subdir)
	}
	out, err := im.run.git(ctx, mirror, "ls-tree", "-r", "-t", "-z", "--full-tree", object)
	if err != nil {
		return nil, nil, err
	}
	var links []gitEntry
	for line := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		meta, name, ok := strings.Cut(line, "\t")
		f := strings.Fields(meta)
		if !ok || len(f) != 3 {
			if line == "" {
				continue
			}
			return nil, nil, fmt.Errorf("git ls-tree gave %q", line)
		}
		e := gitEntry{mode: f[0], kind: f[1], object: f[2], path: name}
		if strings.EqualFold(path.Base(name), ".git") {
			return nil, nil, fmt.Errorf("commit %s holds %q, which only git itself may make", commit, name)
		}
		if e.kind == "commit" {
			links = append(links, e)
		}
		entries = append(entries, e)
	}
	if len(links) > 0 && !im.skipSubs {
		subs, err = im.submodules(ctx, mirror, from.remote, commit, subdir, links)
	}
	return entries, subs, err
}

// submodules finds where the commits that a tree links to come from. A link that
// .gitmodules does not name stays an empty folder, as with git.
func (im *gitImport) submodules(ctx context.Context, mirror, remote, commit, subdir string, links []gitEntry) ([]submodule, error) {
	out, err := im.run.git(ctx, mirror, "config", "--blob", commit+":.gitmodules", "-z", "--get-regexp", `^submodule\..*\.(path|url)$`)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, nil // there is none
	}
	paths, urls := make(map[string]string), make(map[string]string)
	for item := range strings.SplitSeq(string(out), "\x00") {
		key, value, _ := strings.Cut(item, "\n")
		name, isPath := strings.CutSuffix(strings.TrimPrefix(key, "submodule."), ".path")
		if isPath {
			paths[path.Clean(value)] = name
		} else if name, ok := strings.CutSuffix(strings.TrimPrefix(key, "submodule."), ".url"); ok {
			urls[name] = value
		}
	}
	var subs []submodule
	for _, l := range links {
		u, ok := urls[paths[joinPath(subdir, l.path)]]
		if !ok {
			continue
		}
		from := resolveRemote(remote, u)
		if err := checkRemote(from); err != nil {
			return nil, fmt.Errorf("submodule %s: %w", l.path, err)
		}
		subs = append(subs, submodule{path: l.path, remote: from, commit: l.object})
	}
	return subs, nil
}

// resolveRemote resolves a submodule's URL, which may be relative to that of the
// repository that has it.
func resolveRemote(base, u string) string {
	if !strings.HasPrefix(u, "./") && !strings.HasPrefix(u, "../") {
		return u
	}
	if b, err := url.Parse(base); err == nil && b.Host != "" {
		b.Path = path.Join(b.Path, u)
		b.RawPath = ""
		return b.String()
	}
	host, p, _ := strings.Cut(base, ":")
	return host + ":" + strings.TrimPrefix(path.Join("/", p, u), "/")
}

// commitTime gives the committer's time of a commit that was fetched, in seconds;
// one that is out of all bounds counts as none.
func (r *gitRunner) commitTime(ctx context.Context, mirror, commit string) (int64, error) {
	out, err := r.git(ctx, mirror, "show", "-s", "--no-show-signature", "--format=%ct", commit+"^{commit}")
	if err != nil {
		return 0, err
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil || seconds < 0 || seconds > 1<<33 {
		seconds = 0
	}
	return seconds, nil
}

// files puts the listed entries into the tree and their contents into the pool.
func (im *gitImport) files(ctx context.Context, mirror, commit, at string, entries []gitEntry) error {
	seconds, err := im.run.commitTime(ctx, mirror, commit)
	if err != nil {
		return err
	}
	mtime := seconds * int64(time.Second)
	if im.tree.MTime == 0 {
		im.tree.MTime = mtime
	}
	var blobs []gitEntry
	for _, e := range entries {
		if e.kind == "blob" {
			blobs = append(blobs, e)
			continue
		}
		dir := tree.Entry{Kind: tree.Dir, Mode: 0o755, MTime: mtime}
		if err := im.tree.Set(joinPath(at, e.path), dir); err != nil {
			return err
		}
	}
	if len(blobs) == 0 {
		return nil
	}
	return im.blobs(ctx, mirror, at, blobs, mtime)
}

// blobs reads what the listed entries hold, by one git for all of them.
func (im *gitImport) blobs(ctx context.Context, mirror, at string, entries []gitEntry, mtime int64) error {
	cmd := im.run.command(ctx, mirror, nil, "cat-file", "--batch")
	in, inErr := cmd.StdinPipe()
	stdout, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("git cat-file: %w", err)
	}
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		defer in.Close()
		w := bufio.NewWriter(in)
		for _, e := range entries {
			if _, err := w.WriteString(e.object + "\n"); err != nil {
				return // git ended, which the reader sees too
			}
		}
		_ = w.Flush()
	}()
	r := bufio.NewReaderSize(stdout, 256<<10)
	var err error
	for _, e := range entries {
		if err = im.blob(ctx, r, e, joinPath(at, e.path), mtime); err != nil {
			_ = cmd.Cancel()
			break
		}
	}
	werr := cmd.Wait() // closes the pipe, which ends the goroutine
	<-fed
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case werr != nil:
		return fmt.Errorf("git cat-file: %w", werr)
	}
	return nil
}

// blob reads one answer of git cat-file --batch and makes an entry of it.
func (im *gitImport) blob(ctx context.Context, r *bufio.Reader, e gitEntry, at string, mtime int64) error {
	head, err := r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("reading %s: %w", e.path, err)
	}
	f := strings.Fields(head)
	if len(f) != 3 || f[1] != "blob" {
		return fmt.Errorf("git cat-file gave %q for %s", strings.TrimSpace(head), e.path)
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || size < 0 {
		return fmt.Errorf("git cat-file gave %q for %s", strings.TrimSpace(head), e.path)
	}
	content := io.LimitReader(r, size)
	if e.mode == "120000" {
		target, err := io.ReadAll(io.LimitReader(content, 4096))
		if err != nil {
			return err
		}
		if int64(len(target)) != size {
			return fmt.Errorf("the link %s has a target of %d bytes", e.path, size)
		}
		err = im.tree.Set(at, tree.Entry{Kind: tree.Symlink, Mode: 0o777, MTime: mtime, Target: string(target)})
		if err != nil {
			return err
		}
	} else {
		mode := uint32(0o644)
		if e.mode == "100755" {
			mode = 0o755
		}
		if err := im.put(ctx, at, mode, size, mtime, content); err != nil {
			return fmt.Errorf("reading %s: %w", e.path, err)
		}
	}
	_, err = r.Discard(1) // the newline after the content
	return err
}

// put makes a file of the tree of size bytes of r.
func (im *gitImport) put(ctx context.Context, at string, mode uint32, size, mtime int64, r io.Reader) error {
	if im.size > im.room-size {
		return fmt.Errorf("the commit's files are larger than what is free on the disk: %d bytes may be brought in", im.room)
	}
	e := tree.Entry{Kind: tree.File, Mode: mode, MTime: mtime, Size: size, Tag: layer.TagOf(at)}
	_, e.Name = path.Split(at)
	var content io.Reader
	if size <= gitInMemory {
		data := make([]byte, size)
		if _, err := io.ReadFull(r, data); err != nil {
			return err
		}
		e.Content, content = sha256.Sum256(data), bytes.NewReader(data)
	} else {
		f, err := spool(im.git.cache.Path("tmp"), r)
		if err != nil {
			return err
		}
		defer f.Close()
		if f.size != size {
			return io.ErrUnexpectedEOF
		}
		e.Content, content = f.digest, f
	}
	if err := im.git.cache.Pool().Put(ctx, e, content); err != nil {
		return err
	}
	im.size += size
	return im.tree.Set(at, e)
}

// joinPath puts two clean paths together, either of which may be the root.
func joinPath(dir, name string) string {
	switch {
	case dir == "":
		return name
	case name == "":
		return dir
	}
	return dir + "/" + name
}
