package kiln

import (
	"context"
	"fmt"
	"path"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/policy"
	"github.com/kiln-build/kiln/registry"
)

// SourceCheck judges a source that a build is about to read, after its policies
// have: it refuses it with an error, or puts another in its place, which is then judged
// in turn, and says so. What there is to know of a source, describe finds out;
// policies hold for that too.
type SourceCheck func(ctx context.Context, op *pb.Op, describe func(context.Context, *pb.SourceOp, frontend.SourceOptions) (frontend.SourceMeta, error)) (converted bool, err error)

// maxChecks bounds how often one source is put in another's place by a SourceCheck.
const maxChecks = 10

// guard is what a build's sources are held against.
type guard struct {
	rules []*spb.Policy
	set   *policy.Set
	check SourceCheck
	// admitted are the sources that were judged; one that was converted leads to its
	// stand-in. It is guarded by build.mu.
	admitted map[llb.Digest]*llb.Vertex
}

func (b *build) openGuard(r *Request) (err error) {
	b.guard = guard{check: r.CheckSource, admitted: map[llb.Digest]*llb.Vertex{}}
	if r.SourcePolicy != nil {
		b.guard.rules = []*spb.Policy{r.SourcePolicy}
	}
	b.guard.set, err = policy.New(b.guard.rules...)
	return err
}

// Admit gives the graphs with each source as the build's policies, and more of the
// caller's, have it.
func (b bridge) Admit(ctx context.Context, more []*spb.Policy, edges ...llb.Edge) ([]llb.Edge, error) {
	return b.admit(ctx, more, edges)
}

// admit is Admit, and refuses graphs with steps that ask for what the build was not granted.
func (b *build) admit(ctx context.Context, more []*spb.Policy, edges []llb.Edge) ([]llb.Edge, error) {
	set, err := b.policies(more)
	if err != nil {
		return nil, err
	}
	if !set.Empty() || b.guard.check != nil || b.proxied {
		if edges, err = b.admitUnder(ctx, set, len(more) == 0, edges); err != nil {
			return nil, err
		}
	}
	return edges, b.placed(b.engine.worker.Entitled(b.session, edges...))
}

// admitUnder is admit with what holds; own says that it is the build's own alone.
func (b *build) admitUnder(ctx context.Context, set *policy.Set, own bool, edges []llb.Edge) ([]llb.Edge, error) {
	vertices := llb.Walk(edges...)
	became, err := b.admitSources(ctx, set, own, vertices)
	if err != nil {
		return nil, err
	}
	mark := sync.OnceValue(func() string { return b.nested.mark(b.session, set, own) })
	for _, v := range vertices {
		if v.Kind() == "source" {
			continue
		}
		to, err := b.readmit(v, became)
		if err == nil {
			to, err = b.nested.markBuilds(to, mark)
		}
		if err != nil {
			return nil, err
		}
		became[v.Digest()] = to
	}
	out := make([]llb.Edge, len(edges))
	for i, e := range edges {
		if out[i] = e; !e.IsScratch() {
			out[i].Vertex = became[e.Vertex.Digest()]
		}
	}
	return out, nil
}

// policies gives the build's policies together with more.
func (b *build) policies(more []*spb.Policy) (*policy.Set, error) {
	if len(more) == 0 {
		return b.guard.set, nil
	}
	return policy.New(append(b.guard.rules[:len(b.guard.rules):len(b.guard.rules)], more...)...)
}

// checksAtOnce bounds the sources that are judged at the same time: judges may be
// people's programs, and ask registries.
const checksAtOnce = 64

// admitSources gives what stands in for the sources among vertices.
func (b *build) admitSources(ctx context.Context, set *policy.Set, remember bool, vertices []*llb.Vertex) (map[llb.Digest]*llb.Vertex, error) {
	var mu sync.Mutex
	became := make(map[llb.Digest]*llb.Vertex, len(vertices))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(checksAtOnce)
	for _, v := range vertices {
		if v.Kind() != "source" {
			continue
		}
		group.Go(func() error {
			to, err := b.admitSource(ctx, set, remember, v)
			mu.Lock()
			defer mu.Unlock()
			became[v.Digest()] = to
			return err
		})
	}
	return became, group.Wait()
}

// readmit gives the vertex that stands in for v, which is v where neither what it
// reads changed nor its network. What it reads stands in became.
func (b *build) readmit(v *llb.Vertex, became map[llb.Digest]*llb.Vertex) (*llb.Vertex, error) {
	inputs, changed := v.Inputs(), false
	for i, in := range inputs {
		to := became[in.Vertex.Digest()]
		if to == in.Vertex {
			continue
		}
		if !changed {
			inputs, changed = append([]llb.Edge(nil), inputs...), true
		}
		inputs[i].Vertex = to
	}
	network := b.network(v.Op().GetExec().GetNetwork())
	if !changed && network == v.Op().GetExec().GetNetwork() {
		return v, nil
	}
	op := proto.CloneOf(v.Op())
	if exec := op.GetExec(); exec != nil {
		exec.Network = network
	}
	return llb.New(op, inputs, v.Meta())
}

func (b *build) admitSource(ctx context.Context, set *policy.Set, remember bool, v *llb.Vertex) (*llb.Vertex, error) {
	b.mu.Lock()
	to := b.guard.admitted[v.Digest()]
	b.mu.Unlock()
	if to != nil && remember {
		return to, nil
	}
	op := proto.Clone(v.Op()).(*pb.Op)
	changed, err := b.judge(ctx, set, op)
	if err != nil {
		return nil, err
	}
	to = v
	if changed {
		if to, err = llb.New(op, nil, v.Meta()); err != nil {
			return nil, err
		}
	}
	if remember {
		// What came out has been judged, too.
		b.mu.Lock()
		b.guard.admitted[v.Digest()], b.guard.admitted[to.Digest()] = to, to
		b.mu.Unlock()
	}
	return to, nil
}

