package main

import (
	"fmt"
	"strings"
)

// The peaks of memory beside the sizes that they may grow with.

// growth is a build at several sizes, the smallest first.
type growth struct {
	what string
	rows []sized
	// goal is how many times the peak at the smallest size another's may be, none where
	// it is 0: W15 wants peaks that do not grow with the context or a layer.
	goal   float64
	remark string // what the growth is, where the goal is missed
}

// level is the goal of a peak that is not to grow. Peaks of one build differ by a tenth
// from round to round.
const level = 1.1

type sized struct{ id, size string }

func growths() []growth {
	layer := func(kind string) []sized {
		return []sized{{"W10 100 MB " + kind, "100 MB"}, {"W10 1 GB " + kind, "1 GB"}}
	}
	context := func(small, large string) []sized {
		return []sized{{small, "20,000 files"}, {large, "300,000 files"}}
	}
	const (
		files = "at the peak three quarters of the heap are Badger's buffers, for the tables that it writes (48 MB) and of its memtables (21 MB): " +
			"their size is set, and a small context does not fill them; a fifth is tree nodes on their way there, and of what is resident besides, " +
			"14 to 33 MB more are pages of the database's file, which the kernel takes back where memory is short"
		pieces = "the pieces of the layer that are read, compressed and written at one time, which a layer of two files does not fill: their number is bounded"
	)
	out := []growth{
		{"context, first build", context("W4", "W7 first"), level, files},
		{"context, one file edited", context("W5", "W7 edited"), level, files},
		{"context, nothing edited", context("W6", "W7 unchanged"), level, files},
		{"layer, the step that writes it", layer("step"), level, pieces},
		{"layer, its export as gzip", layer("gzip"), level, pieces},
	}
	for _, s := range shapes {
		for _, kind := range []string{"first", "hit"} {
			g := growth{what: fmt.Sprintf("%s graph, %s solve", s.name, kind)}
			for _, n := range graphSizes {
				if n >= 1000 {
					g.rows = append(g.rows, sized{graphRow(s.name, n, kind), fmt.Sprintf("%d vertices", n)})
				}
			}
			out = append(out, g)
		}
	}
	return out
}

// peaks writes the table, and which peaks grow that are not to. It leaves out what was
// not measured in the run that most rows are of, and at the same size.
func (r *results) peaks(b *strings.Builder) {
	run, ok := r.main()
	if !ok {
		return
	}
	var lines, missed []string
	for _, g := range growths() {
		first := map[string]float64{}
		for _, s := range g.rows {
			o, row := r.find(s.id)
			if row == nil || o.origin() != run || len(row.Samples["kiln"]) == 0 {
				continue
			}
			line := fmt.Sprintf("| %s | %s, %s%s ", g.what, s.id, s.size, o.size())
			for _, tool := range toolNames[:2] {
				line += "| " + row.peak(tool, first) + " "
			}
			lines = append(lines, line+"|\n")
			if times := median(row.values("kiln", memory)) / first["kiln"]; g.goal > 0 && times > g.goal {
				missed = append(missed, fmt.Sprintf("- %s, %s: %.1f times; %s\n", g.what, s.size, times, g.remark))
			}
		}
	}
	if len(lines) == 0 {
		return
	}
	b.WriteString("## Peaks by size\n\nPeak memory where one thing grows, all of one run; in brackets, how much of the peak at the smallest size it is.\n\n")
	b.WriteString("| what grows | row, size | kiln | BuildKit |\n|---|---|---|---|\n" + strings.Join(lines, "") + "\n")
	if len(missed) > 0 {
		b.WriteString("W15's goal is a peak that does not grow with the context or a layer. These of kiln's do:\n\n" + strings.Join(missed, "") + "\n")
	}
}

// peak gives the median peak of a tool, over the first that it is asked for.
func (r *rowOutcome) peak(tool string, first map[string]float64) string {
	if len(r.Samples[tool]) == 0 || r.unended(tool) {
		return "-"
	}
	v := median(r.values(tool, memory))
	if first[tool] == 0 {
		first[tool] = v
		return megabytes(v)
	}
	return fmt.Sprintf("%s (%.1f times)", megabytes(v), v/first[tool])
}
