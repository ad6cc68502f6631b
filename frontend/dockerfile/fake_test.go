package dockerfile

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// fakeBridge answers from maps: folders by the identifier of their source, image
// configs by reference. It is safe for concurrent use.
type fakeBridge struct {
	folders map[string]fstest.MapFS
	images  map[string]string
	times   map[string]time.Time

	mu       sync.Mutex
	warnings []string
	resolved []string
}

var _ frontend.SourceDescriber = (*fakeBridge)(nil)

// images that the tests' Dockerfiles start from.
var testImages = map[string]string{
	"docker.io/library/base:latest": `{"architecture":"amd64","os":"linux","created":"2020-01-01T00:00:00Z",
		"config":{"Env":["PATH=/bin"],"Cmd":["sh"]},
		"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]},
		"history":[{"created_by":"base"}]}`,
	"docker.io/library/rich:1": `{"architecture":"amd64","os":"linux",
		"config":{"Env":["PATH=/opt/bin","A=rich"],"Cmd":["c"],"Entrypoint":["/e"],"WorkingDir":"/home","User":"bob",
			"Shell":["/bin/bash","-c"],"Labels":{"from":"rich"},"ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}},
			"Healthcheck":{"Test":["CMD","x"]}},
		"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}`,
	"docker.io/library/trigger:latest": `{"architecture":"amd64","os":"linux",
		"config":{"OnBuild":["COPY . /src","RUN make"]},
		"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}`,
	"docker.io/library/trigger:comment": `{"architecture":"amd64","os":"linux","config":{"OnBuild":["# check=skip=all\nRUN x"]},
		"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}`,
	"docker.io/library/trigger:badcmd": `{"architecture":"amd64","os":"linux","config":{"OnBuild":["RUNN make"]},
		"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}`,
	"docker.io/library/trigger:stage": `{"architecture":"amd64","os":"linux","config":{"OnBuild":["COPY --from=dep /x /y"]},
		"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}`,
	"docker.io/library/arm:latest": `{"architecture":"arm64","os":"linux","config":{},
		"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}`,
	"docker.io/library/nothing:latest": `{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers"}}`,
}

func (b *fakeBridge) ResolveImage(_ context.Context, ref string, o frontend.ResolveOptions) (frontend.Image, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resolved = append(b.resolved, o.LogName)
	config, ok := b.images[ref]
	if !ok {
		config, ok = testImages[ref]
	}
	if !ok {
		return frontend.Image{}, fmt.Errorf("%s: not found", ref)
	}
	return frontend.Image{Ref: ref, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(config))), Config: []byte(config)}, nil
}

func (b *fakeBridge) Solve(_ context.Context, e llb.Edge) (frontend.Ref, error) {
	for _, v := range llb.Walk(e) {
		if s := v.Op().GetSource(); s != nil {
			return fakeRef{b.folders[s.Identifier]}, nil
		}
	}
	return fakeRef{}, nil
}

func (b *fakeBridge) Warn(w frontend.Warning) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.warnings = append(b.warnings, w.Short)
}

func (b *fakeBridge) SourceTime(_ context.Context, v *llb.Vertex) (time.Time, error) {
	return b.times[v.Op().GetSource().Identifier], nil
}

type fakeRef struct{ files fstest.MapFS }

func (r fakeRef) ReadFile(_ context.Context, name string) ([]byte, error) {
	return fs.ReadFile(r.files, name)
}
func (r fakeRef) ReadDir(_ context.Context, name string) ([]fs.DirEntry, error) {
	return fs.ReadDir(r.files, name)
}
func (r fakeRef) Stat(_ context.Context, name string) (fs.FileInfo, error) {
	return fs.Stat(r.files, name)
}

// testBuild is a build of one Dockerfile.
type testBuild struct {
	dockerfile string
	ignore     string            // the context's .dockerignore
	opts       map[string]string // of the request
	bridge     fakeBridge
}

var amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}

func (b *testBuild) run() (*frontend.Result, error) {
	folders := map[string]fstest.MapFS{"local://dockerfile": {"Dockerfile": {Data: []byte(b.dockerfile)}}}
	if b.ignore != "" {
		folders["local://context"] = fstest.MapFS{".dockerignore": {Data: []byte(b.ignore)}}
	}
	for id, f := range b.bridge.folders {
		folders[id] = f
	}
	b.bridge.folders = folders
	return New().Build(context.Background(), frontend.Request{Opts: b.opts, Machine: amd64}, &b.bridge)
}

