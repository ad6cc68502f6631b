package source

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/blob"
	"github.com/kiln-build/kiln/solver"
)

// newBundled makes a git source that finds bundles in a layout called "mine".
func newBundled(c *cache.Cache, lent memLayout) *Git {
	s := NewGit(c)
	s.Blobs = NewBlob(c, client())
	s.Blobs.Store = func(_ context.Context, _ *solver.Job, name string) (BlobReader, error) {
		if name != "mine" {
			return nil, fs.ErrNotExist
		}
		return lent, nil
	}
	return s
}

// lend adds a bundle to the layout and gives the attributes that ask for it.
func (l memLayout) lend(data string, checksum string) map[string]string {
	d := blob.Digest(sha256.Sum256([]byte(data)))
	l[d] = data
	return map[string]string{pb.AttrGitBundle: "oci-layout+blob://mine@" + d.String(), pb.AttrGitChecksum: checksum}
}

// bundle makes a source a bundle and gives its bytes.
func bundle(t *testing.T, c *cache.Cache, s *Git, op *pb.SourceOp) string {
	t.Helper()
	op.Attrs[pb.AttrGitCheckoutBundle] = "true"
	_, _, root, err := checkout(t, c, s, op)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeOut(t, c, root, dir)
	data, err := os.ReadFile(filepath.Join(dir, "bundle"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestGitBundle(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) {
			srv := newGitServer(t)
			if err := os.MkdirAll(filepath.Join(srv.dir, "app"), 0o755); err != nil {
				t.Fatal(err)
			}
			srv.git("app", "init", "-q", "-b", "main", "--object-format="+format)
			first := srv.commit("app", "a=1")
			srv.git("app", "tag", "-a", "v1", "-m", "one")
			second := srv.commit("app", "sub/b=2")
			c := openCache(t, t.TempDir())
			whole := bundle(t, c, NewGit(c), srv.op("app", "main", nil))
			if again := openCache(t, t.TempDir()); bundle(t, again, NewGit(again), srv.op("app", "main", nil)) != whole {
				t.Error("another state folder made other bytes of the same commit")
			}
			tagged := bundle(t, c, NewGit(c), srv.op("app", "refs/tags/v1", nil))
			srv.Close() // from here on there are bundles alone

			c, lent := openCache(t, t.TempDir()), memLayout{}
			s := newBundled(c, lent)
			for _, test := range []struct{ name, data, fragment, checksum, pin, want string }{
				{"a branch", whole, "main", second, second, "a=1 sub/b=2"},
				{"the commit as ref", whole, second, second, second, "a=1 sub/b=2"},
				{"no ref", whole, "", second, second, "a=1 sub/b=2"},
				{"an abbreviation", whole, "refs/heads/main", second[:8], second, "a=1 sub/b=2"},
				{"an older commit, whose history is there too", whole, "", first, first, "a=1"},
				{"a folder", whole, "main:sub", second, second, "b=2"},
				{"a tag", tagged, "v1", first, first, "a=1"},
			} {
				pin, got, _, err := checkout(t, c, s, srv.op("app", test.fragment, lent.lend(test.data, test.checksum)))
				if err != nil || pin != test.pin || got != test.want {
					t.Errorf("%s: got %s, %s, %v; want %s, %s", test.name, pin, got, err, test.pin, test.want)
				}
			}
			// A bundle of a bundle has the same commit under the same name.
			attrs := lent.lend(whole, second)
			if bundle(t, c, s, srv.op("app", "main", attrs)) == "" {
				t.Error("a bundle of a bundle is empty")
			}
			attrs = lent.lend(whole, second)
			attrs[pb.AttrKeepGitDir] = "true"
			_, _, root, err := checkout(t, c, s, srv.op("app", "main", attrs))
			if err != nil {
				t.Fatal(err)
			}
			writeOut(t, c, root, filepath.Join(srv.dir, "out"))
			if refs := srv.git("out", "for-each-ref", "--format=%(refname) %(objectname)"); refs != "refs/heads/main "+second {
				t.Errorf("the kept folder has the refs %q", refs)
			}
			if left, _ := os.ReadDir(c.Path("tmp")); len(left) != 0 {
				t.Errorf("left in the temporary folder: %v", left)
			}
		})
	}
}

// hollow makes a bundle that says it has a commit, and lacks the commit's files.
func (s *gitServer) hollow(repo, commit string) string {
	s.t.Helper()
	cmd := exec.Command("git", "pack-objects", "--stdout", "-q")
	cmd.Dir = filepath.Join(s.dir, repo)
	cmd.Stdin = strings.NewReader(commit + "\n" + s.git(repo, "rev-parse", commit+"^{tree}") + "\n")
	pack, err := cmd.Output()
	if err != nil {
		s.t.Fatal(err)
	}
	return "# v2 git bundle\n" + commit + " refs/heads/main\n\n" + string(pack)
}

