package source

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"maps"
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
	first := srv.repo("app", "a=1")
	second := srv.commit("app", "a=2")
	srv.git("app", "tag", "light")
	srv.git("app", "tag", "-a", "-m", "v1", "v1")
	c := openCache(t, t.TempDir())
	s := NewGit(c)
	byCommit := map[string]string{pb.AttrGitFetchByCommit: "true", pb.AttrGitChecksum: first}
	for i, test := range []struct {
		ref    string
		attrs  map[string]string
		commit string
		refs   string // git for-each-ref
	}{
		{"", nil, second, "commit refs/heads/main"},
		{"main", nil, second, "commit refs/heads/main"},
		{"light", nil, second, "commit refs/tags/light"},
		// An annotated tag is an object of its own, which git describe looks for.
		{"v1", nil, second, "tag refs/tags/v1"},
		{"refs/tags/v1", nil, second, "tag refs/tags/v1"},
		{first, nil, first, ""},
		// The ref is what the commit is said to be, not where it is looked for.
		{"main", byCommit, first, "commit refs/heads/main"},
		{"refs/tags/v0", byCommit, first, "commit refs/tags/v0"},
		{"", byCommit, first, ""},
	} {
		attrs := map[string]string{pb.AttrKeepGitDir: "true"}
		maps.Copy(attrs, test.attrs)
		_, got, root, err := checkout(t, c, s, srv.op("app", test.ref, attrs))
		if err != nil || !strings.Contains(got, ".git/HEAD="+test.commit[:20]) {
			t.Fatalf("%q: got %s, %v", test.ref, got, err)
		}
		// Written out it is a repository in which nothing has changed.
		out := fmt.Sprint("out", i)
		writeOut(t, c, root, filepath.Join(srv.dir, out))
		if status := srv.git(out, "status", "--porcelain"); status != "" || srv.git(out, "rev-parse", "HEAD") != test.commit {
			t.Errorf("%q: git status says %q", test.ref, status)
		}
		if refs := srv.git(out, "for-each-ref", "--format=%(objecttype) %(refname)"); refs != test.refs {
			t.Errorf("%q: it has the refs %q, want %q", test.ref, refs, test.refs)
		}
	}
	if got := srv.git("out3", "describe"); got != "v1" {
		t.Errorf("git describe says %q, want v1", got)
	}
}

