package daemon

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/tonistiigi/fsutil"
)

// folder makes a folder of files.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// mount gives a folder as clients lend it.
func mount(t *testing.T, dir string) fsutil.FS {
	t.Helper()
	tree, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func marshal(t *testing.T, st llb.State) *llb.Definition {
	t.Helper()
	def, err := st.Marshal(t.Context(), llb.LinuxAmd64)
	if err != nil {
		t.Fatal(err)
	}
	return def
}

func toFolder(dir string) []client.ExportEntry {
	return []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: dir}}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestGraph builds a graph of every kind of op but build, for which see TestNestedGraph.
func TestGraph(t *testing.T) {
	c, _ := newClient(t)
	src := folder(t, map[string]string{"a/one": "1", "a/two": "2", "b/three": "3"})
	base := llb.Image(shared.registry.Addr + "/busybox:latest")
	local := llb.Local("src", llb.IncludePatterns([]string{"a"}))
	run := base.Run(
		llb.Args([]string{"sh", "-c", "cat /in/a/one /run/secrets/token > /out/run; test ! -e /in/b; echo $WORD >> /out/run"}),
		llb.AddMount("/in", local, llb.Readonly), llb.AddSecret("/run/secrets/token", llb.SecretID("token")), llb.AddEnv("WORD", "said"),
	)
	made := run.AddMount("/out", llb.Scratch())
	files := llb.Scratch().File(llb.Mkdir("/d", 0o755).Mkfile("/d/f", 0o644, []byte("made")).Copy(local, "/a/two", "/d/two").Rm("/d/f"))
	merged := llb.Merge([]llb.State{files, made})
	upper := base.File(llb.Mkfile("/new", 0o600, []byte("new")))
	result := llb.Merge([]llb.State{merged, llb.Diff(base, upper)})

	out := t.TempDir()
	_, err := c.Solve(t.Context(), marshal(t, result), client.SolveOpt{
		LocalMounts: map[string]fsutil.FS{"src": mount(t, src)}, Exports: toFolder(out),
		Session: []session.Attachable{secretsprovider.FromMap(map[string][]byte{"token": []byte("secret")})},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"run": "1secretsaid\n", "d/two": "2", "new": "new"} {
		if got := read(t, filepath.Join(out, name)); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(out, "d/f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("d/f: %v, want none", err)
	}
}

// TestFolderChanges sends a folder again and again, each time changed in one way.
func TestFolderChanges(t *testing.T) {
	c, _ := newClient(t)
	src := folder(t, map[string]string{"keep": "kept", "edit": "old", "gone/f": "x", "kind": "file", "dir/f": "in"})
	build := func() string {
		t.Helper()
		out := t.TempDir()
		st := llb.Scratch().File(llb.Copy(llb.Local("src"), "/", "/"))
		_, err := c.Solve(t.Context(), marshal(t, st), client.SolveOpt{
			SharedKey: "a folder", LocalMounts: map[string]fsutil.FS{"src": mount(t, src)}, Exports: toFolder(out),
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	in := func(name string) string { return filepath.Join(src, name) }
	build()
	steps := []struct {
		what   string
		change func() error
		name   string
		want   string // "" is: not there
	}{
		{"a file with other bytes of the same size", func() error { return os.WriteFile(in("edit"), []byte("new"), 0o644) }, "edit", "new"},
		{"a folder is removed", func() error { return os.RemoveAll(in("gone")) }, "gone", ""},
		{"a file becomes a folder", func() error {
			return errors.Join(os.Remove(in("kind")), os.Mkdir(in("kind"), 0o755), os.WriteFile(in("kind/f"), []byte("f"), 0o644))
		}, "kind/f", "f"},
		{"a folder becomes a link", func() error { return errors.Join(os.RemoveAll(in("dir")), os.Symlink("kind", in("dir"))) }, "dir/f", "f"},
		{"a hard link", func() error { return os.Link(in("keep"), in("same")) }, "same", "kept"},
		{"a link that leads outside stays one", func() error { return os.Symlink("/etc/hostname", in("out")) }, "keep", "kept"},
		{"a name that is not ASCII", func() error { return os.WriteFile(in("größe"), []byte("ä"), 0o644) }, "größe", "ä"},
	}
	for _, s := range steps {
		if err := s.change(); err != nil {
			t.Fatal(err)
		}
		out := build()
		data, err := os.ReadFile(filepath.Join(out, s.name))
		switch {
		case s.want == "" && !errors.Is(err, os.ErrNotExist):
			t.Errorf("%s: %s is still there (%v)", s.what, s.name, err)
		case s.want != "" && (err != nil || string(data) != s.want):
			t.Errorf("%s: %s holds %q (%v), want %q", s.what, s.name, data, err, s.want)
		}
	}
}

// counted counts the bytes that a client sends of its files.
type counted struct {
	fsutil.FS
	opened []string
}

func (c *counted) Open(name string) (io.ReadCloser, error) {
	c.opened = append(c.opened, name)
	return c.FS.Open(name)
}

// TestFolderSendsWhatChanged looks at which files a client has to send.
func TestFolderSendsWhatChanged(t *testing.T) {
	c, _ := newClient(t)
	src := folder(t, map[string]string{"a": "1", "b": "2", "c/d": "3"})
	st := llb.Scratch().File(llb.Copy(llb.Local("src"), "/", "/"))
	build := func() []string {
		t.Helper()
		tree := &counted{FS: mount(t, src)}
		_, err := c.Solve(t.Context(), marshal(t, st), client.SolveOpt{SharedKey: "k", LocalMounts: map[string]fsutil.FS{"src": tree}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return tree.opened
	}
	if got := build(); len(got) != 3 {
		t.Errorf("the first time, %v were sent, want all three files", got)
	}
	if got := build(); len(got) != 0 {
		t.Errorf("though nothing changed, %v were sent", got)
	}
	if err := os.WriteFile(filepath.Join(src, "c/d"), []byte("edited"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := build(); len(got) != 1 || got[0] != "c/d" {
		t.Errorf("%v were sent, want c/d", got)
	}
}

// TestBuildFunction drives a build by a function of the client's.
func TestBuildFunction(t *testing.T) {
	c, _ := newClient(t)
	out := t.TempDir()
	function := func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		_, dgst, config, err := g.ResolveImageConfig(ctx, shared.registry.Addr+"/busybox:latest", resolveOpt())
		if err != nil {
			return nil, err
		}
		if dgst == "" || !strings.Contains(string(config), `"os":"linux"`) {
			t.Errorf("resolving gave %s, %s", dgst, config)
		}
		st := llb.Image(shared.registry.Addr + "/busybox:latest").Run(llb.Args([]string{"sh", "-c", "mkdir /d && echo text > /d/f && ln -s f /d/l && chmod 4755 /d/f"})).Root()
		def, err := st.Marshal(ctx, llb.LinuxAmd64)
		if err != nil {
			return nil, err
		}
		res, err := g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		if err != nil {
			return nil, err
		}
		ref, err := res.SingleRef()
		if err != nil {
			return nil, err
		}
		checkReference(t, ctx, ref)
		again, err := ref.ToState()
		if err != nil {
			return nil, err
		}
		if def, err = llb.Scratch().File(llb.Copy(again, "/d", "/copied")).Marshal(ctx); err != nil {
			return nil, err
		}
		return g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
	}
	if _, err := c.Build(t.Context(), client.SolveOpt{Exports: toFolder(out)}, "test", function, nil); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(out, "copied/f")); got != "text\n" {
		t.Errorf("copied/f holds %q", got)
	}
}

func checkReference(t *testing.T, ctx context.Context, ref gateway.Reference) {
	t.Helper()
	data, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/d/l", Range: &gateway.FileRange{Offset: 1, Length: 2}})
	if err != nil || string(data) != "ex" {
		t.Errorf("reading a range through a link gave %q, %v; want ex", data, err)
	}
	st, err := ref.StatFile(ctx, gateway.StatRequest{Path: "/d/f"})
	if err != nil || st.Size != 5 || os.FileMode(st.Mode) != 0o755|os.ModeSetuid {
		t.Errorf("the status is %v, %v; want 5 bytes, -u rwxr-xr-x", st, err)
	}
	list, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/d", IncludePattern: "l*"})
	if err != nil || len(list) != 1 || list[0].Path != "l" || list[0].Linkname != "f" {
		t.Errorf("the folder holds %v, %v; want the link l", list, err)
	}
	if _, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/none"}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("reading what is not there: %v", err)
	}
	if _, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/../../../etc/shadow"}); err == nil {
		t.Error("a path above the root was read")
	}
}

// TestBuildFunctionFails hands a function's error back to its caller.
func TestBuildFunctionFails(t *testing.T) {
	c, _ := newClient(t)
	mine := errors.New("mine: " + identity.NewID())
	_, err := c.Build(t.Context(), client.SolveOpt{}, "test", func(context.Context, gateway.Client) (*gateway.Result, error) {
		return nil, mine
	}, nil)
	if err == nil || !strings.Contains(err.Error(), mine.Error()) {
		t.Errorf("got %v, want %v", err, mine)
	}
}
