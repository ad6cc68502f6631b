package journal

import (
	"reflect"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/explain"
	"github.com/kiln-build/kiln/solver"
)

func TestCompareWords(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"a b c", "a b c", "a b c"},
		{"a b c", "a x c", "a [-b-] {+x+} c"},
		{"a b", "a b c d", "a b {+c d+}"}, // more at the end
		{"a b c", "c", "[-a b-] c"},       // less at the beginning
		{"", "a", "{+a+}"},                // from nothing
		{"a  b\n c", "a b c", "a b c"},    // spaces say nothing
		{"x a y b z", "a b", "[-x-] a [-y-] b [-z-]"},
	} {
		var got []string
		for _, w := range compareWords(c.old, c.new) {
			switch w.Change {
			case "gone":
				got = append(got, "[-"+w.Text+"-]")
			case "new":
				got = append(got, "{+"+w.Text+"+}")
			default:
				got = append(got, w.Text)
			}
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%q and %q: got %s, want %s", c.old, c.new, g, c.want)
		}
	}
}

// exec is a step with a place, and what it does.
func exec(name, op, definition string, outcome solver.Outcome, inputs ...int) Step {
	s := Step{Name: name, Kind: "exec", Op: sum(op), Definition: sum(definition), Outcome: outcome}
	for _, in := range inputs {
		s.Inputs = append(s.Inputs, Edge{Step: in})
	}
	return s
}

// TestNearest adds builds to a journal, and looks for the run that is nearest to
// the last step of one more.
func TestNearest(t *testing.T) {
	base := func(pin string) Step {
		return Step{Name: "[1/3] FROM base", Kind: "source", Pin: pin, Definition: sum(pin), Outcome: solver.Ran}
	}
	for _, c := range []struct {
		what string
		past [][]Step // the oldest first
		now  []Step
		want string // name of the build; empty is none
		kind explain.Kind
	}{
		{
			what: "the same definition in an old build, and only the same op in a newer one",
			past: [][]Step{{base("1"), exec("[2/3] RUN a", "a", "a1", solver.Ran, 0)}, {base("2"), exec("[2/3] RUN a", "a", "a2", solver.Ran, 0)}},
			now:  []Step{base("1"), exec("[2/3] RUN a", "a", "a1", solver.Ran, 0)},
			want: "build0000", kind: explain.Evicted,
		},
		{
			what: "a run that failed, and one that did not",
			past: [][]Step{{base("1"), exec("[2/3] RUN a", "a", "a1", solver.Hit, 0)}, {base("1"), exec("[2/3] RUN a", "a", "a1", solver.Failed, 0)}},
			now:  []Step{base("1"), exec("[2/3] RUN a", "a", "a1", solver.Ran, 0)},
			want: "build0000", kind: explain.Evicted,
		},
		{
			what: "a run that failed alone",
			past: [][]Step{{base("1"), exec("[2/3] RUN a", "a", "a1", solver.Failed, 0)}},
			now:  []Step{base("1"), exec("[2/3] RUN a", "a", "a1", solver.Ran, 0)},
			want: "build0000", kind: explain.NotFinished,
		},
		{
			what: "the same op, where fewer inputs differ",
			past: [][]Step{
				{base("1"), exec("[2/3] RUN a", "a", "a1", solver.Ran, 0), exec("[3/3] RUN b", "b", "b1", solver.Ran, 0, 1)},
				{base("2"), exec("[2/3] RUN a", "a", "a2", solver.Ran, 0), exec("[3/3] RUN b", "b", "b2", solver.Ran, 0, 1)},
			},
			now:  []Step{base("1"), exec("[2/3] RUN a", "a", "a3", solver.Ran, 0), exec("[3/3] RUN b", "b", "b3", solver.Ran, 0, 1)},
			want: "build0000", kind: explain.Input,
		},
		{
			what: "a step at its place that is elsewhere now",
			past: [][]Step{{base("1"), exec("[2/3] RUN old", "old", "old", solver.Ran, 0)}},
			now:  []Step{base("1"), exec("[3/3] RUN old", "old", "old2", solver.Ran, 0), exec("[2/3] RUN new", "new", "new", solver.Ran, 0)},
			want: "", kind: explain.NeverSeen,
		},
		{
			what: "another instruction at its place",
			past: [][]Step{{base("1"), exec("[2/3] COPY a b", "x", "x", solver.Ran, 0)}},
			now:  []Step{base("1"), exec("[2/3] RUN a b", "y", "y", solver.Ran, 0)},
			want: "", kind: explain.NeverSeen,
		},
		{
			what: "a step whose records do not count",
			past: [][]Step{{base("1"), exec("[2/3] RUN a", "a", "a1", solver.Ran, 0)}},
			now: []Step{base("1"), func() Step {
				s := exec("[2/3] RUN a", "a", "a1", solver.Ran, 0)
				s.NoCache = true
				return s
			}()},
			want: "", kind: explain.NoCache,
		},
	} {
		j, _ := openJournal(t)
		for n, steps := range c.past {
			if err := j.Add(build(n), &Report{Steps: steps}); err != nil {
				t.Fatal(err)
			}
		}
		got, err := (&Explainer{Journal: j}).Explain(build(len(c.past)), &Report{Steps: c.now})
		if err != nil {
			t.Fatal(err)
		}
		m := got.Steps[len(got.Steps)-1].Miss
		nearest := ""
		if m.Nearest != nil {
			nearest = m.Nearest.Build
		}
		if nearest != c.want || m.Reasons[0].Kind != c.kind {
			t.Errorf("%s: got %s of %q, want %s of %q", c.what, m.Reasons[0].Kind, nearest, c.kind, c.want)
		}
	}
}

// A build of something else is compared with only where a step is the very same.
func TestOtherProjects(t *testing.T) {
	j, _ := openJournal(t)
	other := build(0)
	other.Project = "/other"
	steps := []Step{exec("[2/2] COPY . .", "copy", "theirs", solver.Ran), exec("[9/9] RUN x", "x", "x", solver.Ran)}
	if err := j.Add(other, &Report{Steps: steps}); err != nil {
		t.Fatal(err)
	}
	now := []Step{
		exec("[2/2] COPY . .", "copy", "ours", solver.Ran), exec("[3/9] RUN x", "x", "x", solver.Ran),
		exec("[4/9] RUN y", "y", "y", solver.Ran), exec("[5/9] RUN z", "z", "z", solver.Ran),
	}
	got, err := (&Explainer{Journal: j}).Explain(build(1), &Report{Steps: now})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []explain.Kind
	for _, s := range got.Steps {
		kinds = append(kinds, s.Miss.Reasons[0].Kind)
	}
	want := []explain.Kind{explain.NeverSeen, explain.Evicted, explain.NeverSeen, explain.NeverSeen}
	if !reflect.DeepEqual(kinds, want) {
		t.Errorf("got %q, want %q", kinds, want)
	}
}

// FuzzCompareWords puts both texts together again from their difference.
func FuzzCompareWords(f *testing.F) {
	f.Add("a b c", "a x c d")
	f.Fuzz(func(t *testing.T, old, new string) {
		var a, b []string
		for _, w := range compareWords(old, new) {
			if w.Change != "new" {
				a = append(a, w.Text)
			}
			if w.Change != "gone" {
				b = append(b, w.Text)
			}
		}
		for text, got := range map[string][]string{old: a, new: b} {
			if want := strings.Join(strings.Fields(text), " "); strings.Join(got, " ") != want {
				t.Errorf("got %q, want %q", strings.Join(got, " "), want)
			}
		}
	})
}
