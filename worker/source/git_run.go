package source

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kiln-build/kiln/solver"
)

// gitRunner runs git for one job: without prompts, without the configuration of
// machine and user, and with what the sessions lend.
type gitRunner struct {
	dir    string // for what lives as long as the runner: home, known hosts, agent
	config [][2]string
	ssh    string
	agent  net.Listener
	conns  sync.WaitGroup
	// bundle is the one that the op names, and openBundle opens it and says its size.
	bundle     *blobPlace
	openBundle func(ctx context.Context) (io.ReadCloser, int64, error)
}

// runner makes a gitRunner. Close it.
func (s *Git) runner(ctx context.Context, job *solver.Job, g *gitOp) (*gitRunner, error) {
	dir, err := os.MkdirTemp(s.cache.Path("tmp"), "git-")
	if err != nil {
		return nil, fmt.Errorf("making a temporary folder: %w", err)
	}
	r := &gitRunner{dir: dir, config: [][2]string{
		{"protocol.allow", "never"}, {"protocol.https.allow", "always"}, {"protocol.http.allow", "always"},
		{"protocol.ssh.allow", "always"}, {"protocol.git.allow", "always"},
		{"core.hooksPath", os.DevNull}, {"core.fsmonitor", "false"}, {"gc.auto", "0"},
		{"maintenance.auto", "false"}, {"credential.helper", ""}, {"init.defaultBranch", "master"},
		{"safe.directory", "*"}, {"advice.detachedHead", "false"},
	}}
	r.bundle = g.bundle
	r.openBundle = func(ctx context.Context) (io.ReadCloser, int64, error) {
		if s.Blobs == nil {
			return nil, 0, errNoBlobs
		}
		return s.Blobs.open(ctx, job, *g.bundle)
	}
	err = r.login(ctx, s, job, g)
	if err == nil {
		err = r.prepareSSH(ctx, s, job, g)
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *gitRunner) close() {
	if r.agent != nil {
		r.agent.Close()
		r.conns.Wait()
	}
	_ = os.RemoveAll(r.dir)
}

// login makes the secrets of the sessions the Authorization header of requests to
// the remote's own host; submodules elsewhere do not get it.
func (r *gitRunner) login(ctx context.Context, s *Git, job *solver.Job, g *gitOp) error {
	u, err := url.Parse(g.remote)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || s.Secret == nil || job == nil {
		return nil
	}
	type secret struct {
		id    string
		token bool
	}
	for _, sec := range []secret{{g.headerID + "." + u.Host, false}, {g.tokenID + "." + u.Host, true}, {g.headerID, false}, {g.tokenID, true}} {
		if sec.id == "" || strings.HasPrefix(sec.id, ".") {
			continue // the op names none
		}
		v, err := s.Secret(ctx, job, sec.id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		header := string(v)
		if sec.token {
			header = "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+header))
		}
		r.config = append(r.config, [2]string{"http." + u.Scheme + "://" + u.Host + "/.extraHeader", "Authorization: " + header})
		return nil
	}
	return nil
}

// prepareSSH writes known hosts and lends the agent of a session. A host whose
// key is not known is refused: nobody is there to be asked.
func (r *gitRunner) prepareSSH(ctx context.Context, s *Git, job *solver.Job, g *gitOp) error {
	known := filepath.Join(r.dir, "known_hosts")
	if err := os.WriteFile(known, []byte(g.knownHosts), 0o600); err != nil {
		return err
	}
	r.ssh = "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=/etc/ssh/ssh_known_hosts -o UserKnownHostsFile=" + known
	if g.sshID == "" || s.SSH == nil || job == nil {
		return nil
	}
	l, err := net.Listen("unix", filepath.Join(r.dir, "agent"))
	if err != nil {
		return fmt.Errorf("lending the ssh agent: %w", err)
	}
	r.agent = l
	r.conns.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			r.conns.Go(func() {
				defer in.Close()
				out, err := s.SSH(ctx, job, g.sshID)
				if err != nil {
					return
				}
				defer out.Close()
				stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
				defer stop()
				go func() { _, _ = io.Copy(out, in); out.Close() }()
				_, _ = io.Copy(in, out)
			})
		}
	})
	return nil
}

