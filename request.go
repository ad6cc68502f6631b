package kiln

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/source"
)

// Request says what to build. Its zero value builds the Dockerfile of the
// current folder for the machine's platform, and writes no output: the result
// stays in the state folder, where the next build finds it.
type Request struct {
	// Context is a folder, or the URL of a git repository or of a tarball. Empty
	// is the current folder.
	Context string
	// Dockerfile is the path of the build description: on this machine, or in the
	// context where that is a URL. Empty is the file called Dockerfile in the context.
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

	// Events is called with all that happens, in order, by one goroutine; nil hears nothing.
	Events func(Event)
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
	// Target stands in the place of both for callers who are not on this machine.
	Target exporter.Target
}

// isRemote reports whether a context is something other than a folder.
func isRemote(context string) bool {
	for _, scheme := range []string{"http://", "https://", "git://", "ssh://", "git@", "github.com/"} {
		if strings.HasPrefix(context, scheme) {
			return true
		}
	}
	return false
}

// inputs are what a request comes down to: frontend attributes, and what the
// sources of the build that are on this machine name.
type inputs struct {
	attrs   map[string]string
	locals  folders
	layouts layouts
}

// inputs works a request out.
func (r *Request) inputs() (*inputs, error) {
	in := &inputs{attrs: map[string]string{}, locals: folders{}, layouts: layouts{}}
	attrs := in.attrs
	set := func(prefix string, m map[string]string) {
		for k, v := range m {
			attrs[prefix+k] = v
		}
	}
	set("build-arg:", r.BuildArgs)
	set("label:", r.Labels)
	if r.Session == nil {
		if err := r.setContexts(in); err != nil {
			return nil, err
		}
	}
	if r.Target != "" {
		attrs["target"] = r.Target
	}
	if len(r.Platforms) > 0 {
		attrs["platform"] = strings.Join(r.Platforms, ",")
	}
	if r.NoCache {
		attrs["no-cache"] = ""
	} else if len(r.NoCacheFilter) > 0 {
		attrs["no-cache"] = strings.Join(r.NoCacheFilter, ",")
	}
	if r.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	if r.Network != "" && r.Network != "default" {
		attrs["force-network-mode"] = r.Network
	}
	if len(r.AddHosts) > 0 {
		hosts := slices.Clone(r.AddHosts)
		for i, h := range hosts {
			if !strings.Contains(h, "=") {
				hosts[i] = strings.Replace(h, ":", "=", 1)
			}
		}
		attrs["add-hosts"] = strings.Join(hosts, ",")
	}
	if r.ShmSize > 0 {
		attrs["shm-size"] = strconv.FormatInt(r.ShmSize, 10)
	}
	if len(r.Ulimits) > 0 {
		attrs["ulimit"] = strings.Join(r.Ulimits, ",")
	}
	if r.CgroupParent != "" {
		attrs["cgroup-parent"] = r.CgroupParent
	}
	if r.Call != "" {
		attrs["requestid"] = "frontend." + r.Call
	}
	set("", r.Attrs)
	return in, nil
}

// setContexts names the folders and addresses that the build reads.
func (r *Request) setContexts(in *inputs) error {
	attrs, locals := in.attrs, in.locals
	context := r.Context
	if context == "" {
		context = "."
	}
	if isRemote(context) {
		attrs["context"] = context
	} else {
		if err := isFolder(context); err != nil {
			return fmt.Errorf("the build context: %w", err)
		}
		locals["context"] = context
	}
	switch {
	case r.Dockerfile != "" && isRemote(context):
		attrs["filename"] = r.Dockerfile // in the context, as its name is given
	case r.Dockerfile != "":
		locals["dockerfile"] = filepath.Dir(r.Dockerfile)
		attrs["filename"] = filepath.Base(r.Dockerfile)
		if _, err := os.Stat(r.Dockerfile); err != nil {
			return fmt.Errorf("reading the Dockerfile: %w", err)
		}
	case !isRemote(context):
		locals["dockerfile"] = context
	}
	for name, value := range r.Contexts {
		switch layout, ok := strings.CutPrefix(value, "oci-layout://"); {
		case ok:
			if err := in.setLayout(name, layout); err != nil {
				return fmt.Errorf("the build context %s: %w", name, err)
			}
		case strings.Contains(value, "://") || strings.HasPrefix(value, "target:") || isRemote(value):
			attrs["context:"+name] = value
		default:
			if err := isFolder(value); err != nil {
				return fmt.Errorf("the build context %s: %w", name, err)
			}
			attrs["context:"+name] = "local:" + name
			locals[name] = value
		}
	}
	return nil
}

// setLayout names an image in an image layout: a folder, and :TAG or @DIGEST.
func (in *inputs) setLayout(name, spec string) error {
	dir, digest, _ := strings.Cut(spec, "@")
	dir, tag, _ := strings.Cut(dir, ":")
	l, err := source.OpenLayout(dir)
	if err != nil {
		return err
	}
	if digest == "" {
		d, err := l.Lookup(tag)
		if err != nil {
			return err
		}
		digest = d.String()
	}
	// The name is part of no key; it only has to be one that references can have.
	store := fmt.Sprintf("layout%d", len(in.layouts))
	in.layouts[store] = l
	in.attrs["context:"+name] = "oci-layout://" + store + "@" + digest
	return nil
}

func isFolder(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", path)
	}
	return nil
}
