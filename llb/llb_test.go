package llb

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
)

func must(t testing.TB) func(v *Vertex, err error) *Vertex {
	return func(v *Vertex, err error) *Vertex {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// everything makes a graph that has every kind of op and every kind of meta.
func everything(t testing.TB) Edge {
	ok := must(t)
	file := &File{Name: "Dockerfile", Language: "Dockerfile", Data: []byte("FROM x\nRUN y\n")}
	image := ok(Source("docker-image://docker.io/library/alpine:3", map[string]string{pb.AttrImageResolveMode: "pull"},
		WithPlatform(&pb.Platform{OS: "linux", Architecture: "amd64"})))
	context := ok(Source("local://context", map[string]string{pb.AttrSharedKeyHint: "context", pb.AttrFollowPaths: `["a"]`}))
	keep := true
	x := Exec{
		Meta: &pb.Meta{Args: []string{"/bin/sh", "-c", "make"}, Env: []string{"A=b"}, Cwd: "/src", ValidExitCodes: []int32{0, 3}},
		Mounts: []Mount{
			Root(image.Output(0)),
			Bind(context.Output(0), "/sub", "/src"),
			BindWritable(Edge{}, "", "/out", true),
			BindWritable(image.Output(0), "", "/scrap", false),
			CacheMount("go", "/root/.cache", pb.CacheSharingOpt_LOCKED, Edge{}, ""),
			Tmpfs("/tmp", 1<<20),
			Secret("/run/secrets/x", &pb.SecretOpt{ID: "x", Mode: 0o400}),
			SSH("/run/ssh", &pb.SSHOpt{ID: "default"}),
		},
		Network:   pb.NetMode_NONE,
		SecretEnv: []*pb.SecretEnv{{ID: "x", Name: "X"}},
	}
	run := ok(x.Vertex(WithMeta(Meta{
		Name: "[build 2/2] RUN make", IgnoreCache: true, ExportCache: &keep,
		Description: map[string]string{"com.example": "text"},
		Group:       &pb.ProgressGroup{Id: "g", Name: "group"},
		Resources:   &pb.LinuxResources{Memory: 1 << 30},
		Locations:   []Location{{File: file, Start: 2, End: 2}, {File: file, Start: 1, End: 1}},
	}), WithConstraints("os==linux")))

	var f Files
	s := f.From(image.Output(0)).Mkdir(&pb.FileActionMkDir{Path: "/srv", Mode: 0o755, MakeParents: true})
	other := f.From(Edge{}).Mkfile(&pb.FileActionMkFile{Path: "/note", Data: []byte("hi")})
	s = s.Copy(f.From(run.Output(1)), &pb.FileActionCopy{Src: "/bin", Dest: "/srv/", IncludePatterns: []string{"*"},
		Owner: &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "www"}}}}})
	s = s.Copy(other, &pb.FileActionCopy{Src: "/note", Dest: "/srv/note"})
	s = s.Symlink(&pb.FileActionSymlink{Oldpath: "/srv/note", Newpath: "/note"}).Rm(&pb.FileActionRm{Path: "/tmp/*", AllowWildcard: true})
	files := ok(f.Vertex([]FileState{s, other}))

	merged := ok(Merge([]Edge{image.Output(0), {}, files.Output(0), files.Output(1)}))
	diff := ok(Diff(image.Output(0), merged.Output(0)))
	built := ok(Build(diff.Output(0), map[string]string{pb.AttrLLBDefinitionFilename: "/llb"}))
	all := ok(Passthrough("all", []Edge{built.Output(0), run.Output(0)}, []int{1, 0}))
	return all.Output(1)
}

func TestMarshalAndLoad(t *testing.T) {
	e := everything(t)
	def, err := Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(def)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Output != e.Output || loaded.Vertex.Digest() != e.Vertex.Digest() {
		t.Fatalf("loaded %s:%d, want %s:%d", loaded.Vertex.Digest(), loaded.Output, e.Vertex.Digest(), e.Output)
	}
	again, err := Marshal(loaded)
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(def, again) {
		t.Errorf("the loaded graph marshals differently:\n%v\n%v", def, again)
	}
	want, got := Walk(e), Walk(loaded)
	for i, v := range got {
		a, b := want[i].Meta(), v.Meta()
		if a.Name != b.Name || a.IgnoreCache != b.IgnoreCache || len(a.Locations) != len(b.Locations) ||
			fmt.Sprint(a.Description, a.Group, a.Resources) != fmt.Sprint(b.Description, b.Group, b.Resources) {
			t.Errorf("meta of %s: got %+v, want %+v", v.Describe(), b, a)
		}
	}
}

