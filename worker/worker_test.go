package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/worker/executor"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sync/errgroup"
)

func TestEndToEnd(t *testing.T) {
	r := newRig(t, Session{})
	base := r.busybox()
	step := r.run(base, "echo hello > /srv && mkdir -p /var/lib/x && ln -s /srv /var/lib/x/link && rm -r /root && chmod 700 /tmp")
	if got, want := r.lines(r.top(step)), "root gone\nsrv\ntmp/\nvar/\nvar/lib/\nvar/lib/x/\nvar/lib/x/link -> /srv\n"; got != want {
		t.Errorf("the step's layer is\n%swant\n%s", got, want)
	}
	if got := r.read(step, "srv"); got != "hello\n" {
		t.Errorf("/srv holds %q, want hello", got)
	}
	// The next step stands on the folder that the first one left.
	again := r.run(step, "cat /var/lib/x/link && test ! -e /root && echo there >> /srv")
	r.solve(again)
	if got := r.out.take(); got != "hello\n" {
		t.Errorf("the second step printed %q, want hello", got)
	}
	if got := r.read(step, "srv"); got != "hello\n" {
		t.Errorf("after the second step the first one's /srv holds %q", got)
	}
	// A layer whose folder went away is made again from its tree.
	if err := os.RemoveAll(r.c.Path("layers")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(r.c.Path("layers"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.solve(r.run(again, "cat /srv; ls /var/lib/x; test ! -e /root && stat -c %a /tmp"))
	if got, want := r.out.take(), "hello\nthere\nlink\n700\n"; got != want {
		t.Errorf("after the folders were made again a step printed %q, want %q", got, want)
	}
	left, err := os.ReadDir(r.c.Path("tmp"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 0 {
		t.Errorf("%d things are left in tmp: %v", len(left), left)
	}
}

func TestUnchangedIsNoPartOfALayer(t *testing.T) {
	r := newRig(t, Session{})
	base := r.busybox()
	for _, test := range []struct{ script, want string }{
		// A directory that was copied up for a file that went away again.
		{"touch /var/lib/f && rm /var/lib/f", ""},
		// A mode set to what it was.
		{"chmod 755 /var/lib", ""},
		// A file and its copy that was moved over it.
		{"cp -p /etc/group /tmp/g && mv /tmp/g /etc/group", ""},
		// A mode that differs.
		{"chmod 700 /var/lib", "var/\nvar/lib/\n"},
		// A whiteout over nothing in the base.
		{"touch /tmp/x /tmp/y && rm /tmp/x", "tmp/\ntmp/y\n"},
		// A directory that was replaced: nothing below shows through.
		{"rm -r /var/opt && mkdir /var/opt && echo x > /var/opt/y", "var/\nvar/opt/\nvar/opt/y\n"},
	} {
		step := r.run(base, test.script)
		if got := r.lines(r.top(step)); got != test.want {
			t.Errorf("%q made the layer\n%swant\n%s", test.script, got, test.want)
		}
	}
	step := r.run(base, "rm -r /var/opt && mkdir /var/opt && echo x > /var/opt/y")
	if e, err := tree.Lookup(r.c, r.top(step), "var/opt"); err != nil || !e.Opaque {
		t.Errorf("the replaced directory is opaque: %v, %v; want true", e.Opaque, err)
	}
	if _, err := tree.Lookup(r.c, r.state(step), "var/opt/old"); err == nil {
		t.Error("what was in the replaced directory is there still")
	}
}

func TestEqualStepsMakeEqualLayers(t *testing.T) {
	r := newRig(t, Session{})
	base := r.busybox()
	a := r.solve(r.run(base, "echo same > /f"))
	b := r.solve(r.run(base, "echo same > /f; true"))
	if a != b {
		t.Error("two steps that wrote the same made different chains")
	}
}

func TestMounts(t *testing.T) {
	r := newRig(t, Session{Secrets: secrets{"tok": "s3cret"}})
	base := r.busybox()
	ctx := r.local("ctx", map[string]string{"a/x": "from context", "a/sub/y": "y", "top": "t"})
	other := r.copied(llb.Edge{}, ctx, "/a", "/deep/a")
	step := r.run(base, `
		cat /ctx/x; echo; ls /ctx /sel /one
		! touch /ctx/new 2>/dev/null || echo writable
		echo kept > /rw/new; rm /rw/deep/a/x; echo lost > /scratch/f
		echo $(cat /run/secret) $(stat -c %a:%u /run/secret); test -e /run/none || echo none
		touch /t/f; echo -n "$VIA_ENV"`,
		llb.Bind(ctx, "/a", "/ctx"), llb.Bind(other, "/deep/a/sub", "/sel"), llb.Bind(ctx, "top", "/one"),
		llb.BindWritable(other, "", "/rw", true), llb.BindWritable(llb.Edge{}, "", "/scratch", false),
		llb.Secret("/run/secret", &pb.SecretOpt{ID: "tok", Mode: 0o440, Uid: 1000}),
		llb.Secret("/run/none", &pb.SecretOpt{ID: "nope", Optional: true}),
		llb.Tmpfs("/t", 1<<20))
	r.solve(step)
	want := "from context\n/ctx:\nsub\nx\n/one\n/sel:\ny\n"
	got := r.out.take()
	got = strings.Replace(got, "/ctx:\nsub\nx\n\n/sel:\ny\n/one\n", "/ctx:\nsub\nx\n/one\n/sel:\ny\n", 1)
	if !strings.Contains(got, "from context") || !strings.Contains(got, "s3cret 440:1000\nnone\n") || strings.Contains(got, "writable") {
		t.Errorf("the step printed\n%s\nwant\n%s", got, want)
	}
	if got := r.lines(r.top(step)); got != "" {
		t.Errorf("mounts left in the root's layer:\n%s", got)
	}
	rw := llb.Edge{Vertex: step.Vertex, Output: 1}
	if got, want := r.lines(r.top(rw)), "deep/\ndeep/a/\ndeep/a/x gone\nnew\n"; got != want {
		t.Errorf("the writable mount's layer is\n%swant\n%s", got, want)
	}
	missing := r.run(base, "true", llb.Secret("/s", &pb.SecretOpt{ID: "nope"}))
	if _, err := r.try(missing); err == nil || !strings.Contains(err.Error(), "secret nope: not found") {
		t.Errorf("a missing secret gives %v", err)
	}
	gone := r.run(base, "true", llb.Bind(ctx, "/nope", "/x"))
	if _, err := r.try(gone); err == nil || !strings.Contains(err.Error(), `"/nope": not found`) {
		t.Errorf("a missing selector gives %v", err)
	}
}

func TestCacheMounts(t *testing.T) {
	r := newRig(t, Session{})
	base := r.busybox()
	seed := r.copied(llb.Edge{}, r.local("seed", map[string]string{"s": "seed"}), "/", "/d/")
	mount := func(sharing pb.CacheSharingOpt, from llb.Edge) llb.Mount {
		return llb.CacheMount("id", "/c", sharing, from, "")
	}
	r.solve(r.run(base, "echo one > /c/f", mount(pb.CacheSharingOpt_SHARED, llb.Edge{})))
	r.solve(r.run(base, "cat /c/f; echo two > /c/f", mount(pb.CacheSharingOpt_LOCKED, llb.Edge{})))
	r.solve(r.run(base, "cat /c/f", mount(pb.CacheSharingOpt_PRIVATE, llb.Edge{})))
	if got, want := r.out.take(), "one\ntwo\n"; got != want {
		t.Errorf("steps found %q in their cache mount, want %q", got, want)
	}
	r.solve(r.run(base, "cat /c/d/s; echo x > /c/d/s; ls /c", mount(pb.CacheSharingOpt_SHARED, seed)))
	if got, want := r.out.take(), "seedd\n"; got != want {
		t.Errorf("a cache mount with a beginning printed %q, want %q", got, want)
	}
	if got := r.read(seed, "d/s"); got != "seed" {
		t.Errorf("a step wrote %q through its cache mount into the pool", got)
	}
}

func TestCacheMountSharing(t *testing.T) {
	var c cacheMounts
	ctx := context.Background()
	a, releaseA, err := c.acquire(ctx, "k", pb.CacheSharingOpt_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	b, releaseB, _ := c.acquire(ctx, "k", pb.CacheSharingOpt_SHARED)
	if a != b {
		t.Errorf("two shared users got %q and %q, want one folder", a, b)
	}
	p, releaseP, _ := c.acquire(ctx, "k", pb.CacheSharingOpt_PRIVATE)
	if p == a {
		t.Error("a private user got the folder that others share")
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, _, err := c.acquire(short, "k", pb.CacheSharingOpt_LOCKED); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locking a folder in use gave %v, want to wait", err)
	}
	got := make(chan string)
	go func() {
		id, release, _ := c.acquire(ctx, "k", pb.CacheSharingOpt_LOCKED)
		release()
		got <- id
	}()
	releaseA()
	releaseB()
	if id := <-got; id != a {
		t.Errorf("locking gave %q, want %q", id, a)
	}
	releaseP()
}

// Two steps that lock the same two cache mounts, each the other way round, do not wait
// for each other.
func TestCacheMountsInOneOrder(t *testing.T) {
	r := newRig(t, Session{})
	base := r.busybox()
	below := r.solve(base)
	mount := func(id, dest string) llb.Mount {
		return llb.CacheMount(id, dest, pb.CacheSharingOpt_LOCKED, llb.Edge{}, "")
	}
	var group errgroup.Group
	for i := range 8 {
		ids := [2]string{"x", "y"}
		if i%2 > 0 {
			ids = [2]string{"y", "x"}
		}
		job := r.job(r.run(base, fmt.Sprint("echo ", i, " >> /a/f"), mount(ids[0], "/a"), mount(ids[1], "/b")).Vertex)
		job.Inputs = []cache.ChainID{below}
		group.Go(func() error {
			defer job.Lease.Release()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := r.w.Run(ctx, job)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func TestFailures(t *testing.T) {
	r := newRig(t, Session{})
	base := r.busybox()
	_, err := r.try(r.run(base, "exit 7"))
	var exit *executor.ExitError
	if !errors.As(err, &exit) || exit.Code != 7 {
		t.Fatalf("a step that exits with 7 gives %v", err)
	}
	if got, want := err.Error(), `process "/bin/sh -c exit 7" did not complete successfully: exit code: 7`; got != want {
		t.Errorf("the error is %q, want %q", got, want)
	}
	x := llb.Exec{
		Meta:   &pb.Meta{Args: []string{"/bin/sh", "-c", "exit 7"}, Cwd: "/", ValidExitCodes: []int32{7}},
		Mounts: []llb.Mount{llb.Root(base)}, Network: pb.NetMode_NONE,
	}
	v, err := x.Vertex()
	if _, err := r.try(vertex(r, must(v, err))); err != nil {
		t.Errorf("an exit code that is valid gives %v", err)
	}
	x.Security = pb.SecurityMode_INSECURE
	v, err = x.Vertex()
	if _, err := r.try(vertex(r, must(v, err))); err == nil || err.Error() != "security.insecure is not allowed: allow it by --allow security.insecure" {
		t.Errorf("a step that asks for more than was granted gives %v", err)
	}
}

// A step can go down further than any path leads. What it leaves is no layer, and
// nothing of it stays; that of one that fails goes as well.
func TestStepTooDeep(t *testing.T) {
	r := newRig(t, Session{})
	base := r.busybox()
	script := "cd /tmp; n=" + strings.Repeat("n", 255) + "; i=0\n" +
		"while [ $i -lt 100 ]; do mkdir $n && cd -P $n 2>/dev/null || exit 3; i=$((i+1)); done"
	_, err := r.try(r.run(base, script))
	if !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("a step that goes too deep gives %v\n%s", err, r.out.take())
	}
	var exit *executor.ExitError
	if _, err := r.try(r.run(base, script+"; exit 7")); !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("a step that goes too deep and fails gives %v\n%s", err, r.out.take())
	}
	if left, err := os.ReadDir(r.c.Path("tmp")); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

func TestMergeAndDiff(t *testing.T) {
	r := newRig(t, Session{})
	ctx := r.local("ctx", map[string]string{"a/x": "1", "b/y": "2"})
	a, b := r.copied(llb.Edge{}, ctx, "/a", "/a"), r.copied(llb.Edge{}, ctx, "/b", "/b")
	merged := vertex(r, must(llb.Merge([]llb.Edge{a, b, ctx})))
	if got, want := r.lines(r.state(merged)), "a/\na/x\nb/\nb/y\n"; got != want {
		t.Errorf("the merged state is\n%swant\n%s", got, want)
	}
	if got := r.read(merged, "b/y"); got != "2" {
		t.Errorf("b/y holds %q, want 2", got)
	}
	above := r.files(merged, func(_ *llb.Files, s llb.FileState) llb.FileState {
		return s.Rm(&pb.FileActionRm{Path: "/a/x"})
	})
	diff := vertex(r, must(llb.Diff(merged, above)))
	if got, want := r.lines(r.top(diff)), "a/\na/x gone\n"; got != want {
		t.Errorf("the diff's layer is\n%swant\n%s", got, want)
	}
	if c, err := r.c.Chain(r.solve(diff)); err != nil || c.Depth != 1 {
		t.Errorf("the diff has %d layers, want 1 (%v)", c.Depth, err)
	}
	// What it lacks is not there for a step either, whatever overlayfs keeps that as, and
	// neither where it lies on a base that has no such folder.
	for _, on := range []llb.Edge{diff, vertex(r, must(llb.Merge([]llb.Edge{b, diff})))} {
		r.solve(r.run(r.busybox(), "ls /m/a; cp -a /m /copied", llb.Bind(on, "/", "/m")))
		if got := r.out.take(); got != "" {
			t.Errorf("in the diff's layer a step sees %q", got)
		}
	}
	apart := vertex(r, must(llb.Diff(a, b)))
	if got, want := r.lines(r.top(apart)), "a gone\nb/\nb/y\n"; got != want {
		t.Errorf("the diff of two states that share nothing is\n%swant\n%s", got, want)
	}
	// A folder that was replaced is put over another base by what went of it alone.
	replaced := r.files(a, func(_ *llb.Files, s llb.FileState) llb.FileState {
		s = s.Rm(&pb.FileActionRm{Path: "/a"})
		return s.Mkdir(&pb.FileActionMkDir{Path: "/a", Mode: 0o755, Timestamp: -1}).Mkfile(&pb.FileActionMkFile{Path: "/a/new", Mode: 0o644, Timestamp: -1})
	})
	other := r.files(a, func(_ *llb.Files, s llb.FileState) llb.FileState {
		return s.Mkfile(&pb.FileActionMkFile{Path: "/a/other", Mode: 0o644, Timestamp: -1})
	})
	rebased := vertex(r, must(llb.Merge([]llb.Edge{other, vertex(r, must(llb.Diff(a, replaced)))})))
	if got, want := r.lines(r.state(rebased)), "a/\na/new\na/other\n"; got != want {
		t.Errorf("the difference over another base is\n%swant\n%s", got, want)
	}
	if id := r.solve(vertex(r, must(llb.Diff(a, a)))); id != (cache.ChainID{}) {
		t.Errorf("the diff of a state and itself is %s, want scratch", id)
	}
}

func TestChangedDuringBuild(t *testing.T) {
	r := newRig(t, Session{})
	ctx := r.local("ctx", map[string]string{"f": "before", "g": "g"})
	r.solve(ctx)
	writeFiles(t, r.locals["ctx"], map[string]string{"f": "after!"})
	_, err := r.try(r.copied(llb.Edge{}, ctx, "/", "/"))
	var changed *ChangedError
	if !errors.As(err, &changed) || changed.Path != filepath.Join(r.locals["ctx"], "f") {
		t.Errorf("a file that changed gives %v, want a ChangedError that names it", err)
	}
	// What did not change can be had.
	if got := r.read(r.copied(llb.Edge{}, ctx, "/g", "/"), "g"); got != "g" {
		t.Errorf("g holds %q", got)
	}
}

func TestContent(t *testing.T) {
	r := newRig(t, Session{})
	first := r.local("first", map[string]string{"a/x": "1", "b": "2", "l": "->a/x"})
	second := r.local("second", map[string]string{"a/x": "1", "b": "other", "l": "->a/x"})
	same := func(v llb.Edge, input int) bool {
		t.Helper()
		var ids []cache.ContentID
		for _, e := range []llb.Edge{first, second} {
			id, err := r.content(v.Vertex, input, r.solve(e))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		return ids[0] == ids[1]
	}
	filtered := copyAction("/", "/")
	filtered.ExcludePatterns = []string{"b"}
	owned := copyAction("/b", "/")
	for _, test := range []struct {
		name string
		e    llb.Edge
		want bool
	}{
		{"a copy of what is equal in both", r.copied(llb.Edge{}, first, "/a", "/"), true},
		{"a copy of all of it", r.copied(llb.Edge{}, first, "/", "/"), false},
		{"a copy of what differs", r.copied(llb.Edge{}, first, "/b", "/"), false},
		{"a wildcard that matches what is equal", r.copied(llb.Edge{}, first, "/a*", "/"), true},
		{"a wildcard that matches what differs", r.copied(llb.Edge{}, first, "/*", "/"), false},
		{"a copy through a link", r.copied(llb.Edge{}, first, "/l", "/"), true},
		{"a copy that excludes what differs", r.files(llb.Edge{}, func(f *llb.Files, s llb.FileState) llb.FileState {
			return s.Copy(f.From(first), filtered)
		}), true},
		{"two copies, one of what differs", r.files(llb.Edge{}, func(f *llb.Files, s llb.FileState) llb.FileState {
			return s.Copy(f.From(first), copyAction("/a", "/")).Copy(f.From(first), owned)
		}), false},
		{"an action on top of it", r.files(first, func(_ *llb.Files, s llb.FileState) llb.FileState {
			return s.Mkdir(&pb.FileActionMkDir{Path: "/d"})
		}), false},
		{"a mount of what is equal", r.run(llb.Edge{}, "x", llb.Bind(first, "/a", "/m")), true},
		{"a mount of what differs", r.run(llb.Edge{}, "x", llb.Bind(first, "/b", "/m")), false},
		{"a mount of all of it", r.run(llb.Edge{}, "x", llb.Bind(first, "/", "/m")), false},
		{"a root file system", r.run(first, "x"), false},
	} {
		if got := same(test.e, 0); got != test.want {
			t.Errorf("%s: contents are equal: %v, want %v", test.name, got, test.want)
		}
	}
	missing := r.copied(llb.Edge{}, first, "/nope", "/")
	_, err := r.content(missing.Vertex, 0, r.solve(first))
	var notFound *NotFoundError
	if !errors.As(err, &notFound) || notFound.Path != "/nope" || notFound.Late {
		t.Errorf("the content of a missing path gives %v, want a NotFoundError", err)
	}
	if words := "failed to compute cache key: failed to calculate checksum of ref "; err == nil || !strings.HasPrefix(err.Error(), words) {
		t.Errorf("the content of a missing path gives %v, want BuildKit's words for it", err)
	}
	if _, err = r.content(missing.Vertex, 0, cache.ChainID{}); !errors.As(err, &notFound) || !notFound.Late {
		t.Errorf("the content of a missing path of nothing gives %v, want it to be found out late", err)
	}
}

// TestMissingFiles removes files of the pool behind the worker's back: what reads
// them says which layer is gone, and in the end it is the one that had them first.
func TestMissingFiles(t *testing.T) {
	r := newRig(t, Session{})
	first := r.copied(llb.Edge{}, r.local("ctx", map[string]string{"d/f": "x"}), "/", "/")
	second := r.copied(llb.Edge{}, first, "/d", "/e")
	r.solve(second)
	if err := os.RemoveAll(r.c.Path("files")); err != nil {
		t.Fatal(err)
	}
	goneLayer := func(err error) cache.LayerID {
		t.Helper()
		var gone *cache.GoneError
		if !errors.As(err, &gone) {
			t.Fatalf("the error is %v, want a GoneError", err)
		}
		return gone.Layer
	}
	id := func(e llb.Edge) cache.LayerID {
		c, err := r.c.Chain(r.solve(e))
		if err != nil {
			t.Fatal(err)
		}
		return c.Layer
	}
	_, err := r.try(r.run(second, "true"))
	if goneLayer(err) != id(second) {
		t.Error("a step on a layer without its files blames another")
	}
	// Solving again runs the copy again, which finds out where the file was missing first.
	want := id(first)
	delete(r.done, second.Vertex.Digest())
	_, err = r.try(second)
	if goneLayer(err) != want {
		t.Error("the copy that is run again does not blame what it copies from")
	}
	// A copy that has to read the file finds it out by itself.
	a := copyAction("/d", "/g")
	a.Mode = 0o600
	_, err = r.try(r.files(llb.Edge{}, func(f *llb.Files, s llb.FileState) llb.FileState { return s.Copy(f.From(first), a) }))
	if goneLayer(err) != want {
		t.Error("a copy that reads a missing file does not blame its source")
	}
}

// TestMountedFolderIsCapturedOnce mounts a folder of the user's for several steps: no
// step after the first looks for its files in the pool, until one is missed.
func TestMountedFolderIsCapturedOnce(t *testing.T) {
	for _, test := range []struct{ name, selector, read string }{
		{"all of it", "/", "cat /m/d/f"},
		{"a folder in it", "/d", "cat /m/f"},
		{"a file in it", "/d/f", "cat /m"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, Session{})
			base := r.busybox()
			ctx := r.local("ctx", map[string]string{"d/f": "content"})
			r.solve(ctx)
			file, err := tree.Resolve(r.c, r.state(ctx), "/d/f", true)
			if err != nil {
				t.Fatal(err)
			}
			// step runs another step that reads the file, which says what is in it.
			step := func(comment string) string {
				t.Helper()
				r.solve(r.run(base, test.read+" #"+comment, llb.Bind(ctx, test.selector, "/m")))
				return r.out.take()
			}
			step("first")
			if !r.c.Pool().Has(file.Entry) {
				t.Fatal("the first step leaves no file in the pool")
			}
			if err := r.c.Pool().Drop(file.Entry); err != nil {
				t.Fatal(err)
			}
			if got := step("second"); got != "content" || r.c.Pool().Has(file.Entry) {
				t.Errorf("the second step reads %q, and has captured the file again: %v", got, r.c.Pool().Has(file.Entry))
			}
			r.w.Doubt()
			if got := step("third"); got != "content" || !r.c.Pool().Has(file.Entry) {
				t.Errorf("with doubt a step reads %q, and has captured the file: %v", got, r.c.Pool().Has(file.Entry))
			}
			// What has changed has another tree, and is captured.
			writeFiles(t, r.locals["ctx"], map[string]string{"d/f": "other"})
			delete(r.done, ctx.Vertex.Digest())
			if got := step("fourth"); got != "other" {
				t.Errorf("after an edit a step reads %q", got)
			}
		})
	}
}