// opts reads "key=value" words.
func opts(words ...string) map[string]string {
	out := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		out[k] = v
	}
	return out
}

// lines joins the lines of a Dockerfile.
func lines(l ...string) string { return strings.Join(l, "\n") + "\n" }

// mustBuild builds and gives the one image.
func mustBuild(t *testing.T, b *testBuild) frontend.ResultImage {
	t.Helper()
	res, err := b.run()
	if err != nil {
		t.Fatalf("building\n%s\n%v", b.dockerfile, err)
	}
	if len(res.Images) != 1 {
		t.Fatalf("%d images, want 1", len(res.Images))
	}
	return res.Images[0]
}

// draw writes a graph down, a line for each vertex in the order in which they can
// be solved; what is read of another vertex is given by its number. Digests of
// images and everything that is as usual is left out.
func draw(e llb.Edge) string {
	if e.IsScratch() {
		return "scratch"
	}
	number := map[llb.Digest]int{}
	var out []string
	for _, v := range llb.Walk(e) {
		number[v.Digest()] = len(out)
		d := drawing{vertex: v, number: number}
		out = append(out, fmt.Sprintf("%d %s", len(out), d.line()))
	}
	return strings.Join(out, "\n")
}

type drawing struct {
	vertex *llb.Vertex
	number map[llb.Digest]int
}

// input names what an op reads by input index i.
func (d drawing) input(i int64) string {
	ins := d.vertex.Inputs()
	if i < 0 {
		return "scratch"
	}
	if int(i) >= len(ins) {
		return "."
	}
	return fmt.Sprint(d.number[ins[i].Vertex.Digest()])
}

func (d drawing) line() string {
	switch op := d.vertex.Op().Op.(type) {
	case *pb.Op_Source:
		return drawSource(op.Source)
	case *pb.Op_Exec:
		return d.exec(op.Exec)
	case *pb.Op_File:
		var parts []string
		for _, a := range op.File.Actions {
			parts = append(parts, d.action(a))
		}
		return strings.Join(parts, "; ")
	case *pb.Op_Merge:
		words := []string{"merge"}
		for _, in := range op.Merge.Inputs {
			words = append(words, d.input(in.Input))
		}
		return strings.Join(words, " ")
	}
	return "?"
}

func drawSource(s *pb.SourceOp) string {
	id, _, _ := strings.Cut(s.Identifier, "@sha256")
	var attrs []string
	for k, v := range s.Attrs {
		if k != pb.AttrSharedKeyHint && k != pb.AttrAuthHeaderSecret && k != pb.AttrAuthTokenSecret {
			attrs = append(attrs, k+"="+v)
		}
	}
	slices.Sort(attrs)
	return strings.Join(append([]string{id}, attrs...), " ")
}

func (d drawing) exec(x *pb.ExecOp) string {
	words := []string{"run"}
	for _, m := range x.Mounts {
		if m.Dest == pb.RootMount {
			words = append(words, d.input(m.Input), fmt.Sprintf("%q", x.Meta.Args))
		}
	}
	for _, kv := range x.Meta.Env {
		if kv != "PATH=/bin" && !strings.HasPrefix(kv, "PATH=/usr/local/sbin:") {
			words = append(words, "env:"+kv)
		}
	}
	if x.Meta.Cwd != "/" {
		words = append(words, "dir:"+x.Meta.Cwd)
	}
	if x.Meta.User != "" {
		words = append(words, "user:"+x.Meta.User)
	}
	if x.Network != pb.NetMode_UNSET {
		words = append(words, "network:"+x.Network.String())
	}
	if x.Security != pb.SecurityMode_SANDBOX {
		words = append(words, "security:"+x.Security.String())
	}
	for _, m := range x.Mounts {
		if m.Dest != pb.RootMount {
			words = append(words, d.mount(m))
		}
	}
	for _, s := range x.Secretenv {
		words = append(words, fmt.Sprintf("secretenv:%s=%s optional:%v", s.Name, s.ID, s.Optional))
	}
	for _, c := range x.CdiDevices {
		words = append(words, fmt.Sprintf("device:%s optional:%v", c.Name, c.Optional))
	}
	return strings.Join(words, " ")
}

