package kiln

import (
	"context"
	"io"

	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/request"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/source"
)

// Request says what to build. Its zero value builds the Dockerfile of the
// current folder for the machine's platform, and writes no output: the result
// stays in the state folder, where the next build finds it.
type Request struct {
	// Context is a folder, a tarball, or the URL of a git repository or of a tarball.
	// Empty is the current folder.
	Context string
	// Dockerfile is the path of the build description: on this machine, or in the
	// context where that is a tarball or a URL. Empty is the file called Dockerfile in the context.
	Dockerfile string
	// DockerfileText is the build description itself, where it is in no file.
	DockerfileText []byte
	// Target is the stage to build; empty is the last.
	Target string
	// BuildArgs are the values of ARG instructions.
	BuildArgs map[string]string
	// Contexts are further contexts by name: a folder, or an image, URL, layout or
	// target with its scheme, "docker-image://alpine" for one.
	Contexts map[string]string
	// Labels are added to the image config.
	Labels map[string]string
	// Platforms are what to build for, "linux/arm64" for one; none is the machine's own.
	Platforms []string
	// NoCache runs every step, though records say what would come out.
	NoCache bool
	// NoCacheFilter names stages for which that holds.
	NoCacheFilter []string
	// Pull asks registries what tags stand for, though that is known here.
	Pull bool
	// Network is what steps see unless they say: "default", "host" or "none".
	Network string
	// AddHosts are further lines of /etc/hosts, "name=address" or "name:address".
	AddHosts []string
	// ShmSize is the size of /dev/shm in bytes; 0 is 64 MiB.
	ShmSize int64
	// Ulimits are limits of steps in docker's form, "nofile=1024:2048".
	Ulimits []string
	// CgroupParent is the cgroup that steps run below.
	CgroupParent string
	// Call asks about the build description, and builds nothing: "lint", "outline" or
	// "targets". The answer is in the result's metadata, as "result.json" and
	// "result.txt"; "result.statuscode" is other than 0 where a check found something.
	// "dry-run" says what the build would do, and runs no step; its answer is under
	// request.ExplanationKey.
	Call string
	// Attrs are further frontend attributes, in the names of BuildKit's clients.
	Attrs map[string]string

	// Secrets are lent to RUN --mount=type=secret by id.
	Secrets map[string]Secret
	// SSH are agents lent to RUN --mount=type=ssh by id.
	SSH map[string]SSHAgent
	// Allow are entitlements: "network.host", "security.insecure", "device".
	Allow []string

	// Frontend compiles the build description; nil is the Dockerfile frontend.
	Frontend frontend.Frontend
	// Forward runs frontends that stand in images, where a description asks for one
	// ("# syntax="); nil runs none. It reports false for those that it leaves to
	// the frontend that asked.
	Forward func(ctx context.Context, b frontend.Bridge, source, cmdline string, req frontend.Request) (*frontend.Result, bool, error)
	// Inputs are graphs that the frontend knows by name.
	Inputs map[string]llb.Edge
	// Session lends the build what it reads, for callers who are not on this
	// machine. Context, Dockerfile, DockerfileText, Contexts, Secrets and SSH then
	// say nothing.
	Session *worker.Session

	// Outputs say what to do with the result.
	Outputs []Output
	// CacheFrom are caches of other machines that results are looked for in, and
	// CacheTo those that the build's results are added to.
	CacheFrom, CacheTo []RemoteCache

	// KeyFiles lets the caches of a request that has a Session name files of keys on this
	// machine: its caller could read them himself.
	KeyFiles bool

	// Ref is the build's name in the journal; empty makes one up.
	Ref string
	// FailOnMiss are patterns of the names of steps that are to be cached: where one
	// of them runs, the build fails with an *explain.MissedError. See explain.Matches.
	FailOnMiss []string
	// Explain has the build learn what its remote caches know of earlier builds, with
	// which Engine.Explain compares it then.
	Explain bool

	// Record has the result hold what records of builds are made of: Documents and
	// Provenance.
	Record bool

	// SourcePolicy says which sources the build may read, and which others take their
	// place; nil lets it read all. CheckSource is asked besides; nil is nobody.
	SourcePolicy *spb.Policy
	CheckSource  SourceCheck

	// ProxyNetwork leaves steps no way out but a proxy of the engine's, which holds what
	// they ask for against the policies, and knows afterwards what they fetched.
	ProxyNetwork bool

	// MoreOutputs is asked for further outputs once the result is there, and Exported
	// told what all of them made of it; nil is nobody.
	MoreOutputs func(ctx context.Context, r *frontend.Result) ([]Output, error)
	Exported    func(ctx context.Context, metadata map[string]string) error

	// OnError is called with a step that made the build fail, before Build returns; nil
	// keeps nothing of such steps.
	OnError func(ctx context.Context, s *FailedStep)
	// Events is called with all that happens, in order, by one goroutine; nil hears nothing.
	Events func(Event)
}

// Secret is the value of a secret, or where it is read from at the time a step wants it.
type Secret = request.Secret

// SSHAgent says which keys steps may use.
type SSHAgent = request.SSHAgent

// Output is what to do with a result.
type Output struct {
	// Type is "oci", "docker", "image", "registry", "local" or "tar".
	Type string
	// Attrs are the exporter's attributes, in BuildKit's names.
	Attrs map[string]string
	// Dest is the file or folder to write; for tarballs, Writer stands in its place.
	Dest   string
	Writer io.Writer
	// Target stands in the place of both for callers who are not on this machine.
	Target exporter.Target
}

// inputs are what a request comes down to: frontend attributes, and what the
// sources of the build that are on this machine name.
type inputs struct {
	attrs   map[string]string
	locals  folders
	layouts layouts
	uploads uploads
}

// inputs works a request out.
func (r *Request) inputs() (*inputs, error) {
	asked := r.portable()
	if r.Session != nil {
		return &inputs{attrs: asked.FrontendAttrs()}, nil
	}
	in, err := asked.Inputs(lookupLayout)
	if err != nil {
		return nil, err
	}
	out := &inputs{attrs: in.Attrs, locals: in.Folders, layouts: layouts{}, uploads: in.Files}
	for name, dir := range in.Layouts {
		if out.layouts[name], err = source.OpenLayout(dir); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// portable gives what the request says of the build description.
func (r *Request) portable() *request.Request {
	return &request.Request{
		Context: r.Context, Dockerfile: r.Dockerfile, DockerfileText: r.DockerfileText, Contexts: r.Contexts,
		Target: r.Target, BuildArgs: r.BuildArgs, Labels: r.Labels, Platforms: r.Platforms,
		NoCache: r.NoCache, NoCacheFilter: r.NoCacheFilter, Pull: r.Pull, Network: r.Network, AddHosts: r.AddHosts,
		ShmSize: r.ShmSize, Ulimits: r.Ulimits, CgroupParent: r.CgroupParent, Call: r.Call, Attrs: r.Attrs,
	}
}

// lookupLayout finds an image in a layout.
func lookupLayout(dir, tag string) (string, error) {
	l, err := source.OpenLayout(dir)
	if err != nil {
		return "", err
	}
	d, err := l.Lookup(tag)
	return d.String(), err
}
