package provenance

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image that a build started from, or that its frontend asked about.
type Image struct {
	Ref      string // in full, with host and tag
	Platform *ocispecs.Platform
	Digest   string
	Layout   bool // it is in a layout, not in a registry
}

// Blob is one blob of a repository, or of a layout, that a build used as a file.
type Blob struct {
	Ref, Digest string
	Layout      bool
}

// Git is a commit that a build used.
type Git struct {
	URL, Commit string
	// Bundle is the blob that the commit came in; nil where it came from the URL.
	Bundle *Blob
}

// HTTP is a file that a build fetched.
type HTTP struct{ URL, Digest string }

// Capture is what went into one image.
type Capture struct {
	Frontend string
	Args     map[string]string
	Root     *Request            // the request that led to this one, where there is one
	Inputs   map[string]*Request // what the graphs were made by that the frontend was given

	Images  []Image
	Blobs   []Blob
	Git     []Git
	HTTP    []HTTP
	Locals  []string
	Secrets map[string]bool // ids; true where the build could do without
	SSH     map[string]bool

	// Missed are the requests of steps of the proxy network of which it is not known
	// what came, and Proxied says that there was such a step.
	Missed  []Missed
	Proxied bool
	// Network says that a step could reach others.
	Network bool
	// Unknown says that a step's sources could not be seen.
	Unknown bool
}

// Pins give what sources are pinned to: the digest of an image or of a file, the
// name of a commit. They are "" for what was not pinned.
type Pins func(llb.Digest) string

// Add notes what the graphs of edges use.
func (c *Capture) Add(pins Pins, edges ...llb.Edge) {
	for _, v := range llb.Walk(edges...) {
		switch op := v.Op().Op.(type) {
		case *pb.Op_Source:
			c.addSource(v, op.Source, pins(v.Digest()))
		case *pb.Op_Exec:
			c.addExec(op.Exec)
		case *pb.Op_Build:
			c.Unknown = true // what it builds is not in this graph
		}
	}
}

func (c *Capture) addSource(v *llb.Vertex, op *pb.SourceOp, pin string) {
	scheme, ref, _ := strings.Cut(op.Identifier, "://")
	switch scheme {
	case "docker-image", "oci-layout":
		c.AddImage(Image{Ref: ref, Platform: platformOf(v.Op().Platform), Digest: pin, Layout: scheme == "oci-layout"})
	case "docker-image+blob", "oci-layout+blob":
		b := Blob{Ref: ref, Digest: pin, Layout: scheme == "oci-layout+blob"}
		if !slices.Contains(c.Blobs, b) {
			c.Blobs = append(c.Blobs, b)
		}
	case "git":
		c.addGit(op, ref, pin)
	case "http", "https":
		c.AddHTTP(HTTP{URL: Redact(op.Identifier), Digest: pin})
	case "local":
		if !slices.Contains(c.Locals, ref) {
			c.Locals = append(c.Locals, ref)
		}
	}
}

func (c *Capture) addGit(op *pb.SourceOp, ref, pin string) {
	repository, fragment, _ := strings.Cut(ref, "#")
	at, _, _ := strings.Cut(fragment, ":")
	if full := op.Attrs[pb.AttrFullRemoteURL]; full != "" {
		repository, _, _ = strings.Cut(full, "#")
	} else if !strings.Contains(repository, "://") && !strings.Contains(repository, "@") {
		repository = "https://" + repository
	}
	if at != "" {
		repository += "#" + at
	}
	g := Git{URL: Redact(repository), Commit: pin}
	if scheme, bundle, ok := strings.Cut(op.Attrs[pb.AttrGitBundle], "://"); ok {
		_, digest, _ := strings.Cut(bundle, "@")
		g.Bundle = &Blob{Ref: bundle, Digest: digest, Layout: scheme == "oci-layout+blob"}
	}
	same := func(o Git) bool {
		return o.URL == g.URL && (o.Bundle == nil) == (g.Bundle == nil) && (g.Bundle == nil || *o.Bundle == *g.Bundle)
	}
	if !slices.ContainsFunc(c.Git, same) {
		c.Git = append(c.Git, g)
	}
	for _, attr := range []string{pb.AttrAuthTokenSecret, pb.AttrAuthHeaderSecret} {
		if id := op.Attrs[attr]; id != "" {
			c.Secrets = lent(c.Secrets, id, true)
		}
	}
	if id := op.Attrs[pb.AttrMountSSHSock]; id != "" {
		c.SSH = lent(c.SSH, id, true)
	}
}