func (d drawing) mount(m *pb.Mount) string {
	text := strings.ToLower(m.MountType.String()) + "(" + m.Dest
	if m.Input >= 0 {
		text += " " + d.input(m.Input) + ":" + m.Selector
	}
	if m.Readonly {
		text += " ro"
	}
	if c := m.CacheOpt; c != nil {
		text += " id=" + c.ID + " " + strings.ToLower(c.Sharing.String())
	}
	if t := m.TmpfsOpt; t != nil {
		text += fmt.Sprint(" size=", t.Size)
	}
	if s := m.SecretOpt; s != nil {
		text += fmt.Sprintf(" id=%s %d:%d %o optional=%v", s.ID, s.Uid, s.Gid, s.Mode, s.Optional)
	}
	if s := m.SSHOpt; s != nil {
		text += fmt.Sprintf(" id=%s %d:%d %o optional=%v", s.ID, s.Uid, s.Gid, s.Mode, s.Optional)
	}
	return text + ")"
}

func (d drawing) action(a *pb.FileAction) string {
	on := "on " + d.input(a.Input)
	switch a := a.Action.(type) {
	case *pb.FileAction_Mkdir:
		return fmt.Sprintf("mkdir %s %o%s%s %s", a.Mkdir.Path, a.Mkdir.Mode, drawOwner(a.Mkdir.Owner), drawTime(a.Mkdir.Timestamp), on)
	case *pb.FileAction_Mkfile:
		return fmt.Sprintf("mkfile %s %o %q %s", a.Mkfile.Path, a.Mkfile.Mode, a.Mkfile.Data, on)
	case *pb.FileAction_Copy:
		return d.copy(a.Copy) + " " + on
	}
	return "?"
}

// copy shows the flags that differ from those of a COPY of the context.
func (d drawing) copy(c *pb.FileActionCopy) string {
	var in int64
	for _, a := range d.vertex.Op().GetFile().Actions {
		if a.GetCopy() == c {
			in = a.SecondaryInput
		}
	}
	words := []string{"copy", d.input(in) + ":" + c.Src, c.Dest}
	add := func(cond bool, text string) {
		if cond {
			words = append(words, text)
		}
	}
	add(c.Owner != nil, strings.TrimSpace(drawOwner(c.Owner)))
	add(c.Mode >= 0 && c.ModeStr == "", fmt.Sprintf("%o", c.Mode))
	add(c.ModeStr != "", c.ModeStr)
	add(c.AttemptUnpackDockerCompatibility, "unpack")
	add(!c.CreateDestPath, "nocreate")
	add(!(c.FollowSymlink && c.DirCopyContents && c.AllowWildcard && c.AllowEmptyWildcard), "plain")
	add(len(c.IncludePatterns) > 0, fmt.Sprint("include", c.IncludePatterns))
	add(len(c.ExcludePatterns) > 0, fmt.Sprint("exclude", c.ExcludePatterns))
	add(len(c.RequiredPaths) > 0, fmt.Sprint("require", c.RequiredPaths))
	return strings.Join(words, " ")
}

func drawOwner(o *pb.ChownOpt) string {
	if o == nil {
		return ""
	}
	text := " owner:"
	for i, u := range []*pb.UserOpt{o.User, o.Group} {
		if u == nil {
			continue
		}
		if i == 1 {
			text += ":"
		}
		if n := u.GetByName(); n != nil {
			text += n.Name
		} else {
			text += fmt.Sprint(u.GetByID())
		}
	}
	return text
}

func drawTime(ns int64) string {
	if ns < 0 {
		return ""
	}
	return fmt.Sprintf(" at:%d", ns/1e9)
}

// sameText compares texts of several lines.
func sameText(t *testing.T, what, got, want string) {
	t.Helper()
	want = strings.TrimSpace(want)
	var unindented []string
	for _, l := range strings.Split(want, "\n") {
		unindented = append(unindented, strings.TrimLeft(l, "\t"))
	}
	if want = strings.Join(unindented, "\n"); strings.TrimSpace(got) != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}
