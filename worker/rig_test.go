package worker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/moby/buildkit/solver/pb"
)

// rig is a worker on a state folder of its own, and a session whose local
// folders are folders of the test.
type rig struct {
	testing.TB
	w      *Worker
	c      *cache.Cache
	locals folders
	out    lockedBuffer
	done   map[llb.Digest][]cache.ChainID
}

// folders are a session's local folders by name.
type folders map[string]string

// Local makes folders Locals.
func (f folders) Local(_ context.Context, name string, _ Filter, _ func(int)) (string, error) {
	dir, ok := f[name]
	if !ok {
		return "", errors.New("no such folder")
	}
	return dir, nil
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	l.b.Reset()
	return s
}

const testSession = solver.SessionID("test")

func openCache(t testing.TB) *cache.Cache {
	t.Helper()
	c, err := cache.Open(context.Background(), t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func newRig(t testing.TB, s Session) *rig {
	t.Helper()
	c := openCache(t)
	ex, err := executor.New(executor.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ex.Close() })
	w, err := New(c, new(registry.Client), ex, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{TB: t, w: w, c: c, locals: folders{}, done: make(map[llb.Digest][]cache.ChainID)}
	if s.Locals == nil {
		s.Locals = r.locals
	}
	w.OpenSession(testSession, s)
	return r
}

func (r *rig) job(v *llb.Vertex) *solver.Job {
	return &solver.Job{
		Vertex: v, Lease: r.c.Lease(),
		Sessions: func() []solver.SessionID { return []solver.SessionID{testSession} },
		Log:      func(int) io.Writer { return &r.out },
		Progress: func(solver.Progress) {},
		Warn:     func(string) {},
	}
}

// try runs what an edge needs, every vertex once.
func (r *rig) try(e llb.Edge) (cache.ChainID, error) {
	r.Helper()
	if e.IsScratch() {
		return cache.ChainID{}, nil
	}
	if outs, ok := r.done[e.Vertex.Digest()]; ok {
		return outs[e.Output], nil
	}
	job := r.job(e.Vertex)
	defer job.Lease.Release()
	for i, in := range e.Vertex.Inputs() {
		id, err := r.try(in)
		if err != nil {
			return id, err
		}
		job.Inputs = append(job.Inputs, id)
		if _, err := r.w.Content(context.Background(), job, i); err != nil {
			return id, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if e.Vertex.Op().GetSource() != nil {
		var err error
		if job.Pin, err = r.w.Pin(ctx, job); err != nil {
			return cache.ChainID{}, err
		}
	}
	outs, err := r.w.Run(ctx, job)
	if err != nil {
		return cache.ChainID{}, err
	}
	r.done[e.Vertex.Digest()] = outs
	return outs[e.Output], nil
}

func (r *rig) solve(e llb.Edge) cache.ChainID {
	r.Helper()
	id, err := r.try(e)
	if err != nil {
		r.Fatalf("running: %v\n%s", err, r.out.take())
	}
	return id
}

// state gives the state of an edge.
func (r *rig) state(e llb.Edge) tree.Entry {
	r.Helper()
	root, err := r.c.Merged(r.solve(e))
	if err != nil {
		r.Fatal(err)
	}
	return root
}

// lines describes a tree, a line an entry, with what options ask for.
func (r *rig) lines(root tree.Entry) string {
	r.Helper()
	var b strings.Builder
	err := tree.Walk(r.c, root, func(p string, e tree.Entry) error {
		switch {
		case p == "":
			return nil
		case e.Kind == tree.Dir:
			p += "/"
		case e.Kind == tree.Symlink:
			p += " -> " + e.Target
		case e.Kind == tree.Whiteout:
			p += " gone"
		}
		b.WriteString(p + "\n")
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
	return b.String()
}

// top gives the tree of the top layer of an edge's chain.
func (r *rig) top(e llb.Edge) tree.Entry {
	r.Helper()
	ls, err := r.c.Layers(r.solve(e))
	if err != nil {
		r.Fatal(err)
	}
	return ls[len(ls)-1].Root
}

// read gives the content of a file of an edge's state, from the pool.
func (r *rig) read(e llb.Edge, p string) string {
	r.Helper()
	entry, err := tree.Lookup(r.c, r.state(e), p)
	if err != nil {
		r.Fatal(err)
	}
	f, err := r.c.Pool().Open(entry)
	if err != nil {
		r.Fatalf("reading %s: %v", p, err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		r.Fatal(err)
	}
	return string(data)
}

// local is an edge with the files of a map in it, as a folder of the user's; a
// path that ends in "/" is a directory, a content "->x" a link to x.
func (r *rig) local(name string, files map[string]string) llb.Edge {
	r.Helper()
	dir := r.TempDir()
	r.locals[name] = dir
	writeFiles(r.TB, dir, files)
	return vertex(r, must(llb.Source("local://"+name, nil)))
}

func writeFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for p, content := range files {
		full := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, isLink := strings.CutPrefix(content, "->"); {
		case strings.HasSuffix(p, "/"):
			err = os.MkdirAll(full, 0o755)
		case isLink:
			err = os.Symlink(target, full)
		default:
			err = os.WriteFile(full, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

type made struct {
	v   *llb.Vertex
	err error
}

func must(v *llb.Vertex, err error) made { return made{v, err} }

func vertex(r *rig, m made) llb.Edge {
	r.Helper()
	if m.err != nil {
		r.Fatal(m.err)
	}
	return llb.Edge{Vertex: m.v}
}

// files runs actions of one file op.
func (r *rig) files(base llb.Edge, fn func(f *llb.Files, s llb.FileState) llb.FileState) llb.Edge {
	r.Helper()
	var f llb.Files
	v, err := f.Vertex([]llb.FileState{fn(&f, f.From(base))})
	return vertex(r, must(v, err))
}

// copied is what COPY makes: from's src at base's dest.
func (r *rig) copied(base, from llb.Edge, src, dest string) llb.Edge {
	r.Helper()
	return r.files(base, func(f *llb.Files, s llb.FileState) llb.FileState {
		return s.Copy(f.From(from), copyAction(src, dest))
	})
}

func copyAction(src, dest string) *pb.FileActionCopy {
	return &pb.FileActionCopy{
		Src: src, Dest: dest, Mode: -1, Timestamp: -1, FollowSymlink: true, DirCopyContents: true,
		CreateDestPath: true, AllowWildcard: true, AllowEmptyWildcard: true,
	}
}

// busybox is an edge with a busybox in it, copied from a local folder.
func (r *rig) busybox() llb.Edge {
	r.Helper()
	bin, err := exec.LookPath("busybox")
	if err != nil {
		r.Fatal("the tests need busybox (Debian package busybox-static): ", err)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		r.Fatal(err)
	}
	files := map[string]string{
		"bin/sh": "->busybox", "tmp/": "", "run/": "", "var/lib/": "", "var/opt/old": "", "root/": "",
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n",
		"etc/group":  "root:x:0:\nstaff:x:50:ann\n",
	}
	src := r.local("busybox", files)
	if err := os.WriteFile(filepath.Join(r.locals["busybox"], "bin/busybox"), data, 0o755); err != nil {
		r.Fatal(err)
	}
	for _, name := range []string{"cat", "echo", "mkdir", "rm", "ls", "ln", "mv", "cp", "stat", "touch", "chmod", "chown", "sleep", "id", "env", "test", "wc", "truncate", "dd", "sync", "nc"} {
		if err := os.Symlink("busybox", filepath.Join(r.locals["busybox"], "bin", name)); err != nil {
			r.Fatal(err)
		}
	}
	// A whole second: busybox's cp -p keeps no more of a time.
	stamp := time.Unix(1_700_000_000, 0)
	if err := os.Chtimes(filepath.Join(r.locals["busybox"], "etc/group"), stamp, stamp); err != nil {
		r.Fatal(err)
	}
	return r.copied(llb.Edge{}, src, "/", "/")
}

// run is a shell step on base.
func (r *rig) run(base llb.Edge, script string, mounts ...llb.Mount) llb.Edge {
	r.Helper()
	x := llb.Exec{
		Meta:    &pb.Meta{Args: []string{"/bin/sh", "-c", script}, Cwd: "/"},
		Mounts:  append([]llb.Mount{llb.Root(base)}, mounts...),
		Network: pb.NetMode_NONE,
	}
	v, err := x.Vertex()
	return vertex(r, must(v, err))
}

type secrets map[string]string

// Secret makes secrets Secrets.
func (s secrets) Secret(_ context.Context, id string) ([]byte, error) {
	v, ok := s[id]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(v), nil
}

// content gives what a vertex sees of one of its inputs, which is chain.
func (r *rig) content(v *llb.Vertex, input int, chain cache.ChainID) (cache.ContentID, error) {
	job := r.job(v)
	defer job.Lease.Release()
	job.Inputs = make([]cache.ChainID, len(v.Inputs()))
	job.Inputs[input] = chain
	return r.w.Content(context.Background(), job, input)
}