// command prepares a git command. It is killed with all that it started when ctx ends.
func (r *gitRunner) command(ctx context.Context, dir string, more [][2]string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = r.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir, "LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=true",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_SSH_COMMAND=" + r.ssh, "GIT_NO_REPLACE_OBJECTS=1",
	}
	for _, v := range []string{"http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO"} {
		if value, ok := os.LookupEnv(v); ok {
			cmd.Env = append(cmd.Env, v+"="+value)
		}
	}
	if dir != "" {
		cmd.Env = append(cmd.Env, "GIT_DIR="+dir)
	}
	if r.agent != nil {
		cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+r.agent.Addr().String())
	}
	// By environment and not by argument: other users see arguments.
	config := append(r.config[:len(r.config):len(r.config)], more...)
	cmd.Env = append(cmd.Env, "GIT_CONFIG_COUNT="+strconv.Itoa(len(config)))
	for i, kv := range config {
		cmd.Env = append(cmd.Env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// git runs git in a repository and gives its output.
func (r *gitRunner) git(ctx context.Context, dir string, args ...string) ([]byte, error) {
	return r.finish(ctx, r.command(ctx, dir, nil, args...))
}

func (r *gitRunner) finish(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var stderr, out said
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	if err == nil {
		return out.text.Bytes(), nil
	}
	if out.tooMuch || stderr.tooMuch {
		return nil, fmt.Errorf("git %s: it says more than %d bytes", cmd.Args[1], maxSaid)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("git sources need the program git: %w", err)
	}
	said := strings.TrimSpace(stderr.text.String())
	if said == "" {
		said = err.Error()
	}
	return nil, fmt.Errorf("git %s: %s", cmd.Args[1], said)
}

// maxSaid bounds what git may say: a list of three million files. A few trees that
// name each other over and over stand for more files than any memory holds.
const maxSaid = 256 << 20

// said is what git says, up to the bound; git ends when it says more.
type said struct {
	text    bytes.Buffer
	tooMuch bool
}

func (s *said) Write(p []byte) (int, error) {
	if s.text.Len()+len(p) > maxSaid {
		s.tooMuch = true
		return 0, io.ErrShortWrite
	}
	return s.text.Write(p)
}

// remoteRef is what a remote has under a ref.
type remoteRef struct {
	name   string // in full, "refs/heads/main"
	commit string
	tag    string // the tag's own name where it is an annotated tag
}

// lsRemote asks a remote for a ref. Of a branch and a tag of one name it is the
// branch, as git checkout has it.
func (r *gitRunner) lsRemote(ctx context.Context, g *gitOp) (remoteRef, error) {
	ref := g.ref
	if ref == "" {
		ref = "HEAD"
	}
	out, err := r.git(ctx, "", "ls-remote", "--symref", "--", g.remote, ref, ref+"^{}")
	if err != nil {
		return remoteRef{}, fmt.Errorf("%s: %w", redactURL(g.remote), err)
	}
	found, links := make(map[string]string), make(map[string]string)
	for line := range strings.Lines(string(out)) {
		value, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if to, isLink := strings.CutPrefix(value, "ref: "); ok && isLink {
			links[name] = to
		} else if ok && gitCommit.MatchString(value) {
			found[name] = value
		}
	}
	for _, name := range []string{ref, "refs/heads/" + ref, "refs/tags/" + ref, "refs/" + ref} {
		sha, ok := found[name]
		if !ok {
			continue
		}
		at := remoteRef{name: cmp.Or(links[name], name), commit: sha}
		if peeled, ok := found[name+"^{}"]; ok {
			at.commit, at.tag = peeled, sha
		}
		return at, nil
	}
	return remoteRef{}, fmt.Errorf("%s: repository does not contain ref %s: it has no branch or tag %q", redactURL(g.remote), ref, ref)
}

// fetch brings a commit into a mirror: by its name, and where the server gives no
// commits by name, by the ref that it was found under, or with everything.
func (r *gitRunner) fetch(ctx context.Context, mirror string, from gitPlace, ref, commit string) error {
	if r.has(ctx, mirror, commit) {
		return nil
	}
	if from.bundle != nil {
		if _, err := r.unbundle(ctx, mirror); err != nil {
			return err
		}
		if !r.has(ctx, mirror, commit) {
			return fmt.Errorf("commit %s not found in bundle %s", commit, from.bundle.ref)
		}
		return nil
	}
	remote := from.remote
	base := []string{"fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--force"}
	shallow := append(base[:len(base):len(base)], "--depth=1", "--", remote)
	tries := [][]string{append(shallow[:len(shallow):len(shallow)], commit)}
	if ref != "" && ref != commit {
		tries = append(tries, append(shallow[:len(shallow):len(shallow)], ref))
	}
	all := append(base[:len(base):len(base)], "--", remote, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
	if _, err := os.Stat(filepath.Join(mirror, "shallow")); err == nil {
		all = append(base[:len(base):len(base)], "--unshallow", "--", remote, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
	}
	return r.fetchBy(ctx, mirror, commit, append(tries, all))
}

// has reports whether a repository has a commit with its files.
func (r *gitRunner) has(ctx context.Context, repo, commit string) bool {
	_, err := r.git(ctx, repo, "cat-file", "-e", commit+"^{tree}")
	return err == nil
}

// fetchBy runs git with one list of arguments after the other until the repository
// has the commit. Where none helps the error is that of the first which had one.
func (r *gitRunner) fetchBy(ctx context.Context, repo, commit string, ways [][]string) error {
	var first error
	for _, args := range ways {
		_, err := r.git(ctx, repo, args...)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil && r.has(ctx, repo, commit) {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = fmt.Errorf("the remote does not have the commit %s", commit)
	}
	return first
}
