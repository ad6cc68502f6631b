package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/cache/tree"
	"github.com/kiln-build/kiln/explain"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
	"github.com/moby/buildkit/solver/pb"
)

func openJournal(t testing.TB) (*Journal, *cache.Cache) {
	t.Helper()
	c, err := cache.Open(context.Background(), t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return Open(c), c
}

func sum(s string) Sum { return sha256.Sum256([]byte(s)) }

// build is build n of a project; each is a minute after the one before.
func build(n int) Build {
	at := time.Unix(1e9, 0).Add(time.Duration(n) * time.Minute)
	return Build{ID: fmt.Sprintf("build%04d", n), Project: "/src\tand \"more\"\n", Started: at, Completed: at.Add(time.Second), Status: explain.Done}
}

// folder puts a tree of one file into the cache.
func folder(t testing.TB, c *cache.Cache, text string) tree.Entry {
	t.Helper()
	var b tree.Builder
	e := tree.Entry{Name: "file", Kind: tree.File, Mode: 0o644, Size: int64(len(text)), Content: sha256.Sum256([]byte(text))}
	if err := b.Set("file", e); err != nil {
		t.Fatal(err)
	}
	root, err := b.Root(c)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// report is a report of a step that reads a folder.
func report(t testing.TB, c *cache.Cache, text string) *Report {
	root := folder(t, c, text)
	return &Report{Steps: []Step{
		{Name: "context", Kind: "source", Pin: fmt.Sprintf("tree:%x", root.ID()), Outcome: solver.Ran, root: root},
		{Name: "[2/2] COPY . .", Kind: "file", Inputs: []Edge{{Step: 0}}, Op: sum("copy"), Definition: sum(text), Outcome: solver.Ran},
	}}
}

func TestJournal(t *testing.T) {
	j, c := openJournal(t)
	if b, err := j.Builds(); err != nil || len(b) != 0 {
		t.Fatalf("an empty journal has %v, %v", b, err)
	}
	if _, err := j.Find("last"); !errors.Is(err, explain.ErrNotFound) {
		t.Errorf("the last of no builds: got %v, want ErrNotFound", err)
	}
	r := report(t, c, "one")
	for n := range 3 {
		if err := j.Add(build(n), r); err != nil {
			t.Fatal(err)
		}
	}
	all, err := j.Builds()
	if err != nil || len(all) != 3 {
		t.Fatalf("got %d builds, %v, want 3", len(all), err)
	}
	for _, ref := range []string{"last", "latest", "build0002"} {
		b, err := j.Find(ref)
		want := build(2)
		want.report = r.name()
		if err != nil || !reflect.DeepEqual(b, want) {
			t.Errorf("Find(%q) = %+v, %v, want %+v", ref, b, err, want)
		}
	}
	// The beginning of three names, and of none.
	for _, ref := range []string{"build", "x", ""} {
		if _, err := j.Find(ref); !errors.Is(err, explain.ErrNotFound) {
			t.Errorf("Find(%q): got %v, want ErrNotFound", ref, err)
		}
	}
	got, err := j.Report(all[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Steps) != 2 || got.Steps[1].Definition != sum("one") || got.Steps[1].Name != "[2/2] COPY . ." {
		t.Errorf("got %+v, want what was added", got)
	}
	if got.name() != r.name() {
		t.Error("a report has another name once it was stored")
	}
}

func TestBounds(t *testing.T) {
	j, c := openJournal(t)
	const builds = 3 * maxReports
	for n := range builds {
		if err := j.Add(build(n), report(t, c, fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	reports := 0
	if err := j.reports.Each(nil, func(_, _ []byte) error { reports++; return nil }); err != nil {
		t.Fatal(err)
	}
	trees, err := c.KeptTrees()
	if reports != maxReports || len(trees) != maxReports || err != nil {
		t.Errorf("%d reports and %d trees (%v) are kept, want %d of both", reports, len(trees), err, maxReports)
	}
	all, err := j.Builds()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Report(all[len(all)-maxReports]); err != nil {
		t.Errorf("the oldest report that fits is not kept: %v", err)
	}
	if _, err := j.Report(all[len(all)-maxReports-1]); !errors.Is(err, explain.ErrNotFound) {
		t.Errorf("a report beyond the bound: got %v, want ErrNotFound", err)
	}

	// Builds that find everything cached add lines alone.
	same := report(t, c, "same")
	for n := range 3000 {
		if err := j.Add(build(builds+n), same); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(j.path())
	if err != nil || st.Size() > maxLines+1024 {
		t.Errorf("the file has %d bytes (%v), want %d or so at most", st.Size(), err, maxLines)
	}
	if b, err := j.Find("last"); err != nil || b.ID != build(builds+2999).ID {
		t.Errorf("the last build is %s, %v", b.ID, err)
	}
}

func TestDamage(t *testing.T) {
	j, c := openJournal(t)
	for n := range 3 {
		if err := j.Add(build(n), report(t, c, fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(j.path())
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(data, []byte("\n"))
	lines[1][20] ^= 1
	torn := append(bytes.Join(lines, nil), "0123abcd\thalf a line"...)
	if err := os.WriteFile(j.path(), torn, 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := j.Builds()
	if err != nil || len(all) != 2 || all[0].ID != build(0).ID || all[1].ID != build(2).ID {
		t.Errorf("got %+v, %v, want the first build and the third", all, err)
	}
	if err := j.reports.Put(all[0].report[:], []byte{reportVersion, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Report(all[0]); !errors.Is(err, explain.ErrNotFound) {
		t.Errorf("a damaged report: got %v, want ErrNotFound", err)
	}
	// What can be read is explained still.
	x := &Explainer{Journal: j}
	if _, err := x.Explain(build(9), report(t, c, "9")); err != nil {
		t.Errorf("explaining beside a damaged report: %v", err)
	}
}

// A report holds no value of a variable and no text of a file.
func TestReportsHoldNoValues(t *testing.T) {
	const secret = "hunter2hunter2"
	x := llb.Exec{Meta: &pb.Meta{Args: []string{"make"}, Env: []string{"TOKEN=" + secret}, ProxyEnv: &pb.ProxyEnv{HttpProxy: secret}}}
	x.Mounts = []llb.Mount{llb.Root(llb.Edge{})}
	v, err := x.Vertex()
	if err != nil {
		t.Fatal(err)
	}
	var f llb.Files
	s := f.From(llb.Edge{}).Mkfile(&pb.FileActionMkFile{Path: "/x", Data: []byte(secret)})
	w, err := f.Vertex([]llb.FileState{s})
	if err != nil {
		t.Fatal(err)
	}
	var c Collector
	c.Add([]solver.Step{{Vertex: v}, {Vertex: w}}, nil)
	r := c.Report(nil)
	if _, err := r.encode(); err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Steps {
		if len(s.Does) == 0 || bytes.Contains(s.Does, []byte(secret)) {
			t.Errorf("what %s does is kept as %q", s.Name, s.Does)
		}
	}
	if strings.Contains(fmt.Sprint(x.Meta.Env), hash(secret)) {
		t.Error("the vertex itself was changed")
	}
}

func FuzzParseLine(f *testing.F) {
	b := build(1)
	f.Add(strings.TrimSuffix(string(b.line()), "\n"))
	f.Fuzz(func(t *testing.T, line string) {
		b, ok := parseLine(line)
		if !ok {
			return
		}
		again, ok := parseLine(strings.TrimSuffix(string(b.line()), "\n"))
		if !ok || !reflect.DeepEqual(b, again) {
			t.Errorf("%q is %+v, and then %+v", line, b, again)
		}
	})
}

func FuzzDecodeReport(f *testing.F) {
	r := &Report{Steps: []Step{{Name: "a", Kind: "exec"}, {Name: "b", Inputs: []Edge{{Step: 0}}}}}
	data, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{reportVersion, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(_ *testing.T, data []byte) {
		r, err := decodeReport(data)
		if err != nil {
			return
		}
		for i := range r.Steps {
			_, _ = r.Steps[i].op()
			for _, in := range r.Steps[i].Inputs {
				_ = r.Steps[in.Step]
			}
		}
	})
}