func TestMarshalIsDeterministic(t *testing.T) {
	options := proto.MarshalOptions{Deterministic: true}
	var first []byte
	for range 5 {
		def, err := Marshal(everything(t))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := options.Marshal(def)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = raw
		}
		if !bytes.Equal(raw, first) {
			t.Fatal("two marshallings differ")
		}
	}
}

func TestSeveralResultsAndScratch(t *testing.T) {
	a := must(t)(Source("docker-image://a", nil)).Output(0)
	b := must(t)(Source("docker-image://b", nil)).Output(0)
	def, err := Marshal(a, b, a)
	if err != nil {
		t.Fatal(err)
	}
	if len(def.Def) != 3 {
		t.Errorf("%d ops, want 3", len(def.Def))
	}
	edges, err := LoadAll(def)
	if err != nil || len(edges) != 3 || edges[1].Vertex.Digest() != b.Vertex.Digest() {
		t.Errorf("got %v, %v", edges, err)
	}
	def, err = Marshal(Edge{})
	if err != nil || len(def.Def) != 0 {
		t.Errorf("scratch: %v, %v", def, err)
	}
	if e, err := Load(def); err != nil || !e.IsScratch() {
		t.Errorf("scratch read back: %v, %v", e, err)
	}
	if _, err := Marshal(a, Edge{}); err == nil {
		t.Error("scratch beside another result was marshalled")
	}
}

