// Package request says what a build is asked for, in words that mean the same on
// every machine: a Request is what the flags of `kiln build` come to, whether the
// engine is in this process or behind a socket on another system.
//
// Inputs works a request out: it gives the frontend attributes that BuildKit's
// clients use for it, and the folders and image layouts of this machine that the
// build reads, by the names that the attributes give them.
package request

import "io"

// Request says what to build. Its zero value builds the Dockerfile of the current
// folder for the engine's own platform.
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
	// Platforms are what to build for, "linux/arm64" for one; none is the engine's own.
	Platforms []string
	// NoCache runs every step, though records say what would come out.
	NoCache bool
	// NoCacheFilter names stages for which that holds.
	NoCacheFilter []string
	// Pull asks registries what tags stand for, though that is known to the engine.
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
	// ProxyNetwork leaves steps no way out but a proxy of the engine's.
	ProxyNetwork bool
	// Call asks about the build description, and builds nothing: "lint", "outline" or
	// "targets". The answer is in the result's metadata, as "result.json" and
	// "result.txt"; "result.statuscode" is other than 0 where a check found something.
	Call string
	// Frontend compiles the build description: "dockerfile.v0", which is the default,
	// "gateway.v0" for the one in the image that the attribute "source" names, or
	// "exec:PATH" for a program of the engine's machine.
	Frontend string
	// Ref is the build's name in the engine's journal; empty has the engine make one up.
	Ref string
	// FailOnMiss are patterns of the names of steps that are to be cached: where one
	// of them runs, the build fails. See explain.Matches.
	FailOnMiss []string
	// Explain says that the build is to be explained when it has ended, which the
	// engine has to be able to: it asks the build's remote caches for earlier builds.
	Explain bool
	// Attrs are further frontend attributes, in the names of BuildKit's clients.
	Attrs map[string]string

	// Secrets are lent to RUN --mount=type=secret by id.
	Secrets map[string]Secret
	// SSH are agents lent to RUN --mount=type=ssh by id.
	SSH map[string]SSHAgent
	// Allow are entitlements: "network.host", "security.insecure", "device".
	Allow []string

	// Outputs say what to do with the result.
	Outputs []Output
	// Provenance has the result say what its images were built from.
	Provenance bool
	// CacheFrom are caches of other machines that results are looked for in, and
	// CacheTo those that the build's results are added to.
	CacheFrom, CacheTo []RemoteCache
}

// Secret is the value of a secret, or where it is read from at the time a step wants it.
type Secret struct {
	Value []byte
	Path  string // of a file
	Env   string // name of an environment variable
}

// SSHAgent says which keys steps may use.
type SSHAgent struct {
	// Socket is that of a running agent; empty is SSH_AUTH_SOCK's.
	Socket string
	// Keys are files of private keys, served without any agent.
	Keys []string
}

// Output is what to do with a result.
type Output struct {
	// Type is "oci", "docker", "image", "registry", "local" or "tar".
	Type string
	// Attrs are the exporter's attributes, in BuildKit's names.
	Attrs map[string]string
	// Dest is the file or folder to write; for tarballs, Writer stands in its place.
	Dest   string
	Writer io.Writer
}

// CacheTypes are where caches are shared that are read as well as written.
var CacheTypes = []string{"registry", "local", "http", "s3", "azblob", "gha"}

// RemoteCache names a cache that is shared with other machines.
type RemoteCache struct {
	// Type is one of CacheTypes or, to be written, "inline".
	Type string
	// Attrs are its attributes, in BuildKit's names: see docs/caching.md.
	Attrs map[string]string
}

// Result is what a build made, as far as whoever asked for it is told.
type Result struct {
	// Digest is that of the manifest, or of the index where there are several
	// platforms; empty where no output made one.
	Digest string
	// Metadata is what the outputs and the frontend tell, in BuildKit's names.
	Metadata map[string]string
	// Provenance is what the images were built from, where the request asked for that
	// and the engine knows.
	Provenance []Provenance
}

// Provenance says what one image was built from.
type Provenance struct {
	Platform string // what the frontend calls it; empty where there is one image only
	Type     string // of the predicate: the URL of SLSA's version
	Data     []byte // the predicate, as JSON
}