// judge holds a source op against policies and the check, and changes it; and so
// what it reads from besides, the bundle of a git source.
func (b *build) judge(ctx context.Context, set *policy.Set, op *pb.Op) (changed bool, err error) {
	was := proto.Clone(op.GetSource()).(*pb.SourceOp)
	if err := b.judgeOne(ctx, set, op); err != nil {
		return false, err
	}
	bundle, err := bundleOf(op)
	if err != nil {
		return false, err
	}
	if bundle != nil {
		before := proto.Clone(bundle.GetSource())
		if err := b.judgeOne(ctx, set, bundle); err != nil {
			return false, fmt.Errorf("the bundle of %s: %w", op.GetSource().Identifier, err)
		}
		if !proto.Equal(before, bundle.GetSource()) {
			setBundle(op.GetSource(), bundle.GetSource())
		}
	}
	return !proto.Equal(was, op.GetSource()), nil
}

// judgeOne judges until nothing is put in the source's place any more.
func (b *build) judgeOne(ctx context.Context, set *policy.Set, op *pb.Op) error {
	was := op.GetSource().Identifier
	describe := func(ctx context.Context, source *pb.SourceOp, o frontend.SourceOptions) (frontend.SourceMeta, error) {
		if _, err := set.Apply(source); err != nil {
			return frontend.SourceMeta{}, err
		}
		return b.describe(ctx, source, o)
	}
	for range maxChecks {
		source := op.GetSource()
		source.Identifier = canonical(source.Identifier)
		if _, err := set.Apply(source); err != nil {
			return err
		}
		if b.guard.check == nil {
			return nil
		}
		if converted, err := b.guard.check(ctx, op, describe); err != nil || !converted {
			return err
		}
	}
	return fmt.Errorf("too many policy requests: the source %q is converted over and over", was)
}

// canonical gives the one form of an identifier that rules are written for: a source
// must not get past them by another spelling.
func canonical(id string) string {
	scheme, rest, ok := strings.Cut(id, "://")
	if !ok {
		return id
	}
	switch scheme {
	case "docker-image", "docker-image+blob":
		if ref, err := registry.ParseReference(rest); err == nil {
			return scheme + "://" + ref.String()
		}
	case "git":
		repository, fragment, found := strings.Cut(rest, "#")
		if ref, dir, hasDir := strings.Cut(fragment, ":"); found && hasDir {
			if dir = strings.TrimPrefix(path.Join("/", dir), "/"); dir != "" {
				ref += ":" + dir
			}
			return scheme + "://" + repository + "#" + ref
		}
	}
	return id
}

// ResolveSource says what a source stands for, once policies have had their say.
func (b bridge) ResolveSource(ctx context.Context, source *pb.SourceOp, o frontend.SourceOptions) (frontend.SourceMeta, error) {
	set, err := b.policies(o.Policies)
	if err != nil {
		return frontend.SourceMeta{}, err
	}
	source = proto.Clone(source).(*pb.SourceOp)
	if !set.Empty() || b.guard.check != nil {
		op := &pb.Op{Op: &pb.Op_Source{Source: source}, Platform: platformOf(o.Platform)}
		if _, err := b.judge(ctx, set, op); err != nil {
			return frontend.SourceMeta{}, fmt.Errorf("could not resolve image due to policy: %w", err)
		}
		source = op.GetSource()
	}
	return b.describe(ctx, source, o)
}

// platformOf gives a platform as graphs have it: the machine's where none is named.
func platformOf(p ocispecs.Platform) *pb.Platform {
	if p.OS == "" && p.Architecture == "" {
		p = platforms.Normalize(platforms.DefaultSpec())
	}
	return &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

// describe says what a source stands for.
func (b *build) describe(ctx context.Context, op *pb.SourceOp, o frontend.SourceOptions) (frontend.SourceMeta, error) {
	scheme, ref, _ := strings.Cut(op.Identifier, "://")
	m := frontend.SourceMeta{Op: op}
	switch scheme {
	case "docker-image", "oci-layout":
		if scheme == "oci-layout" {
			if o.Layout = op.Attrs[pb.AttrOCILayoutStoreID]; o.Layout == "" {
				o.Layout, _, _ = strings.Cut(ref, "@")
			}
		} else {
			o.Layout = ""
		}
		image, err := b.resolveImage(ctx, ref, o.ResolveOptions)
		m.Image = &image
		if err == nil && o.Attested && o.Layout == "" {
			m.Attested, err = b.attested(ctx, image, o)
		}
		return m, err
	}
	name := o.LogName
	if name == "" {
		name = "resolve source metadata for " + op.Identifier
	}
	err := b.step(name, func() (err error) {
		switch scheme {
		case "git":
			d, err := b.engine.worker.DescribeGit(ctx, b.session, op, o.GitObjects)
			m.Git = (*frontend.GitMeta)(&d)
			return err
		case "http", "https":
			d, err := b.engine.worker.DescribeHTTP(ctx, b.session, op)
			m.HTTP = &frontend.HTTPMeta{Digest: d.Digest.String(), Filename: d.Filename, Modified: d.Modified}
			if err == nil && o.Checksum != "" {
				m.HTTP.Checksum, err = b.engine.worker.ChecksumHTTP(ctx, b.session, op, o.Checksum, o.ChecksumSuffix)
			}
			return err
		}
		return nil // of others, a folder for one, nothing is known before they are read
	})
	return m, err
}
