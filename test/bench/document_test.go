package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

// measured makes an outcome of rows that kiln and BuildKit took seconds and bytes for.
func measured(run time.Time, commit string, ids ...string) *outcome {
	o := &outcome{Name: ids[0], Run: run, Commit: commit, Scale: 1, Failed: map[string]string{}}
	for i, id := range ids {
		r := o.row(id)
		r.Samples["kiln"] = []sample{{Seconds: 1, Memory: int64(i+1) * 50 << 20}}
		r.Samples["buildkit"] = []sample{{Seconds: 4, Memory: int64(i+1) * 200 << 20}}
	}
	return o
}

func TestProvenance(t *testing.T) {
	first, second := time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), time.Date(2026, 1, 3, 3, 4, 0, 0, time.UTC)
	for _, test := range []struct {
		name      string
		workloads []*outcome
		want      string
	}{
		{"nothing measured", nil, ""},
		{"one run", []*outcome{measured(first, "aaa", "W1", "W2"), measured(first, "aaa", "W4")},
			"All rows are of one run, at commit aaa.\n\n"},
		{"results of before runs were noted", []*outcome{measured(time.Time{}, "aaa", "W1")},
			"All rows are at commit aaa.\n\n"},
		{"another run at the same commit", []*outcome{measured(second, "aaa", "W1"), measured(first, "aaa", "W4", "W5")},
			"The rows are of the run that began 2026-01-02 03:04 UTC at commit aaa, but for these:\n\n" +
				"- W1: of the run that began 2026-01-03 03:04 UTC at commit aaa\n\n"},
		{"parts of a row's name are left out", []*outcome{measured(first, "aaa", "W1", "W2", "W3", "W4"), measured(time.Time{}, "bbb", "W7 first", "W7 edited"), measured(time.Time{}, "bbb", "W15")},
			"The rows are of the run that began 2026-01-02 03:04 UTC at commit aaa, but for these:\n\n- W7, W15: at commit bbb\n\n"},
	} {
		if got := (&results{Workloads: test.workloads}).provenance(); got != test.want {
			t.Errorf("%s: got\n%swant\n%s", test.name, got, test.want)
		}
	}
}

func TestPeaks(t *testing.T) {
	run := time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	var b strings.Builder
	r := &results{Workloads: []*outcome{
		measured(run, "aaa", "W10 100 MB gzip", "W10 1 GB gzip", "W4", "W5"),
		measured(time.Time{}, "bbb", "W7 first"), // of another run
	}}
	r.peaks(&b)
	_, table, _ := strings.Cut(b.String(), "|---|---|---|---|\n")
	var pieces string
	for _, g := range growths() {
		if g.what == "layer, its export as gzip" {
			pieces = g.remark
		}
	}
	want := `| context, first build | W4, 20,000 files | 150 MB | 600 MB |
| context, one file edited | W5, 20,000 files | 200 MB | 800 MB |
| layer, its export as gzip | W10 100 MB gzip, 100 MB | 50 MB | 200 MB |
| layer, its export as gzip | W10 1 GB gzip, 1 GB | 100 MB (2.0 times) | 400 MB (2.0 times) |

W15's goal is a peak that does not grow with the context or a layer. These of kiln's do:

- layer, its export as gzip, 1 GB: 2.0 times; ` + pieces + `

`
	if table != want {
		t.Errorf("got\n%swant\n%s", table, want)
	}
	b.Reset()
	(&results{}).peaks(&b)
	if b.Len() > 0 {
		t.Errorf("of no results: %s", b.String())
	}
}

// The rows that a table names are there.
func TestGrowthsNameRows(t *testing.T) {
	there := map[string]bool{}
	for _, w := range workloads {
		for _, r := range w.rows {
			there[r.id] = true
		}
	}
	for _, g := range growths() {
		for _, s := range g.rows {
			if !there[s.id] {
				t.Errorf("%s: no row %s", g.what, s.id)
			}
		}
	}
}

// What is missed, and what is slower where there is no goal to miss, is told.
func TestMissed(t *testing.T) {
	o := measured(time.Time{}, "aaa", "W1", "W9 gzip", "W10 100 MB step", "W10 many step")
	for i, goal := range []float64{0.3, 0.2, 0, 0} {
		o.Rows[i].Goal = goal
	}
	o.Rows[3].Samples["buildkit"][0].Seconds = 0.8
	var b strings.Builder
	(&results{Workloads: []*outcome{o}}).missed(&b)
	got, _, _ := strings.Cut(b.String(), "\nNot measured yet: ")
	want := "## Goals\n\n1 of 2 rows reach theirs. Those that do not:\n\n" +
		"- W9 gzip, W9 gzip: 0.25 (goal 0.20): missed" + remark("W9 gzip") + "\n" +
		"\nOf the rows without a goal, kiln is slower than BuildKit in these:\n\n" +
		"- W10 many step, W10 many step: 1.25" + remark("W10 many step") + "\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestOverLoops(t *testing.T) {
	o := measured(time.Time{}, "aaa", "W9")
	r := o.Rows[0]
	if got := r.loops(); !math.IsNaN(got) {
		t.Errorf("loops of a row that has none: %v", got)
	}
	if got := r.overLoops(); got != "-" {
		t.Errorf("over no loops: %s", got)
	}
	o.addPlain(map[string][]part{"W9": {{"fetch", 0.1}, {"write", 0.3}}})
	o.addPlain(map[string][]part{"W9": {{"fetch", 0.1}, {"write", 0.5}}})
	// A second over the medians 0.1 and 0.4.
	if got := r.overLoops(); got != "2.00" {
		t.Errorf("over loops: got %s, want 2.00", got)
	}
}

func TestCheckRoom(t *testing.T) {
	run := []workload{{name: "Small"}, {name: "Large", disk: 40}}
	if err := checkRoom("/bench", 1, run, 43<<30); err != nil {
		t.Errorf("with room: %v", err)
	}
	if err := checkRoom("/bench", 0.1, run, 7<<30); err != nil {
		t.Errorf("a tenth of the size: %v", err)
	}
	err := checkRoom("/bench", 1, run, 20<<30)
	want := "/bench has 20.0 GB free, and “large” needs 42.0: make room, name another folder by -dir, or name fewer workloads"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := checkRoom("/bench", 1, run[:1], 20<<30); err != nil {
		t.Errorf("what is small alone: %v", err)
	}
}
