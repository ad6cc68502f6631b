package dockerfile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// namedContext is something that the request puts in the place of an image or a
// stage: an image, a folder, a repository, a download, another build's result.
type namedContext struct {
	c        *compiler
	name     string // familiar form of what is replaced
	key      string // name, with the platform where the request says it
	spec     string
	platform ocispecs.Platform
	reads    paths // of the stage that it stands for
	replaced int   // how many times policies put another source in its place
}

// maxPolicySteps bounds how often policies may do that: they may go round in circles.
const maxPolicySteps = 10

// namedContextFor gives what the request puts in name's place, or nil.
func (c *compiler) namedContextFor(name string, p *ocispecs.Platform, reads paths) (*namedContext, error) {
	if strings.EqualFold(name, scratch) || strings.EqualFold(name, contextName) {
		return nil, nil
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("invalid context name %s: %w", name, err)
	}
	short := strings.TrimSuffix(reference.FamiliarString(ref), ":latest")
	platform := c.platforms.target
	if p != nil {
		platform = *p
	}
	nc := &namedContext{c: c, name: short, platform: platform, reads: reads}
	for _, key := range []string{short + "::" + platforms.FormatAll(platforms.Normalize(platform)), short} {
		if spec, ok := c.opts.raw["context:"+key]; ok {
			nc.key, nc.spec = key, spec
			return nc, nil
		}
	}
	return nil, nil
}

// Replacement gives what a request's named contexts put in the place of an image, with
// its config, as JSON, where it has one. ok is false where they put nothing there.
func Replacement(ctx context.Context, b frontend.Bridge, req frontend.Request, image string) (root llb.Edge, config []byte, ok bool, err error) {
	// Options that are of no concern here are another frontend's, and may say what this
	// one does not understand.
	named := false
	for key := range req.Opts {
		named = named || strings.HasPrefix(key, "context:")
	}
	if !named {
		return llb.Edge{}, nil, false, nil
	}
	opts, err := parseOptions(req)
	if err != nil {
		return llb.Edge{}, nil, false, err
	}
	in := &origin{bridge: b, opts: opts, inputs: req.Inputs}
	c := newCompiler(opts, in, nil, newResolver(b, opts), newPlatformSet(nil, opts.machine), nil)
	nc, err := c.namedContextFor(image, nil, paths{"/": {}})
	if nc == nil || err != nil {
		return llb.Edge{}, nil, false, err
	}
	if strings.HasPrefix(nc.spec, "target:") {
		return llb.Edge{}, nil, false, fmt.Errorf("%s for %s: there is no Dockerfile that the target could be of", nc.spec, nc.key)
	}
	from, img, err := nc.load(ctx)
	if err != nil {
		return llb.Edge{}, nil, false, err
	}
	if root, err = from.get(); err != nil || img == nil {
		return root, nil, true, err
	}
	config, err = json.Marshal(img)
	return root, config, true, err
}

// load gives the file system, and the image config where there is one.
func (n *namedContext) load(ctx context.Context) (*fsys, *Image, error) {
	kind, rest, ok := strings.Cut(n.spec, ":")
	if !ok {
		return nil, nil, fmt.Errorf("invalid context specifier %s for %s", n.spec, n.key)
	}
	if strings.HasPrefix(kind, "git@") {
		// An ssh URL in scp's form has no scheme.
		kind = "git"
	}
	switch kind {
	case "docker-image":
		f, img, err := n.image(ctx, strings.TrimPrefix(rest, "//"))
		var other *frontend.ReplacedError
		if errors.As(err, &other) {
			return n.replacedBy(ctx, other)
		}
		return f, img, err
	case "oci-layout":
		return n.layout(ctx, strings.TrimPrefix(rest, "//"))
	case "local":
		f, err := n.local(ctx, rest)
		return f, nil, err
	case "input":
		return n.input(rest)
	case "target":
		return n.target(ctx, rest)
	case "git":
		f, ok, err := n.git()
		if !ok {
			return nil, nil, fmt.Errorf("invalid git context %s", n.spec)
		}
		return f, nil, err
	case "http", "https":
		if f, ok, err := n.git(); ok {
			return f, nil, err
		}
		return httpSource(n.spec, httpContextFile, "", llb.Meta{Name: n.title(redacted(n.spec))}), nil, nil
	}
	return nil, nil, fmt.Errorf("unsupported context source %s for %s", kind, n.key)
}

// replacedBy gives what policies put in an image's place.
func (n *namedContext) replacedBy(ctx context.Context, other *frontend.ReplacedError) (*fsys, *Image, error) {
	if n.replaced == maxPolicySteps {
		return nil, nil, fmt.Errorf("%s: the policies replace it more than %d times: %w", n.spec, maxPolicySteps, other)
	}
	next := *n
	next.replaced++
	next.spec = other.By
	// Folders have a form of their own among named contexts.
	if name, ok := strings.CutPrefix(other.By, "local://"); ok {
		next.spec = "local:" + name
	}
	return next.load(ctx)
}

func (n *namedContext) title(what string) string { return "[context " + n.key + "] " + what }