func (c *Capture) addExec(op *pb.ExecOp) {
	for _, m := range op.Mounts {
		switch m.MountType {
		case pb.MountType_SECRET:
			c.Secrets = lent(c.Secrets, m.SecretOpt.GetID(), m.SecretOpt.GetOptional())
		case pb.MountType_SSH:
			c.SSH = lent(c.SSH, cmp.Or(m.SSHOpt.GetID(), "default"), m.SSHOpt.GetOptional())
		}
	}
	for _, e := range op.Secretenv {
		c.Secrets = lent(c.Secrets, e.GetID(), e.GetOptional())
	}
	if op.Network != pb.NetMode_NONE {
		c.Network = true
	}
	c.Proxied = c.Proxied || llb.IsProxied(op.Network)
}

// AddHTTP notes a file, once for each URL.
func (c *Capture) AddHTTP(h HTTP) {
	if !slices.ContainsFunc(c.HTTP, func(o HTTP) bool { return o.URL == h.URL }) {
		c.HTTP = append(c.HTTP, h)
	}
}

// AddMissed notes a request of a step.
func (c *Capture) AddMissed(v *llb.Vertex, m Missed) {
	var words []string
	for _, word := range v.Op().GetExec().GetMeta().GetArgs() {
		words = append(words, Redact(word))
	}
	m.Op, m.Name = v.Digest().String(), strings.Join(words, " ")
	c.Missed = append(c.Missed, m)
}

// lent notes an id; one that some step needs is not optional.
func lent(m map[string]bool, id string, optional bool) map[string]bool {
	if m == nil {
		m = map[string]bool{}
	}
	if known, ok := m[id]; !ok || known {
		m[id] = optional
	}
	return m
}

// AddImage notes an image once for each platform.
func (c *Capture) AddImage(i Image) {
	if named, err := reference.ParseNormalizedNamed(i.Ref); err == nil {
		i.Ref = reference.TagNameOnly(named).String()
	}
	same := func(o Image) bool {
		if o.Ref != i.Ref || o.Layout != i.Layout || (o.Platform == nil) != (i.Platform == nil) {
			return false
		}
		return i.Platform == nil || platforms.FormatAll(*o.Platform) == platforms.FormatAll(*i.Platform)
	}
	if !slices.ContainsFunc(c.Images, same) {
		c.Images = append(c.Images, i)
	}
}

// AddOf notes the images that a frontend asked about for several platforms: of
// those that it asked about for every platform of the result, the one's own.
func (c *Capture) AddOf(own ocispecs.Platform, all []ocispecs.Platform, images []Image) {
	for _, i := range images {
		if i.Platform != nil && len(all) > 1 && everyPlatform(i.Ref, all, images) &&
			(i.Platform.OS != own.OS || i.Platform.Architecture != own.Architecture) {
			continue
		}
		c.AddImage(i)
	}
}

func everyPlatform(ref string, all []ocispecs.Platform, images []Image) bool {
	for _, p := range all {
		match := platforms.NewMatcher(p)
		if !slices.ContainsFunc(images, func(i Image) bool { return i.Ref == ref && i.Platform != nil && match.Match(*i.Platform) }) {
			return false
		}
	}
	return true
}

// tidy sorts, and leaves out images by digest of which the tag is known.
func (c *Capture) tidy() {
	byTag := map[string]bool{}
	for _, i := range c.Images {
		if name, canonical := nameTag(i.Ref); !canonical {
			byTag[name] = true
		}
	}
	c.Images = slices.DeleteFunc(c.Images, func(i Image) bool {
		name, canonical := nameTag(i.Ref)
		return canonical && byTag[name]
	})
	slices.SortStableFunc(c.Images, func(a, b Image) int { return cmp.Compare(a.Ref, b.Ref) })
	slices.SortFunc(c.Blobs, func(a, b Blob) int { return cmp.Compare(a.Ref, b.Ref) })
	slices.SortStableFunc(c.Git, func(a, b Git) int { return cmp.Compare(a.URL, b.URL) })
	slices.SortFunc(c.HTTP, func(a, b HTTP) int { return cmp.Compare(a.URL, b.URL) })
	slices.Sort(c.Locals)
	slices.SortStableFunc(c.Missed, func(a, b Missed) int {
		return cmp.Or(cmp.Compare(a.Op, b.Op), cmp.Compare(a.URI, b.URI), cmp.Compare(a.Method, b.Method), cmp.Compare(a.Reason, b.Reason))
	})
}

// nameTag gives the name and tag of an image, and whether it is named by digest.
func nameTag(ref string) (name string, canonical bool) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref, false
	}
	tag := "latest"
	if t, ok := named.(reference.Tagged); ok {
		tag = t.Tag()
	}
	_, canonical = named.(reference.Canonical)
	return named.Name() + ":" + tag, canonical
}

func ids(m map[string]bool) []ID {
	var out []ID
	for _, id := range slices.Sorted(maps.Keys(m)) {
		out = append(out, ID{id, m[id]})
	}
	return out
}

func platformOf(p *pb.Platform) *ocispecs.Platform {
	if p == nil {
		return nil
	}
	return &ocispecs.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}