func TestFileIndexes(t *testing.T) {
	e := everything(t)
	var op *pb.FileOp
	for _, v := range Walk(e) {
		if v.Kind() == "file" {
			op = v.Op().GetFile()
		}
	}
	// Inputs: 0 the image, 1 the run; states of actions from 2 on.
	var got [][3]int64
	for _, a := range op.Actions {
		got = append(got, [3]int64{a.Input, a.SecondaryInput, a.Output})
	}
	want := [][3]int64{{0, -1, -1}, {-1, -1, 1}, {2, 1, -1}, {4, 3, -1}, {5, -1, -1}, {6, -1, 0}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if owner := op.Actions[2].GetCopy().Owner.User.GetByName(); owner.Input != 0 {
		t.Errorf("the owner is looked up in input %d, want 0", owner.Input)
	}
}

// raw marshals an op without New's checks.
func raw(t testing.TB, op *pb.Op) []byte {
	t.Helper()
	b, err := proto.Marshal(op)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func input(raw []byte, index int64) *pb.Input {
	return &pb.Input{Digest: Digest(hash(raw)).String(), Index: index}
}

func TestLoadRefuses(t *testing.T) {
	source := raw(t, &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://a"}}})
	result := func(of []byte, index int64) []byte {
		return raw(t, &pb.Op{Inputs: []*pb.Input{input(of, index)}})
	}
	exec := func(change func(*pb.ExecOp)) []byte {
		x := &pb.ExecOp{Meta: &pb.Meta{Args: []string{"a"}}, Mounts: []*pb.Mount{{Dest: "/", Input: 0}}}
		change(x)
		return raw(t, &pb.Op{Inputs: []*pb.Input{input(source, 0)}, Op: &pb.Op_Exec{Exec: x}})
	}
	file := func(actions ...*pb.FileAction) []byte {
		return raw(t, &pb.Op{Inputs: []*pb.Input{input(source, 0)}, Op: &pb.Op_File{File: &pb.FileOp{Actions: actions}}})
	}
	mkdir := &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/a"}}
	op := func(inputs int, o *pb.Op) []byte {
		for range inputs {
			o.Inputs = append(o.Inputs, input(source, 0))
		}
		return raw(t, o)
	}
	rows := []struct {
		name string // what is wrong
		bad  []byte
		want string
	}{
		{"not protobuf", []byte("\xff\xff\xff"), "op 1"},
		{"no kind", op(1, &pb.Op{}), "no kind"},
		{"a kind of the future", append(slices.Clone(source[:0]), 0xfa, 0x01, 0x00), "no kind"},
		{"a source without identifier", op(0, &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{}}}), "identifier"},
		{"a source with inputs", op(1, &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "x"}}}), "inputs"},
		{"an input that is not there", op(0, &pb.Op{Inputs: []*pb.Input{{Digest: Digest{1}.String()}}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{}}}}}), "not in the definition"},
		{"an input that is no digest", op(0, &pb.Op{Inputs: []*pb.Input{{Digest: "md5:1"}}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{}}}), "not a sha256"},
		{"an output that is not there", op(0, &pb.Op{Inputs: []*pb.Input{input(source, 1)}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{}}}}}), "output index 1"},
		{"a negative output", op(0, &pb.Op{Inputs: []*pb.Input{input(source, -1)}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{}}}}}), "output index -1"},
		{"no meta", exec(func(x *pb.ExecOp) { x.Meta = nil }), "meta"},
		{"no arguments", exec(func(x *pb.ExecOp) { x.Meta.Args = nil }), "arguments"},
		{"no mounts", exec(func(x *pb.ExecOp) { x.Mounts = nil }), "without a mount at /"},
		{"no root", exec(func(x *pb.ExecOp) { x.Mounts[0].Dest = "/a" }), "without a mount at /"},
		{"two roots", exec(func(x *pb.ExecOp) { x.Mounts = append(x.Mounts, &pb.Mount{Dest: "/", Output: 1}) }), "two mounts"},
		{"a mount of nothing that is there", exec(func(x *pb.ExecOp) { x.Mounts[0].Input = 1 }), "input index 1"},
		{"a mount of a negative input", exec(func(x *pb.ExecOp) { x.Mounts[0].Input = -2 }), "input index -2"},
		{"outputs out of order", exec(func(x *pb.ExecOp) { x.Mounts[0].Output = 1 }), "output"},
		{"a cache mount without options", exec(func(x *pb.ExecOp) {
			x.Mounts = append(x.Mounts, &pb.Mount{Dest: "/c", MountType: pb.MountType_CACHE})
		}), "options"},
		{"a secret mount without options", exec(func(x *pb.ExecOp) {
			x.Mounts = append(x.Mounts, &pb.Mount{Dest: "/c", MountType: pb.MountType_SECRET})
		}), "options"},
		{"an unknown mount type", exec(func(x *pb.ExecOp) {
			x.Mounts = append(x.Mounts, &pb.Mount{Dest: "/c", MountType: 77})
		}), "unknown mount type"},
		{"an unknown network", exec(func(x *pb.ExecOp) { x.Network = 9 }), "network"},
		{"an unknown security mode", exec(func(x *pb.ExecOp) { x.Security = 9 }), "security"},
		{"no actions", file(), "without actions"},
		{"no such action", file(&pb.FileAction{}), "unknown kind"},
		{"an action that reads itself", file(&pb.FileAction{Input: 1, SecondaryInput: -1, Action: mkdir}), "input index 1"},
		{"an action that reads a later one", file(
			&pb.FileAction{Input: 0, SecondaryInput: 2, Output: -1, Action: mkdir},
			&pb.FileAction{Input: 0, SecondaryInput: -1, Action: mkdir}), "secondary input index 2"},
		{"no outputs", file(&pb.FileAction{SecondaryInput: -1, Output: -1, Action: mkdir}), "without outputs"},
		{"a gap in the outputs", file(
			&pb.FileAction{SecondaryInput: -1, Output: 1, Action: mkdir},
			&pb.FileAction{SecondaryInput: -1, Output: -1, Action: mkdir}), "none with number 0"},
		{"an output twice", file(
			&pb.FileAction{SecondaryInput: -1, Action: mkdir}, &pb.FileAction{SecondaryInput: -1, Action: mkdir}), "taken"},
		{"a huge output", file(&pb.FileAction{SecondaryInput: -1, Output: 1 << 40, Action: mkdir}), "out of range"},
		{"an owner from nowhere", file(&pb.FileAction{SecondaryInput: -1, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{
			Owner: &pb.ChownOpt{Group: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "x", Input: 1}}}},
		}}}), "owner"},
		{"a merge of other inputs", op(1, &pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{}}}), "merge"},
		{"a merge index out of range", op(1, &pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 1}}}}}), "merge"},
		{"a diff without sides", op(1, &pb.Op{Op: &pb.Op_Diff{Diff: &pb.DiffOp{}}}), "diff"},
		{"a diff index out of range", op(1, &pb.Op{Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: 3}, Upper: &pb.UpperDiffInput{Input: -1}}}}), "diff"},
		{"a build by another builder", op(1, &pb.Op{Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: 0}}}), "builder"},
		{"a build input out of range", op(1, &pb.Op{Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1, Inputs: map[string]*pb.BuildInput{"x": {Input: 1}}}}}), "build"},
		{"a passthrough out of range", op(1, &pb.Op{Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "x", Outputs: []int64{1}}}}), "passthrough"},
		{"a passthrough without id", op(1, &pb.Op{Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Outputs: []int64{0}}}}), "passthrough"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			def := &pb.Definition{Def: [][]byte{source, row.bad, result(row.bad, 0)}}
			_, err := Load(def)
			if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "op 1") {
				t.Errorf("got %v, want an error about op 1 with %q", err, row.want)
			}
		})
	}
	meta := map[string]*pb.OpMetadata{Digest(hash(source)).String(): {Caps: map[string]bool{"source.of.all.evil": true}}}
	whole := []struct {
		name string
		def  *pb.Definition
		want string // empty: it is accepted
	}{
		{"a result alone", &pb.Definition{Def: [][]byte{result(source, 0)}}, "one op alone"},
		{"cut off before the result", &pb.Definition{Def: [][]byte{source, source}}, "cut off"},
		{"a result without inputs", &pb.Definition{Def: [][]byte{source, {}}}, "names no result"},
		{"a result that is not there", &pb.Definition{Def: [][]byte{source, result([]byte("x"), 0)}}, "not in the definition"},
		{"a result's output that is not there", &pb.Definition{Def: [][]byte{source, result(source, 1)}}, "output index 1"},
		{"an op twice", &pb.Definition{Def: [][]byte{source, source, result(source, 0)}}, ""},
		{"an unknown capability", &pb.Definition{Def: [][]byte{source, result(source, 0)}, Metadata: meta}, "capability"},
		{"a location in no file", &pb.Definition{Def: [][]byte{source, result(source, 0)},
			Source: &pb.Source{Locations: map[string]*pb.Locations{"x": {Locations: []*pb.Location{{SourceIndex: 1}}}}}}, "source file 1"},
		{"a nil location", &pb.Definition{Def: [][]byte{source, result(source, 0)},
			Source: &pb.Source{Locations: map[string]*pb.Locations{"x": {Locations: []*pb.Location{nil}}}}}, "empty source location"},
		{"too many ops", &pb.Definition{Def: make([][]byte, MaxVertices+2)}, "limit"},
		{"a deep nest of build ops", &pb.Definition{Def: [][]byte{nested(t, 200), result(source, 0)}}, "op 0"},
	}
	for _, row := range whole {
		t.Run(row.name, func(t *testing.T) {
			_, err := Load(row.def)
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
}

// nested is a build op with definitions inside of each other.
func nested(t testing.TB, depth int) []byte {
	def := &pb.Definition{}
	for range depth {
		def = &pb.Definition{Source: &pb.Source{Infos: []*pb.SourceInfo{{Definition: def}}}}
	}
	return raw(t, &pb.Op{Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1, Def: def}}})
}

