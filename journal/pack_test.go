package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/explain"
	"github.com/kiln-build/kiln/solver"
)

// does gives a step an op.
func does(t testing.TB, s *Step, op *pb.Op) {
	t.Helper()
	var err error
	if s.Does, err = proto.Marshal(op); err != nil {
		t.Fatal(err)
	}
}

// localReport is report with ops: a folder, and a step that copies all of it.
func localReport(t testing.TB, j *Journal, text string) *Report {
	r := report(t, j.cache, text)
	r.Steps[0].Definition = sum("context " + text)
	does(t, &r.Steps[0], &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://context", Attrs: map[string]string{"local.sessionid": "x"}}}})
	does(t, &r.Steps[1], &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{}}})
	return r
}

// TestPackAndAdopt has a machine that starts empty explain a build by one that ran
// elsewhere, down to the file.
func TestPackAndAdopt(t *testing.T) {
	there, _ := openJournal(t)
	data, err := there.Pack(build(0), localReport(t, there, "one"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	here, c := openJournal(t)
	for range 2 { // the second time it is known
		if err := here.Adopt(data, "host/cache"); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := here.all(); err != nil || len(all) != 1 || all[0].From != "host/cache" || all[0].ID != build(0).ID {
		t.Fatalf("the journal has %+v, %v", all, err)
	}
	// It is no build of this machine.
	if own, err := here.Builds(); err != nil || len(own) != 0 {
		t.Errorf("builds that ran here: %+v, %v", own, err)
	}
	if _, err := here.Find("last"); !errors.Is(err, explain.ErrNotFound) {
		t.Errorf("the last build here: %v", err)
	}
	x := &Explainer{
		Journal: here, Nodes: c, Kept: c.KeptTree,
		Seen: func(_ tree.Nodes, _ *pb.Op, _ int, root tree.Entry) (map[string]tree.Entry, bool, error) {
			return map[string]tree.Entry{"": root}, true, nil
		},
	}
	e, err := x.Explain(build(1), localReport(t, here, "two"))
	if err != nil {
		t.Fatal(err)
	}
	m := e.Steps[1].Miss
	if m == nil || m.Nearest == nil || m.Nearest.Build != build(0).ID || m.Nearest.Cache != "host/cache" {
		t.Fatalf("the nearest run is %+v", m)
	}
	if len(m.Reasons) != 1 || m.Reasons[0].Kind != explain.Files || len(m.Reasons[0].Files) != 1 || m.Reasons[0].Files[0].Path != "file" {
		t.Errorf("the reasons are %+v", m.Reasons)
	}
	var text bytes.Buffer
	if err := e.Text(&text); err != nil || !strings.Contains(text.String(), ", which host/cache knows of:") {
		t.Errorf("%v: %s", err, &text)
	}
}

// TestPackLeavesOut packs what nobody is to see, and what does not fit.
func TestPackLeavesOut(t *testing.T) {
	j, _ := openJournal(t)
	r := localReport(t, j, "one")
	secret := Step{Name: "download", Kind: "source", Why: "hidden", From: "hidden"}
	does(t, &secret, &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "https://user:hidden@host/?hidden", Attrs: map[string]string{"http.header.auth": "hidden"}}}})
	nested := Step{Name: "nested", Kind: "build"}
	does(t, &nested, &pb.Op{Op: &pb.Op_Build{Build: &pb.BuildOp{Attrs: map[string]string{"build-arg:X": "hidden"}}}})
	r.Steps = append(r.Steps, secret, nested)
	data, err := j.Pack(build(0), r, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	p := new(packed)
	if err := json.Unmarshal(data, p); err != nil {
		t.Fatal(err)
	}
	for i := range p.Report.Steps {
		s := &p.Report.Steps[i]
		op, err := s.op()
		if err != nil || strings.Contains(op.String()+fmt.Sprint(s.Why, s.From), "hidden") {
			t.Errorf("packed: %v, %v of %v", op, err, s)
		}
	}
	if len(p.Roots) != 1 || len(p.Nodes) != 1 || r.Steps[2].Why == "" {
		t.Errorf("got %d trees of %d nodes", len(p.Roots), len(p.Nodes))
	}
	less, err := j.Pack(build(0), r, len(data)-1)
	if err != nil {
		t.Fatal(err)
	}
	q := new(packed)
	if err := json.Unmarshal(less, q); err != nil || len(q.Roots)+len(q.Nodes) != 0 || len(q.Report.Steps) != 4 {
		t.Errorf("without room for the tree: %d bytes, %v", len(less), err)
	}
	if _, err := j.Pack(build(0), r, 100); !errors.Is(err, errLarge) {
		t.Errorf("in a hundred bytes: %v", err)
	}
}

// TestAdoptHostile has another machine say what makes no sense.
func TestAdoptHostile(t *testing.T) {
	from, _ := openJournal(t)
	good, err := from.Pack(build(0), localReport(t, from, "one"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	// bomb makes a tree whose directories all hold the one below twice.
	bomb := func(p *packed) {
		n := tree.NewMemNodes()
		dir := tree.Entry{Kind: tree.Dir, Mode: 0o755}
		for range 60 {
			a, b := dir, dir
			a.Name, b.Name = "a", "b"
			var err error
			if dir.Children, err = tree.PutDir(n, []tree.Entry{a, b}); err != nil {
				t.Fatal(err)
			}
			node, err := n.Node(dir.Children.Addr)
			if err != nil {
				t.Fatal(err)
			}
			p.Nodes = append(p.Nodes, node)
		}
		p.Roots = map[string][]byte{solver.FolderPin(dir): dir.AppendEncode(nil)}
		p.Report.Steps[0].Pin = solver.FolderPin(dir)
	}
	// deep makes a tree of so many directories in each other.
	deep := func(p *packed) {
		n := tree.NewMemNodes()
		dir := tree.Entry{Kind: tree.Dir, Mode: 0o755}
		for range 2 * maxTreeDepth {
			dir.Name = strings.Repeat("a", 255)
			var err error
			if dir.Children, err = tree.PutDir(n, []tree.Entry{dir}); err != nil {
				t.Fatal(err)
			}
			node, err := n.Node(dir.Children.Addr)
			if err != nil {
				t.Fatal(err)
			}
			p.Nodes = append(p.Nodes, node)
		}
		dir.Name = ""
		p.Roots = map[string][]byte{solver.FolderPin(dir): dir.AppendEncode(nil)}
		p.Report.Steps[0].Pin = solver.FolderPin(dir)
	}
	for _, c := range []struct {
		what   string
		change func(*packed)
		err    bool // else it is adopted, without a tree
	}{
		{"another version", func(p *packed) { p.Version++ }, true},
		{"no name", func(p *packed) { p.ID = "" }, true},
		{"a name that breaks the line", func(p *packed) { p.ID = "a\tb" }, true},
		{"no report", func(p *packed) { p.Report = nil }, true},
		{"an input that is no step", func(p *packed) { p.Report.Steps[1].Inputs[0].Step = 7 }, true},
		{"a node that is missing", func(p *packed) { p.Nodes = nil }, false},
		{"a node of other bytes", func(p *packed) { p.Nodes[0][len(p.Nodes[0])-1] ^= 1 }, false},
		{"a root that is none", func(p *packed) { p.Roots[p.Report.Steps[0].Pin] = []byte("x") }, false},
		{"the tree of another pin", func(p *packed) {
			p.Roots = map[string][]byte{"tree:" + strings.Repeat("0", 64): p.Roots[p.Report.Steps[0].Pin]}
			p.Report.Steps[0].Pin = "tree:" + strings.Repeat("0", 64)
		}, false},
		{"a tree of more directories than there are", bomb, false},
		{"a tree that is very deep", deep, false},
		{"a great many steps", func(p *packed) { p.Report.Steps = make([]Step, maxParts) }, true},
	} {
		p := new(packed)
		if err := json.Unmarshal(good, p); err != nil {
			t.Fatal(err)
		}
		c.change(p)
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		j, cache := openJournal(t)
		if err := j.Adopt(data, "cache"); (err != nil) != c.err {
			t.Errorf("%s: %v", c.what, err)
		}
		all, err := j.all()
		if err != nil || len(all) != map[bool]int{false: 1}[c.err] {
			t.Errorf("%s: the journal has %d builds, %v", c.what, len(all), err)
		}
		if names, err := cache.KeptTrees(); err != nil || len(names) != 0 {
			t.Errorf("%s: trees %q are kept, %v", c.what, names, err)
		}
	}
	j, _ := openJournal(t)
	if err := j.Adopt([]byte("{"), "cache"); err == nil {
		t.Error("half a document was adopted")
	}
}

// TestAdoptTakesNothingAway has another machine say of a build with this machine's steps,
// and of its tree, what is not so, before and after this machine's own.
func TestAdoptTakesNothingAway(t *testing.T) {
	from, _ := openJournal(t)
	r := localReport(t, from, "one")
	r.Steps[1].Op = sum("another op") // which is no part of a report's name
	data, err := from.Pack(build(0), r, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, first := range []bool{true, false} {
		j, c := openJournal(t)
		adopt := func() {
			if err := j.Adopt(data, "cache"); err != nil {
				t.Fatal(err)
			}
		}
		if first {
			adopt()
		}
		own := localReport(t, j, "one")
		if own.name() != r.name() {
			t.Fatal("the reports have names of their own: the test tests nothing")
		}
		if err := j.Add(build(1), own); err != nil {
			t.Fatal(err)
		}
		if !first {
			adopt()
		}
		b, err := j.Find("last")
		if err != nil {
			t.Fatal(err)
		}
		got, err := j.Report(b)
		if err != nil || got.Steps[1].Op != own.Steps[1].Op {
			t.Errorf("adopted first: %v: this machine's report is %+v, %v", first, got, err)
		}
		if _, ok := c.KeptTree(keptName(own.Steps[0].Pin)); !ok {
			t.Errorf("adopted first: %v: the folder's tree is not kept", first)
		}
	}
}

// TestAdoptedTakeLittleRoom adopts more builds than are kept, after builds of this machine.
func TestAdoptedTakeLittleRoom(t *testing.T) {
	from, _ := openJournal(t)
	j, c := openJournal(t)
	const own = maxReports - 1
	for n := range own {
		if err := j.Add(build(n), report(t, c, fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 2 * maxAdopted {
		data, err := from.Pack(build(1000+n), localReport(t, from, fmt.Sprint("there ", n)), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Adopt(data, "cache"); err != nil {
			t.Fatal(err)
		}
	}
	all, err := j.all()
	if err != nil {
		t.Fatal(err)
	}
	have := map[bool]int{}
	for _, b := range all {
		if _, err := j.Report(b); err == nil {
			have[b.From != ""]++
		}
	}
	if have[false] != own || have[true] != maxReports-own {
		t.Errorf("reports of %d builds here and %d elsewhere are kept", have[false], have[true])
	}
}

func TestBareAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"[2/3] ADD https://user:pw@host/a/b?sig=x /to": "[2/3] ADD https://host/a/b /to",
		"https://host/a":                                "https://host/a",
		"git://token@host":                              "git://host",
		"RUN curl 'https://host/?x' && echo a@b":        "RUN curl 'https://host/' && echo a@b",
		"docker-image://busybox@sha256:00":              "docker-image://busybox@sha256:00",
		"[1/2] FROM docker.io/library/busybox@sha256:0": "[1/2] FROM docker.io/library/busybox@sha256:0",
	} {
		if got := bareAddresses(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

// FuzzAdopt adopts anything.
func FuzzAdopt(f *testing.F) {
	j, _ := openJournal(f)
	r := localReport(f, j, "one")
	r.Steps = append(r.Steps, Step{Name: "x", Kind: "exec", Op: sha256.Sum256(nil), Outcome: solver.Ran})
	data, err := j.Pack(build(0), r, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := j.Adopt(data, "cache"); err != nil {
			return
		}
		x := &Explainer{Journal: j, Nodes: j.cache, Kept: j.cache.KeptTree}
		if _, err := x.Explain(build(1), localReport(t, j, "two")); err != nil {
			t.Error(err)
		}
	})
}