func TestGitBundleThatLies(t *testing.T) {
	srv := newGitServer(t)
	first := srv.repo("app", "a=1")
	commit := srv.commit("app", "b=2")
	out := filepath.Join(srv.dir, "part")
	srv.git("app", "bundle", "create", "-q", out, first+"..main")
	part, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	c, lent := openCache(t, t.TempDir()), memLayout{}
	s := newBundled(c, lent)
	whole := bundle(t, c, s, srv.op("app", "main", nil))
	zeros := strings.Repeat("0", 40)
	for _, test := range []struct {
		name, data, fragment, checksum, want string
	}{
		{"no bundle", "<html>", "main", commit, "no git bundle"},
		{"nothing", "", "main", commit, "no git bundle"},
		{"a head without an end", "# v2 git bundle\n" + commit + " refs/heads/main\n", "main", commit, "damaged"},
		{"a line of no object", "# v2 git bundle\nx refs/heads/main\n\n", "main", commit, "names no object"},
		{"a line that is too long", "# v2 git bundle\n" + strings.Repeat("x", 1<<20), "main", commit, "damaged"},
		{"no objects", whole[:strings.Index(whole, "\n\n")+2], "main", commit, "reading the bundle"},
		{"half of its bytes", whole[:len(whole)/2], "main", commit, "reading the bundle"},
		{"a changed byte", whole[:len(whole)-30] + "x" + whole[len(whole)-29:], "main", commit, "reading the bundle"},
		{"a part of a history", string(part), "main", commit, "only a part"},
		{"a commit without its files", srv.hollow("app", commit), "main", commit, "reading the bundle"},
		{"the same, by the commit's name", srv.hollow("app", commit), "", commit, "reading the bundle"},
		{"another branch", whole, "side", commit, `no branch or tag "side"`},
		{"another commit than was pinned", whole, "main", zeros, "expected checksum to match"},
		{"a commit that it does not have", whole, "", zeros, "not found in bundle"},
	} {
		_, got, _, err := checkout(t, c, s, srv.op("app", test.fragment, lent.lend(test.data, test.checksum)))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %q, %v; want an error with %q", test.name, got, err, test.want)
		}
	}
	for _, test := range []struct {
		name  string
		attrs map[string]string
		want  string
	}{
		{"no checksum", map[string]string{pb.AttrGitBundle: lent.lend(whole, "")[pb.AttrGitBundle]}, "requires"},
		{"an abbreviation without a ref", lent.lend(whole, commit[:7]), "whole name"},
		{"another scheme", map[string]string{pb.AttrGitBundle: "https://example.com/x@" + blob.Digest{1}.String(), pb.AttrGitChecksum: commit}, "neither"},
		{"another layout", map[string]string{pb.AttrGitBundle: lent.lend(whole, "")[pb.AttrGitBundle], pb.AttrGitChecksum: commit, pb.AttrOCILayoutStoreID: "theirs"}, "theirs"},
	} {
		if _, _, _, err := checkout(t, c, s, srv.op("app", "", test.attrs)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.name, err, test.want)
		}
	}
	// Bytes of another digest than the layout said.
	attrs := lent.lend("something", commit)
	lent[sha256.Sum256([]byte("something"))] = whole
	if _, _, _, err := checkout(t, c, s, srv.op("app", "main", attrs)); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("bytes of another digest: %v", err)
	}
	// None of this is in the way of who asks the repository itself.
	if _, got, _, err := checkout(t, c, s, srv.op("app", "main", nil)); err != nil || got != "a=1 b=2" {
		t.Errorf("from the remote: got %q, %v", got, err)
	}
}

// Trees that name one tree ten times, twelve deep, are a trillion files in a few
// hundred bytes.
func TestGitBomb(t *testing.T) {
	srv := newGitServer(t)
	srv.repo("app", "a=1")
	object := srv.git("app", "hash-object", "-w", "a")
	kind := "100644 blob "
	for range 12 {
		var list strings.Builder
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"} {
			list.WriteString(kind + object + "\t" + name + "\n")
		}
		cmd := exec.Command("git", "mktree")
		cmd.Dir, cmd.Stdin = filepath.Join(srv.dir, "app"), strings.NewReader(list.String())
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		kind, object = "040000 tree ", strings.TrimSpace(string(out))
	}
	srv.git("app", "branch", "bomb", srv.git("app", "commit-tree", "-m", "bomb", object))
	c := openCache(t, t.TempDir())
	if _, _, _, err := checkout(t, c, NewGit(c), srv.op("app", "bomb", nil)); err == nil || !strings.Contains(err.Error(), "says more than") {
		t.Errorf("got %v, want that git says too much", err)
	}
}

func FuzzParseBundleHead(f *testing.F) {
	zeros := strings.Repeat("0", 40)
	f.Add([]byte("# v2 git bundle\n-" + zeros + " x\n" + zeros + " refs/heads/main\n\nPACK"))
	f.Add([]byte("# v3 git bundle\n@object-format=sha256\n" + zeros + strings.Repeat("1", 24) + " refs/tags/v1\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := parseBundleHead(bufio.NewReaderSize(bytes.NewReader(data), 4096))
		if err != nil {
			return
		}
		for ref, object := range h.refs {
			if !gitCommit.MatchString(object) || !bytes.Contains(data, []byte(object+" "+ref+"\n")) {
				t.Errorf("%q is %q", ref, object)
			}
		}
	})
}
