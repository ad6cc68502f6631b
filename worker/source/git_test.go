package source

import (
	"context"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/solver"
)

// gitServer serves repositories over http, as git itself does.
type gitServer struct {
	t   *testing.T
	dir string
	*httptest.Server
	password string // asked for if not empty
	requests int
}

func newGitServer(t *testing.T) *gitServer {
	t.Helper()
	s := &gitServer{t: t, dir: t.TempDir()}
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatalf("git: %v", err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + s.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests++
		if _, pw, _ := r.BasicAuth(); pw != s.password {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// git runs git in the work tree of a repository and gives its output.
func (s *gitServer) git(repo string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = filepath.Join(s.dir, repo)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com",
		"GIT_AUTHOR_DATE=1000000000 +0000", "GIT_COMMITTER_DATE=1000000000 +0000")
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("git %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// repo makes a repository with these files ("name=text") as its first commit.
func (s *gitServer) repo(name string, files ...string) (commit string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Join(s.dir, name), 0o755); err != nil {
		s.t.Fatal(err)
	}
	s.git(name, "init", "-q", "-b", "main")
	return s.commit(name, files...)
}

func (s *gitServer) commit(name string, files ...string) string {
	s.t.Helper()
	for _, f := range files {
		file, text, _ := strings.Cut(f, "=")
		file = filepath.Join(s.dir, name, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	s.git(name, "add", "-A")
	s.git(name, "commit", "-q", "--allow-empty", "-m", "x")
	return s.git(name, "rev-parse", "HEAD")
}

func (s *gitServer) op(repo, fragment string, attrs map[string]string) *pb.SourceOp {
	url := s.URL + "/" + repo + "/.git"
	op := &pb.SourceOp{Identifier: "git://" + strings.TrimPrefix(url, "http://"), Attrs: map[string]string{pb.AttrFullRemoteURL: url}}
	if fragment != "" {
		op.Identifier += "#" + fragment
	}
	for k, v := range attrs {
		op.Attrs[k] = v
	}
	return op
}

// checkout pins and chains and lists the files.
func checkout(t *testing.T, c *cache.Cache, s *Git, op *pb.SourceOp) (string, string, tree.Entry, error) {
	t.Helper()
	pin, err := s.Pin(t.Context(), nil, op)
	if err != nil {
		return "", "", tree.Entry{}, err
	}
	id, err := s.Chain(t.Context(), nil, op, pin)
	if err != nil {
		return pin, "", tree.Entry{}, err
	}
	root, err := c.Merged(id)
	if err != nil {
		t.Fatal(err)
	}
	return pin, files(t, c, id), root, nil
}

func TestGit(t *testing.T) {
	srv := newGitServer(t)
	first := srv.repo("app", "a=1", "sub/b=2")
	srv.git("app", "tag", "-a", "v1", "-m", "one")
	srv.git("app", "branch", "side")
	if err := os.Symlink("../etc/passwd", filepath.Join(srv.dir, "app/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(srv.dir, "app/a"), 0o755); err != nil {
		t.Fatal(err)
	}
	second := srv.commit("app", "sub/c=3", "large="+strings.Repeat("x", 5<<20))
	c := openCache(t, t.TempDir())
	s := NewGit(c)
	all := "a=1 large=xxxxxxxxxxxxxxxxxxxx sub/b=2 sub/c=3"
	for _, test := range []struct{ fragment, pin, want string }{
		{"", second, all},
		{"main", second, all},
		{"refs/heads/main", second, all},
		{"side", first, "a=1 sub/b=2"},
		{"v1", first, "a=1 sub/b=2"},
		{first, first, "a=1 sub/b=2"},
		{"main:sub", second, "b=2 c=3"},
		{":sub", second, "b=2 c=3"},
	} {
		pin, got, _, err := checkout(t, c, s, srv.op("app", test.fragment, nil))
		if err != nil || pin != test.pin || got != test.want {
			t.Errorf("%q: got %s, %s, %v; want %s, %s", test.fragment, pin, got, err, test.pin, test.want)
		}
	}
	_, _, root, err := checkout(t, c, s, srv.op("app", "", nil))
	if err != nil {
		t.Fatal(err)
	}
	a, err := tree.Lookup(c, root, "a")
	if err != nil || a.Mode != 0o755 || a.MTime != 1e18 {
		t.Errorf("a is %+v, %v; want the mode 755 and the commit's time", a, err)
	}
	if l, err := tree.Lookup(c, root, "link"); err != nil || l.Kind != tree.Symlink || l.Target != "../etc/passwd" {
		t.Errorf("link is %+v, %v", l, err)
	}
	before := srv.requests
	if _, err := s.Chain(t.Context(), nil, srv.op("app", "main", nil), second); err != nil || srv.requests != before {
		t.Errorf("a commit that is here took %d requests, %v", srv.requests-before, err)
	}
	if left, _ := os.ReadDir(c.Path("tmp")); len(left) != 0 {
		t.Errorf("left in the temporary folder: %v", left)
	}
}

func TestGitChecksum(t *testing.T) {
	srv := newGitServer(t)
	commit := srv.repo("app", "a=1")
	srv.git("app", "tag", "-a", "v1", "-m", "one")
	tag := srv.git("app", "rev-parse", "v1")
	s := NewGit(openCache(t, t.TempDir()))
	for _, good := range []string{commit, commit[:7], tag} {
		if pin, err := s.Pin(t.Context(), nil, srv.op("app", "v1", map[string]string{pb.AttrGitChecksum: good})); err != nil || pin != commit {
			t.Errorf("checksum %s: got %s, %v", good, pin, err)
		}
	}
	for _, bad := range []string{strings.Repeat("0", 40), "xyz", "12"} {
		if _, err := s.Pin(t.Context(), nil, srv.op("app", "v1", map[string]string{pb.AttrGitChecksum: bad})); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("checksum %s: got %v", bad, err)
		}
	}
}

func TestGitSubmodules(t *testing.T) {
	srv := newGitServer(t)
	srv.repo("lib", "l=1")
	srv.repo("app", "a=1")
	srv.git("app", "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "-b", "main", filepath.Join(srv.dir, "lib"), "deps/lib")
	srv.git("app", "config", "-f", ".gitmodules", "submodule.deps/lib.url", "../../lib/.git")
	srv.commit("app")
	c := openCache(t, t.TempDir())
	s := NewGit(c)
	_, got, _, err := checkout(t, c, s, srv.op("app", "", nil))
	if err != nil || !strings.Contains(got, "a=1 deps/lib/l=1") {
		t.Errorf("got %s, %v", got, err)
	}
	_, got, _, err = checkout(t, c, s, srv.op("app", "", map[string]string{pb.AttrGitSkipSubmodules: "true"}))
	if err != nil || strings.Contains(got, "deps/lib/l") {
		t.Errorf("without submodules: got %s, %v", got, err)
	}
	// A submodule may not name this machine's files.
	for _, url := range []string{"file:///etc", "/etc", "ext::sh -c id", "--upload-pack=id"} {
		srv.git("app", "config", "-f", ".gitmodules", "submodule.deps/lib.url", url)
		srv.commit("app")
		if _, _, _, err := checkout(t, c, s, srv.op("app", "", nil)); err == nil || !strings.Contains(err.Error(), "deps/lib") {
			t.Errorf("%s: got %v", url, err)
		}
	}
}

func TestGitKeepsDir(t *testing.T) {
	srv := newGitServer(t)
	commit := srv.repo("app", "a=1")
	c := openCache(t, t.TempDir())
	_, got, root, err := checkout(t, c, NewGit(c), srv.op("app", "", map[string]string{pb.AttrKeepGitDir: "true"}))
	if err != nil || !strings.Contains(got, "a=1") || !strings.Contains(got, ".git/HEAD="+commit[:20]) {
		t.Fatalf("got %s, %v", got, err)
	}
	// Written out it is a repository in which nothing has changed.
	dir := filepath.Join(srv.dir, "out")
	err = tree.Walk(c, root, func(p string, e tree.Entry) error {
		if e.Kind == tree.Dir {
			return os.MkdirAll(filepath.Join(dir, p), 0o755)
		}
		f, err := c.Pool().Open(e)
		if err != nil {
			return err
		}
		defer f.Close()
		data := make([]byte, e.Size)
		if _, err := f.ReadAt(data, 0); err != nil && e.Size > 0 && len(data) == 0 {
			return err
		}
		if strings.Contains(string(data), c.Path()) {
			t.Errorf("%s names the state folder", p)
		}
		return os.WriteFile(filepath.Join(dir, p), data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if status := srv.git("out", "status", "--porcelain"); status != "" || srv.git("out", "rev-parse", "HEAD") != commit {
		t.Errorf("git status says %q", status)
	}
}

func TestGitRefuses(t *testing.T) {
	srv := newGitServer(t)
	srv.repo("app", "a=1")
	c := openCache(t, t.TempDir())
	s := NewGit(c)
	for _, test := range []struct {
		op   *pb.SourceOp
		want string
	}{
		{srv.op("app", "nothing", nil), `no branch or tag "nothing"`},
		{srv.op("app", strings.Repeat("0", 40), nil), ""},
		{srv.op("app", "main:nowhere", nil), `no folder "nowhere"`},
		{srv.op("app", "main:a", nil), `no folder "a"`},
		{srv.op("other", "", nil), ""},
		{srv.op("app", "--upload-pack=id", nil), "not the name"},
		{srv.op("app", "a..b", nil), "not the name"},
		{&pb.SourceOp{Identifier: "git://x", Attrs: map[string]string{pb.AttrFullRemoteURL: "file:///etc"}}, "not the address"},
		{&pb.SourceOp{Identifier: "git://x", Attrs: map[string]string{pb.AttrFullRemoteURL: "ext::sh -c id"}}, "not the address"},
		{&pb.SourceOp{Identifier: "git://x", Attrs: map[string]string{pb.AttrFullRemoteURL: "ssh://-oProxyCommand=id/x"}}, "not the address"},
		{&pb.SourceOp{Identifier: "git://x", Attrs: map[string]string{pb.AttrFullRemoteURL: "-x"}}, "not the address"},
	} {
		_, _, _, err := checkout(t, c, s, test.op)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: got %v, want it to say %q", test.op, err, test.want)
		}
	}
	// A tree that holds .git, which git's own commands would not make.
	blob := srv.git("app", "hash-object", "-w", "a")
	cmd := exec.Command("git", "mktree")
	cmd.Dir = filepath.Join(srv.dir, "app")
	cmd.Stdin = strings.NewReader("100644 blob " + blob + "\t.GIT\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	evil := srv.git("app", "commit-tree", "-m", "evil", strings.TrimSpace(string(out)))
	srv.git("app", "branch", "evil", evil)
	if _, _, _, err := checkout(t, c, s, srv.op("app", "evil", nil)); err == nil || !strings.Contains(err.Error(), ".GIT") {
		t.Errorf("a tree with .GIT in it: got %v", err)
	}
}

func TestGitLogin(t *testing.T) {
	srv := newGitServer(t)
	srv.repo("app", "a=1")
	srv.password = "token"
	s := NewGit(openCache(t, t.TempDir()))
	if _, err := s.Pin(t.Context(), nil, srv.op("app", "", nil)); err == nil || strings.Contains(err.Error(), "nothing") {
		t.Errorf("without a login: got %v", err)
	}
	s.Secret = func(_ context.Context, _ *solver.Job, id string) ([]byte, error) {
		if id == "GIT_AUTH_TOKEN" {
			return []byte("token"), nil
		}
		return nil, fs.ErrNotExist
	}
	if _, err := s.Pin(t.Context(), &solver.Job{}, srv.op("app", "", nil)); err != nil {
		t.Errorf("with a token: %v", err)
	}
}

func TestResolveRemote(t *testing.T) {
	for _, test := range []struct{ base, u, want string }{
		{"https://example.com/a/b.git", "../c.git", "https://example.com/a/c.git"},
		{"https://example.com/a/b.git", "./c", "https://example.com/a/b.git/c"},
		{"git@example.com:a/b.git", "../c.git", "git@example.com:a/c.git"},
		{"https://example.com/a", "../../../../etc", "https://example.com/etc"},
		{"https://example.com/a", "https://other.example/x", "https://other.example/x"},
	} {
		if got := resolveRemote(test.base, test.u); got != test.want {
			t.Errorf("%s, %s: got %s, want %s", test.base, test.u, got, test.want)
		}
	}
}

func TestGitTime(t *testing.T) {
	srv := newGitServer(t)
	srv.repo("app", "a=1")
	srv.git("app", "tag", "-a", "v1", "-m", "one")
	s := NewGit(openCache(t, t.TempDir()))
	for _, ref := range []string{"", "main", "v1"} {
		got, err := s.Time(t.Context(), nil, srv.op("app", ref, nil))
		if want := time.Unix(1e9, 0); err != nil || !got.Equal(want) {
			t.Errorf("time of %q = %v, %v, want the committer's, %v", ref, got, err, want)
		}
	}
	if _, err := s.Time(t.Context(), nil, srv.op("app", "nothere", nil)); err == nil {
		t.Error("a ref that is not there has a time")
	}
}
