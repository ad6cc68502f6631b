package dockerfile

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// resolveBases finds the images that the needed stages start from, all at the same
// time, and gives the needed stages. An image's ONBUILD may need further stages:
// then it goes round again.
func (c *compiler) resolveBases(ctx context.Context, target *stage) (map[*stage]bool, error) {
	triggered := map[*stage]bool{}
	for {
		needed := neededBy(target)
		if c.everyStage {
			for _, s := range c.stages.list {
				needed[s] = true
			}
		}
		if err := c.resolveImages(ctx, needed); err != nil {
			return nil, err
		}
		more := false
		for _, s := range c.stages.list {
			if !needed[s] || triggered[s] {
				continue
			}
			triggered[s] = true
			found, err := c.addTriggers(s)
			if err != nil {
				return nil, err
			}
			more = more || found
		}
		if !more {
			return needed, nil
		}
	}
}

// maxResolving is how many images are asked for at the same time.
const maxResolving = 32

// resolveImages finds what those stages start from that start from no other stage.
func (c *compiler) resolveImages(ctx context.Context, needed map[*stage]bool) error {
	var images []*stage
	for _, s := range c.stages.list {
		switch {
		case s.base != nil || s.resolved:
		case !needed[s]:
			// Its name is checked all the same: a typing error is one in any stage.
			if err := c.checkReference(s); err != nil {
				return err
			}
		case s.from == scratch && s.replaced == nil:
			c.startEmpty(s)
		default:
			images = append(images, s)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxResolving)
	for _, s := range images {
		s.resolved = true
		group.Go(func() error {
			if err := c.resolveBase(ctx, s); err != nil {
				if ctx.Err() != nil {
					// It ended because of another stage, whose error it may wrap: that one
					// has its place already, and is the one that is shown.
					return err
				}
				return parser.WithLocation(err, s.location)
			}
			s.done = s.done || s.isImage
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, s := range images {
		c.checkBasePlatform(s)
	}
	return nil
}

// startEmpty is FROM scratch.
func (c *compiler) startEmpty(s *stage) {
	p := c.platforms.target
	img := emptyImage(p)
	s.platform, s.state.image, s.state.env = &p, &img, &environment{}
	s.resolved = true
	s.done = s.isImage
}

func (c *compiler) checkReference(s *stage) error {
	if s.from == scratch {
		return nil
	}
	_, err := parseReference(s.from)
	return parser.WithLocation(err, s.location)
}

func parseReference(name string) (reference.Named, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("failed to parse stage name %q: %w", name, err)
	}
	return reference.TagNameOnly(ref), nil
}

// resolveBase finds what a stage starts from: a named context, or an image.
func (c *compiler) resolveBase(ctx context.Context, s *stage) error {
	s.state.env = &environment{}
	ref, err := parseReference(s.from)
	if err != nil {
		return err
	}
	platform := c.platforms.target
	if s.platform != nil {
		platform = *s.platform
	}
	if s.replaced != nil {
		return c.standIn(ctx, s)
	}
	nc, err := c.namedContextFor(ref.String(), &platform, s.reads)
	if err != nil {
		return err
	}
	if nc != nil {
		root, img, err := nc.load(ctx)
		if err != nil {
			return err
		}
		if img == nil {
			empty := emptyImage(platform)
			img = &empty
		}
		s.state.base = cloneImage(img)
		img.Created = nil
		s.state.image, s.state.root, s.platform = img, root, &platform
		return nil
	}
	return c.resolveFrom(ctx, s, ref, platform)
}

// standIn puts a named context in a stage's place.
func (c *compiler) standIn(ctx context.Context, s *stage) error {
	root, img, err := s.replaced.load(ctx)
	if err != nil {
		return err
	}
	s.done = true
	s.state.root = root
	if img == nil {
		s.state.image = &Image{}
		return nil
	}
	img.Created = nil
	s.state.image = img
	if img.Architecture != "" && img.OS != "" {
		p := img.Platform
		s.platform = &p
	}
	for _, kv := range img.Config.Env {
		k, v := cutEnv(kv)
		s.state.env.set(k, v)
	}
	return nil
}

// resolveFrom asks for an image's digest and config.
func (c *compiler) resolveFrom(ctx context.Context, s *stage, ref reference.Named, platform ocispecs.Platform) error {
	asked := s.from
	found, err := c.images.resolve(ctx, ref.String(), frontend.ResolveOptions{
		Platform: platform,
		LogName:  c.internalPrefix(platform) + " load metadata for " + ref.String(),
	})
	if err != nil {
		if s.isImage {
			err = fmt.Errorf("%q is no stage, and as an image: %w", asked, err)
		} else {
			err = fmt.Errorf("%s: %w", asked, err)
		}
		if match, ok := nearest(asked, append(c.stages.names(), wellKnownImages()...)); ok {
			err = &hinted{err, "did you mean " + match + "?"}
		}
		return err
	}
	img, err := parseImage(found.Config)
	if err != nil {
		return err
	}
	s.state.base = cloneImage(img)
	img.Created = nil
	s.state.image = img
	s.platform = &platform
	pinned, err := pin(ref, found)
	if err != nil {
		return err
	}
	if isEmptyImage(img) {
		return nil
	}
	s.pulled = true
	s.state.root = imageSource(pinned, c.opts.resolveMode, platform, llb.Meta{
		Name:        c.title(s, "FROM "+pinned, &environment{}, false),
		Description: describe(s.code),
		Locations:   c.location(s.location),
	})
	return nil
}

// internalPrefix opens the names of vertices that no instruction stands for.
func (c *compiler) internalPrefix(p ocispecs.Platform) string {
	if c.opts.multiPlatform {
		return "[" + platforms.FormatAll(p) + " internal]"
	}
	return "[internal]"
}

// pin adds the digest that a reference resolved to.
func pin(ref reference.Named, found frontend.Image) (string, error) {
	if found.Ref != "" && found.Ref != ref.String() {
		other, err := reference.ParseNormalizedNamed(found.Ref)
		if err != nil {
			return "", fmt.Errorf("failed to parse ref %q: %w", found.Ref, err)
		}
		ref = other
	}
	if found.Digest == "" {
		return ref.String(), nil
	}
	d, err := parseDigest(found.Digest)
	if err != nil {
		return "", err
	}
	pinned, err := reference.WithDigest(ref, d)
	if err != nil {
		return "", err
	}
	return pinned.String(), nil
}

// isEmptyImage reports whether an image has no layers, so that it is as good as
// scratch. Old manifests know their layers by the history alone.
func isEmptyImage(img *Image) bool {
	if len(img.RootFS.DiffIDs) > 0 {
		return false
	}
	for _, h := range img.History {
		if !h.EmptyLayer {
			return false
		}
	}
	return true
}

// wellKnownImages are what people mean when they mistype.
func wellKnownImages() []string {
	var out []string
	for _, name := range []string{"alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora", "node", "python", "nginx"} {
		out = append(out, name, name+":latest")
	}
	return out
}

// resolver asks for each image once in a build, whatever stages and platforms want it.
type resolver struct {
	bridge frontend.Bridge
	pull   bool

	mu    sync.Mutex
	found map[resolveKey]*resolving
}

type resolveKey struct{ ref, platform, layout string }

type resolving struct {
	done chan struct{}
	img  frontend.Image
	err  error
}

func newResolver(b frontend.Bridge, opts *options) *resolver {
	return &resolver{
		bridge: b,
		pull:   opts.resolveMode == pb.AttrImageResolveModeForcePull,
		found:  map[resolveKey]*resolving{},
	}
}

func (r *resolver) resolve(ctx context.Context, ref string, o frontend.ResolveOptions) (frontend.Image, error) {
	key := resolveKey{ref, platforms.FormatAll(o.Platform), o.Layout}
	r.mu.Lock()
	w, ok := r.found[key]
	if !ok {
		w = &resolving{done: make(chan struct{})}
		r.found[key] = w
	}
	r.mu.Unlock()
	if !ok {
		o.Pull = r.pull
		w.img, w.err = r.bridge.ResolveImage(ctx, ref, o)
		close(w.done)
		return w.img, w.err
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		return frontend.Image{}, context.Cause(ctx)
	}
	return w.img, w.err
}