// Bytes that are not as this package would marshal them keep their digest.
func TestLoadKeepsForeignBytes(t *testing.T) {
	canonical := raw(t, &pb.Op{Platform: &pb.Platform{OS: "linux"}, Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://a"}}})
	// Fields in another order, and one that nobody knows.
	foreign := append(raw(t, &pb.Op{Platform: &pb.Platform{OS: "linux"}}), 0xa2, 0x06, 0x01, 'x')
	foreign = append(foreign, raw(t, &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://a"}}})...)
	e, err := Load(&pb.Definition{Def: [][]byte{foreign, raw(t, &pb.Op{Inputs: []*pb.Input{input(foreign, 0)}})}})
	if err != nil {
		t.Fatal(err)
	}
	if e.Vertex.Digest() != Digest(hash(foreign)) || e.Vertex.Digest() == Digest(hash(canonical)) {
		t.Error("the digest is not that of the bytes that came")
	}
	def, err := Marshal(e)
	if err != nil || !bytes.Equal(def.Def[0], foreign) {
		t.Errorf("marshalled as %x, %v; want the bytes that came", def.Def[0], err)
	}
}

func TestNewRefuses(t *testing.T) {
	a := must(t)(Source("docker-image://a", nil))
	for _, row := range []struct {
		name   string
		op     *pb.Op
		inputs []Edge
	}{
		{"no op", nil, nil},
		{"a scratch input", &pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{}}}}}, []Edge{{}}},
		{"an output that is not there", &pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{}}}}}, []Edge{a.Output(1)}},
		{"an op that is not well formed", &pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{}}}, nil},
		{"a nil mount", &pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"a"}}, Mounts: []*pb.Mount{nil}}}}, nil},
	} {
		if _, err := New(row.op, row.inputs, Meta{}); err == nil {
			t.Errorf("%s: no error", row.name)
		}
	}
	var f, g Files
	if _, err := f.Vertex([]FileState{f.From(a.Output(0)).Copy(g.From(Edge{}), &pb.FileActionCopy{})}); err == nil {
		t.Error("a copy between two file ops: no error")
	}
	if _, err := g.Vertex([]FileState{g.From(a.Output(0))}); err == nil {
		t.Error("an output that no action made: no error")
	}
}

