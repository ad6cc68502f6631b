package dockerfile

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// differNone tells a client that sends files to send them without comparing them
// with what was sent before: right for a file or two.
const differNone = pb.AttrLocalDifferNone

// localSource is a folder of the user's.
type localSource struct {
	name    string   // of the folder, as the session knows it
	session string   // that it is in; empty is the build's own
	title   string   // of the vertex
	hint    string   // says which transfers may share what was sent before
	follow  []string // only these paths, and what links among them lead to
	exclude []string
	compare string
}

func (s localSource) vertex() (llb.Edge, error) {
	attrs := map[string]string{pb.AttrSharedKeyHint: s.hint}
	for key, list := range map[string][]string{pb.AttrFollowPaths: s.follow, pb.AttrExcludePatterns: s.exclude} {
		if len(list) == 0 {
			continue
		}
		dt, err := json.Marshal(list)
		if err != nil {
			return llb.Edge{}, fmt.Errorf("marshalling %s: %w", key, err)
		}
		attrs[key] = string(dt)
	}
	if s.session != "" {
		attrs[pb.AttrLocalSessionID] = s.session
	}
	if s.compare != "" {
		attrs[pb.AttrLocalDiffer] = s.compare
	}
	return source("local://"+s.name, attrs, nil, llb.Meta{Name: s.title})
}

// imageSource is an image of a registry.
func imageSource(ref, resolveMode string, p ocispecs.Platform, meta llb.Meta) *fsys {
	return &fsys{make: func() (llb.Edge, error) {
		attrs := map[string]string{}
		if resolveMode != pb.AttrImageResolveModeDefault {
			attrs[pb.AttrImageResolveMode] = resolveMode
		}
		return source("docker-image://"+ref, attrs, &p, meta)
	}}
}

// layoutSource is an image of an OCI layout on the client's machine.
func layoutSource(ref, store string, p *ocispecs.Platform, meta llb.Meta) *fsys {
	return &fsys{make: func() (llb.Edge, error) {
		return source("oci-layout://"+ref, map[string]string{pb.AttrOCILayoutStoreID: store}, p, meta)
	}}
}

// httpSource is one file, called filename, that a web server gives.
func httpSource(url, filename, checksum string, meta llb.Meta) *fsys {
	return &fsys{make: func() (llb.Edge, error) {
		attrs := map[string]string{pb.AttrHTTPFilename: filename}
		if checksum != "" {
			attrs[pb.AttrHTTPChecksum] = checksum
		}
		return source(url, attrs, nil, meta)
	}}
}

// httpFilename is the name that a download gets: the last part of the URL's path.
func httpFilename(src string) string {
	if u, err := url.Parse(src); err == nil {
		if base := path.Base(u.Path); base != "." && base != "/" {
			return base
		}
	}
	return "__unnamed__"
}

// parseGit reads a git URL. Where ok is false s is none, whatever the error.
func parseGit(s string) (ref *dfgitutil.GitRef, ok bool, err error) {
	// Most words that come here are paths, and being told so by the parser is dear.
	if !strings.Contains(s, ":") && !strings.HasPrefix(s, "github.com/") {
		return nil, false, nil
	}
	ref, isGit, err := dfgitutil.ParseGitRef(s)
	if err != nil {
		return nil, isGit, err
	}
	return ref, true, nil
}

// gitSource is the tree of a commit.
type gitSource struct {
	ref      *dfgitutil.GitRef
	keepDir  bool
	checksum string
	mtime    string // "commit" gives files the commit's time
	advice   bool
	meta     llb.Meta
}

func (s gitSource) fsys() *fsys {
	return &fsys{make: func() (llb.Edge, error) {
		id, attrs := s.identify()
		return source("git://"+id, attrs, nil, s.meta)
	}}
}

// identify names the repository so that it is the same over https and ssh, and
// puts into attributes what the name leaves out.
func (s gitSource) identify() (id string, attrs map[string]string) {
	remote := s.ref.Remote
	u, err := gitutil.ParseURL(remote)
	if err != nil {
		remote = "https://" + remote
		u, err = gitutil.ParseURL(remote)
	}
	if err != nil {
		id = remote
	} else {
		remote = u.Remote
		id = u.Host + path.Join("/", u.Path)
		if s.ref.Ref != "" || s.ref.SubDir != "" {
			id += "#" + s.ref.Ref
			if s.ref.SubDir != "" {
				id += ":" + s.ref.SubDir
			}
		}
	}
	attrs = map[string]string{
		pb.AttrFullRemoteURL: remote,
		// Names of secrets with which a private repository is read, if the build has them.
		pb.AttrAuthHeaderSecret: "GIT_AUTH_HEADER",
		pb.AttrAuthTokenSecret:  "GIT_AUTH_TOKEN",
	}
	if err == nil && u.Scheme == gitutil.SSHProtocol {
		attrs[pb.AttrMountSSHSock] = "default"
	}
	s.addAttrs(attrs)
	return id, attrs
}

func (s gitSource) addAttrs(attrs map[string]string) {
	flag := func(key string, on bool) {
		if on {
			attrs[key] = "true"
		}
	}
	flag(pb.AttrKeepGitDir, s.keepDir)
	flag(pb.AttrGitSkipSubmodules, s.ref.Submodules != nil && !*s.ref.Submodules)
	flag(pb.AttrGitFetchByCommit, s.ref.FetchByCommit)
	flag(pb.AttrGitAdvice, s.advice)
	if s.checksum != "" {
		attrs[pb.AttrGitChecksum] = s.checksum
	}
	if s.mtime != "" {
		attrs[pb.AttrGitMTime] = s.mtime
	}
}

// redacted is a URL as it may be shown: without a user and a password, which over
// http are credentials.
func redacted(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User == nil || u.Scheme != "http" && u.Scheme != "https" {
		return s
	}
	u.User = url.User("xxxxx")
	return u.String()
}

func isGit(src string) bool {
	_, ok, err := parseGit(src)
	return ok && err == nil
}

// isHTTP reports whether src is a file to be downloaded: an http URL that does not
// name a git repository.
func isHTTP(src string) bool {
	if !strings.HasPrefix(src, "http://") && !strings.HasPrefix(src, "https://") {
		return false
	}
	return !isGit(src)
}