// writeOut makes a folder of a tree, in which nothing may name the state folder.
func writeOut(t *testing.T, c *cache.Cache, root tree.Entry, dir string) {
	t.Helper()
	err := tree.Walk(c, root, func(p string, e tree.Entry) error {
		if e.Kind == tree.Dir {
			return os.MkdirAll(filepath.Join(dir, p), 0o755)
		}
		f, err := c.Pool().Open(e)
		if err != nil {
			return err
		}
		defer f.Close()
		data, err := io.ReadAll(io.NewSectionReader(f, 0, e.Size))
		if err != nil {
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
}

// TestGitFetchByCommit takes a commit that no ref leads to any more.
func TestGitFetchByCommit(t *testing.T) {
	srv := newGitServer(t)
	first := srv.repo("app", "a=1")
	srv.git("app", "commit", "-q", "--amend", "-m", "another")
	srv.commit("app", "a=2")
	c := openCache(t, t.TempDir())
	s := NewGit(c)
	by := func(checksum string) map[string]string {
		return map[string]string{pb.AttrGitFetchByCommit: "true", pb.AttrGitChecksum: checksum}
	}
	for _, test := range []struct {
		ref, checksum string
		want          string // of the error; empty is that it works
	}{
		{"", first, ""},
		// Nobody looks what the ref is.
		{"main", first, ""},
		{"nothing", first, ""},
		// The ref is the commit already.
		{first, "", ""},
		{first, first[:8], ""},
		{"main", "", "needs a commit"},
		{"main", first[:8], "whole name"},
		{strings.Repeat("0", 40), first, "expected checksum to match"},
	} {
		pin, got, _, err := checkout(t, c, s, srv.op("app", test.ref, by(test.checksum)))
		if test.checksum == "" {
			op := srv.op("app", test.ref, by("0"))
			delete(op.Attrs, pb.AttrGitChecksum)
			pin, got, _, err = checkout(t, c, s, op)
		}
		if test.want == "" && (err != nil || pin != first || got != "a=1") {
			t.Errorf("%q, %q: got %s, %s, %v; want %s", test.ref, test.checksum, pin, got, err, first)
		}
		if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%q, %q: got %v, want it to say %q", test.ref, test.checksum, err, test.want)
		}
	}
}

// TestGitSHA256 takes a repository whose objects are named by SHA-256.
func TestGitSHA256(t *testing.T) {
	srv := newGitServer(t)
	if err := os.MkdirAll(filepath.Join(srv.dir, "app"), 0o755); err != nil {
		t.Fatal(err)
	}
	srv.git("app", "init", "-q", "-b", "main", "--object-format=sha256")
	commit := srv.commit("app", "a=1")
	c := openCache(t, t.TempDir())
	for _, ref := range []string{"main", commit} {
		pin, got, root, err := checkout(t, c, NewGit(c), srv.op("app", ref, map[string]string{pb.AttrKeepGitDir: "true"}))
		if err != nil || pin != commit || len(pin) != 64 || !strings.Contains(got, "a=1") {
			t.Fatalf("%q: got %s, %s, %v; want %s", ref, pin, got, err, commit)
		}
		writeOut(t, c, root, filepath.Join(srv.dir, "out-"+ref))
		if status := srv.git("out-"+ref, "status", "--porcelain"); status != "" {
			t.Errorf("%q: git status says %q", ref, status)
		}
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
		// The identifier, by which policies go, is another repository's.
		{&pb.SourceOp{Identifier: "git://example.com/a", Attrs: map[string]string{pb.AttrFullRemoteURL: srv.URL + "/app/.git"}}, "another repository"},
		{&pb.SourceOp{Identifier: "git://example.com/a", Attrs: map[string]string{pb.AttrFullRemoteURL: "https://example.com/b.git"}}, "another repository"},
		{srv.op("app", "", map[string]string{pb.AttrGitChecksum: "main"}), "expected hex commit hash"},
		{srv.op("app", "", map[string]string{pb.AttrGitMTime: "yesterday"}), pb.AttrGitMTime},
		// What is asked for and cannot be done.
		{srv.op("app", "", map[string]string{pb.AttrGitBundle: "docker-image+blob://x"}), pb.AttrGitBundle},
		{srv.op("app", "main:sub", map[string]string{pb.AttrGitCheckoutBundle: "true"}), pb.AttrGitCheckoutBundle},
		{srv.op("app", "", map[string]string{pb.AttrGitCheckoutBundle: "true", pb.AttrKeepGitDir: "true"}), pb.AttrGitCheckoutBundle},
		{srv.op("app", "", map[string]string{"git.newer": "1"}), "git.newer"},
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
	host := strings.TrimPrefix(srv.URL, "http://")
	header := "basic " + base64.StdEncoding.EncodeToString([]byte("x:token"))
	token, headers := map[string]string{pb.AttrAuthTokenSecret: "TOKEN"}, map[string]string{pb.AttrAuthHeaderSecret: "HEADER"}
	both := map[string]string{pb.AttrAuthTokenSecret: "TOKEN", pb.AttrAuthHeaderSecret: "HEADER"}
	job := &solver.Job{Sessions: func() []solver.SessionID { return nil }}
	for _, test := range []struct {
		attrs, secrets map[string]string
		works          bool
	}{
		{nil, nil, false},
		// The op names no secret, so none is used.
		{nil, map[string]string{"GIT_AUTH_TOKEN": "token"}, false},
		{token, map[string]string{"TOKEN": "token"}, true},
		{token, map[string]string{"TOKEN": "other"}, false},
		{headers, map[string]string{"HEADER": header}, true},
		// That of the host comes before that of any, and headers before tokens.
		{token, map[string]string{"TOKEN": "other", "TOKEN." + host: "token"}, true},
		{both, map[string]string{"HEADER": "other", "TOKEN." + host: "token"}, true},
		{both, map[string]string{"HEADER": header, "TOKEN": "other"}, true},
		{both, map[string]string{"HEADER." + host: "other", "TOKEN": "token"}, false},
	} {
		s.Secret = func(_ context.Context, _ *solver.Job, id string) ([]byte, error) {
			if v, ok := test.secrets[id]; ok {
				return []byte(v), nil
			}
			return nil, fs.ErrNotExist
		}
		_, err := s.Pin(t.Context(), job, srv.op("app", "", test.attrs))
		if (err == nil) != test.works || err != nil && strings.Contains(err.Error(), "nothing") {
			t.Errorf("%v with %v: got %v, want it to work: %v", test.attrs, test.secrets, err, test.works)
		}
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
