package source

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil"
)

// gitOp is what the identifier and attributes of a source op say.
type gitOp struct {
	remote     string
	ref        string // empty is the default branch
	subdir     string
	checksum   string // the beginning of the commit's name
	byCommit   bool   // checksum is the commit, whatever the ref is now
	keepDir    bool
	asBundle   bool       // the result is a bundle of the commit, and not its files
	bundle     *blobPlace // where the commit comes from instead of the remote, if not nil
	skipSubs   bool
	tokenID    string // secrets for http; empty is none
	headerID   string
	sshID      string // of the agent
	knownHosts string
	signed     signedBy
}

var (
	gitURL    = regexp.MustCompile(`^(?i:https?|ssh|git)://[^-/]`)
	scpStyle  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9\[][A-Za-z0-9_.:\]-]*:[^-]`)
	gitCommit = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
	gitRef    = regexp.MustCompile(`^[^-\x00-\x20~^:?*\[\\\x7f][^\x00-\x20~^:?*\[\\\x7f]*$`)
	gitPrefix = regexp.MustCompile(`^[0-9a-fA-F]+$`)
)

// parseGit reads a source op.
func parseGit(op *pb.SourceOp) (*gitOp, error) {
	id := strings.TrimPrefix(op.Identifier, "git://")
	repository, fragment, _ := strings.Cut(id, "#")
	g := &gitOp{remote: repository}
	g.ref, g.subdir, _ = strings.Cut(fragment, ":")
	for k, v := range op.Attrs {
		if err := g.set(k, v); err != nil {
			return nil, err
		}
	}
	g.remote = withTransport(g.remote)
	g.subdir = strings.TrimPrefix(path.Join("/", g.subdir), "/")
	if err := g.setBundle(op.Attrs); err != nil {
		return nil, err
	}
	if err := g.check(); err != nil {
		return nil, err
	}
	if _, ok := op.Attrs[pb.AttrFullRemoteURL]; ok && !sameRepository(withTransport(repository), g.remote) {
		return nil, fmt.Errorf("the source is called %q, and its address is that of another repository", redactURL(repository))
	}
	return g, nil
}

// set takes one attribute. What kiln cannot do is refused: a graph may ask for what it
// must not be built without.
func (g *gitOp) set(name, value string) error {
	switch name {
	case pb.AttrFullRemoteURL:
		g.remote, _, _ = strings.Cut(value, "#")
	case pb.AttrGitChecksum:
		if !gitPrefix.MatchString(value) {
			return fmt.Errorf("invalid checksum %q: expected hex commit hash, or the beginning of one", value)
		}
		g.checksum = value
	case pb.AttrGitFetchByCommit:
		g.byCommit = value == "true"
	case pb.AttrKeepGitDir:
		g.keepDir = value == "true"
	case pb.AttrGitSkipSubmodules:
		g.skipSubs = value == "true"
	case pb.AttrAuthTokenSecret:
		g.tokenID = value
	case pb.AttrAuthHeaderSecret:
		g.headerID = value
	case pb.AttrMountSSHSock:
		g.sshID = value
	case pb.AttrKnownSSHHosts:
		g.knownHosts = value
	case pb.AttrGitMTime:
		// The commit's time is also what "checkout" gets: the time of a checkout
		// would be another each time, for the same files.
		if value != "" && value != "commit" && value != "checkout" {
			return fmt.Errorf("attribute %s is %q, and can be commit or checkout", name, value)
		}
	case pb.AttrGitAdvice:
		// Hints for those who type at git; nobody does here.
	case pb.AttrGitCheckoutBundle:
		g.asBundle = value == "true"
	case pb.AttrGitBundle: // see setBundle
	default:
		if !g.signed.set(name, value) && strings.HasPrefix(name, "git.") {
			return errUnsupported(name)
		}
	}
	return nil
}

func errUnsupported(attr string) error {
	return fmt.Errorf("attribute %s is not supported by this version of kiln", attr)
}

func (g *gitOp) check() error {
	if err := checkRemote(g.remote); err != nil {
		return err
	}
	if g.ref != "" && (!gitRef.MatchString(g.ref) || strings.Contains(g.ref, "..")) {
		return fmt.Errorf("%q is not the name of a git branch, tag or commit", g.ref)
	}
	if g.byCommit && !gitCommit.MatchString(g.ref) {
		if g.checksum == "" {
			return errors.New("fetching by commit needs a commit: a checksum, or its name as the ref")
		}
		if !gitCommit.MatchString(g.checksum) {
			return fmt.Errorf("fetching by commit needs the commit's whole name, and %q is not one", g.checksum)
		}
	}
	if err := g.signed.check(); err != nil {
		return err
	}
	return g.checkBundle()
}

// place is where the commit comes from.
func (g *gitOp) place() gitPlace { return gitPlace{g.remote, g.bundle} }

// withTransport gives an address that names no protocol https, as BuildKit does.
func withTransport(remote string) string {
	if !strings.Contains(remote, "://") && !strings.Contains(remote, "::") && !scpStyle.MatchString(remote) {
		return "https://" + remote
	}
	return remote
}

// sameRepository reports whether two addresses are of one repository, whatever
// the protocol and the login. Policies judge a source by its identifier, so the
// attribute must not lead elsewhere.
func sameRepository(a, b string) bool {
	x, errX := gitutil.ParseURL(a)
	y, errY := gitutil.ParseURL(b)
	if errX != nil || errY != nil {
		return false
	}
	place := func(p string) string { return strings.TrimSuffix(path.Join("/", p), ".git") }
	return strings.EqualFold(x.Host, y.Host) && place(x.Path) == place(y.Path)
}

// checkRemote refuses what git would take for something else than a repository
// on another machine: options, local paths, commands.
func checkRemote(remote string) error {
	if strings.ContainsAny(remote, "\x00\n\r") || !gitURL.MatchString(remote) && !scpStyle.MatchString(remote) {
		return fmt.Errorf("%q is not the address of a git repository", redactURL(remote))
	}
	return nil
}

// redactURL hides a password, for people.
func redactURL(s string) string {
	if u, err := url.Parse(s); err == nil {
		return u.Redacted()
	}
	return s
}