func (n *namedContext) image(ctx context.Context, name string) (*fsys, *Image, error) {
	if name == scratch {
		return nil, nil, nil
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, nil, err
	}
	ref = reference.TagNameOnly(ref)
	found, err := n.c.images.resolve(ctx, ref.String(), frontend.ResolveOptions{
		Platform: n.platform,
		LogName:  n.title("load metadata for " + name),
	})
	if err != nil {
		return nil, nil, err
	}
	img, err := parseImage(found.Config)
	if err != nil {
		return nil, nil, err
	}
	img.Created = nil
	pinned, err := pin(ref, found)
	if err != nil {
		return nil, nil, err
	}
	return imageSource(pinned, "default", n.platform, llb.Meta{Name: n.title(name)}), img, nil
}

func (n *namedContext) layout(ctx context.Context, spec string) (*fsys, *Image, error) {
	parsed, err := reference.Parse(spec)
	if err != nil {
		return nil, nil, fmt.Errorf("could not parse oci-layout reference %q: %w", spec, err)
	}
	store, ok := parsed.(reference.Named)
	if !ok {
		return nil, nil, fmt.Errorf("oci-layout reference %q has no name", spec)
	}
	digested, ok := parsed.(reference.Digested)
	if !ok {
		return nil, nil, fmt.Errorf("oci-layout reference %q has no digest", spec)
	}
	// What people see names the image as the Dockerfile does; the store has its own name.
	shown, err := reference.ParseNormalizedNamed(n.name)
	if err != nil {
		return nil, nil, fmt.Errorf("could not parse oci-layout reference %q: %w", n.name, err)
	}
	ref, err := reference.WithDigest(shown, digested.Digest())
	if err != nil {
		return nil, nil, fmt.Errorf("could not wrap %q with digest: %w", n.name, err)
	}
	found, err := n.c.images.resolve(ctx, ref.String(), frontend.ResolveOptions{
		Platform: n.platform,
		LogName:  n.title("load metadata for " + ref.String()),
		Layout:   store.Name(),
	})
	if err != nil {
		return nil, nil, err
	}
	img, err := parseImage(found.Config)
	if err != nil {
		return nil, nil, err
	}
	meta := llb.Meta{Name: n.title("OCI load from client")}
	return layoutSource(ref.String(), store.Name(), &n.platform, meta), img, nil
}

// local is a folder; only what is read of it is sent, and its ignore file holds.
func (n *namedContext) local(ctx context.Context, name string) (*fsys, error) {
	ignore, err := readIgnoreOf(ctx, n.c.in.bridge, localSource{
		name:    name,
		session: n.c.opts.sessionOf(name),
		title:   n.title("load " + ignoreName),
		hint:    "context:" + n.key + "-" + ignoreName,
		follow:  []string{ignoreName},
		compare: differNone,
	})
	if err != nil {
		return nil, err
	}
	excluded, err := ignore.patterns()
	if err != nil {
		return nil, err
	}
	return &fsys{make: func() (llb.Edge, error) {
		return localSource{
			name:    name,
			session: n.c.opts.sessionOf(name),
			title:   n.title("load from client"),
			hint:    "context:" + n.key + "-" + n.c.opts.raw["sharedkey:localdir:"+n.key],
			follow:  n.reads.follow(),
			exclude: excluded,
		}.vertex()
	}}, nil
}

func (n *namedContext) git() (*fsys, bool, error) {
	ref, ok, err := parseGit(n.spec)
	if !ok || err != nil {
		return nil, ok, err
	}
	return gitSource{
		ref:      ref,
		keepDir:  ref.KeepGitDir != nil && *ref.KeepGitDir,
		checksum: ref.Checksum,
		mtime:    ref.MTime,
		advice:   n.c.opts.gitAdvice,
		meta:     llb.Meta{Name: "[internal] load git source " + redacted(n.spec)},
	}.fsys(), true, nil
}

// input is the result of another build of the same client.
func (n *namedContext) input(name string) (*fsys, *Image, error) {
	e, ok := n.c.in.inputs[name]
	if !ok {
		return nil, nil, fmt.Errorf("invalid input %s for %s", name, n.key)
	}
	root := fixed(e)
	dt, ok := n.c.opts.raw["input-metadata:"+name]
	if !ok {
		return root, nil, nil
	}
	var meta map[string][]byte
	if err := json.Unmarshal([]byte(dt), &meta); err != nil {
		return nil, nil, fmt.Errorf("failed to parse input metadata %s: %w", dt, err)
	}
	config, ok := meta["containerimage.config"]
	if !ok {
		return root, nil, nil
	}
	img, err := parseImage(config)
	if err != nil {
		return nil, nil, fmt.Errorf("input %s for %s: %w", name, n.key, err)
	}
	return root, img, nil
}

// target is another target of the same Dockerfile, built as if it were asked for
// alone. (In a bake file target:NAME is any target of the file; there the client
// builds it, and it comes here as an input.)
func (n *namedContext) target(ctx context.Context, name string) (*fsys, *Image, error) {
	if name == "" {
		return nil, nil, fmt.Errorf("%s for %s names no target", n.spec, n.key)
	}
	if n.c.opts.nested {
		// One target more for each could be as many as their permutations.
		return nil, nil, fmt.Errorf("%s stands for %s within a target that stands for another context", n.spec, n.key)
	}
	opts := *n.c.opts
	opts.target, opts.nested = name, true
	sub := newCompiler(&opts, n.c.in, n.c.file, n.c.images, newPlatformSet(&n.platform, opts.machine), nil)
	out, err := sub.compile(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%s for %s: %w", n.spec, n.key, err)
	}
	img, err := parseImage(out.image.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("%s for %s: %w", n.spec, n.key, err)
	}
	return fixed(out.image.Root), img, nil
}