func TestDrawings(t *testing.T) {
	e := everything(t)
	var buf bytes.Buffer
	if err := JSON(&buf, e); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != len(Walk(e)) {
		t.Errorf("%d lines for %d vertices", len(lines), len(Walk(e)))
	}
	kinds := map[string]bool{}
	for _, line := range lines {
		var v drawnVertex
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		kinds[v.Kind] = true
		if v.Name == "" || v.Name == "unknown" {
			t.Errorf("no name in %s", line)
		}
	}
	if len(kinds) != len(shapes) {
		t.Errorf("kinds %v, want all of %v", kinds, shapes)
	}
	buf.Reset()
	if err := Dot(&buf, e); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"digraph {", `RUN make\n/bin/sh -c make`, "-> result"} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("no %q in\n%s", want, &buf)
		}
	}
	buf.Reset()
	if err := Dot(&buf, Edge{}); err != nil || buf.String() != "digraph {\n}\n" {
		t.Errorf("scratch: %q, %v", &buf, err)
	}
}

func FuzzLoad(f *testing.F) {
	def, err := Marshal(everything(f))
	if err != nil {
		f.Fatal(err)
	}
	seed, err := proto.Marshal(def)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:len(seed)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		def := new(pb.Definition)
		if proto.Unmarshal(data, def) != nil {
			return
		}
		edges, err := LoadAll(def)
		if err != nil || len(edges) == 0 {
			return
		}
		for _, v := range Walk(edges...) {
			if v.Digest() != Digest(hash(v.Raw())) {
				t.Errorf("%s is not the digest of its bytes", v.Digest())
			}
			_ = v.Name()
		}
		again, err := Marshal(edges[0], edges[1:]...)
		if err != nil {
			t.Fatalf("what was loaded cannot be marshalled: %v", err)
		}
		if _, err := LoadAll(again); err != nil {
			t.Fatalf("what was marshalled cannot be loaded: %v", err)
		}
	})
}

// chainOf makes a graph of n vertices, each on top of the one before.
func chainOf(b testing.TB, n int) Edge {
	e := must(b)(Source("docker-image://a", nil)).Output(0)
	for i := range n - 1 {
		x := Exec{Meta: &pb.Meta{Args: []string{"step", fmt.Sprint(i)}, Cwd: "/"}, Mounts: []Mount{Root(e)}}
		e = must(b)(x.Vertex()).Output(0)
	}
	return e
}

func TestDeepGraph(t *testing.T) {
	e := chainOf(t, 100_000)
	def, err := Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(def)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(Walk(loaded)); got != 100_000 {
		t.Errorf("%d vertices, want 100000", got)
	}
}

const benchVertices = 10_000

func BenchmarkNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		chainOf(b, benchVertices)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchVertices, "ns/vertex")
}

func BenchmarkMarshal(b *testing.B) {
	e := chainOf(b, benchVertices)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Marshal(e); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchVertices, "ns/vertex")
}

func BenchmarkLoad(b *testing.B) {
	def, err := Marshal(chainOf(b, benchVertices))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(def); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchVertices, "ns/vertex")
}
