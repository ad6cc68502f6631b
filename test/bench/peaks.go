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
}

type sized struct{ id, size string }

func growths() []growth {
	layer := func(kind string) []sized {
		return []sized{{"W10 100 MB " + kind, "100 MB"}, {"W10 1 GB " + kind, "1 GB"}}
	}
	out := []growth{
		{"context, first build", []sized{{"W4", "20,000 files"}, {"W7 first", "300,000 files"}}},
		{"context, one file edited", []sized{{"W5", "20,000 files"}, {"W7 edited", "300,000 files"}}},
		{"context, nothing edited", []sized{{"W6", "20,000 files"}, {"W7 unchanged", "300,000 files"}}},
		{"layer, the step that writes it", layer("step")},
		{"layer, its export as gzip", layer("gzip")},
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

// peaks writes the table. It leaves out what was not measured in the run that most rows
// are of, and at the same size.
func (r *results) peaks(b *strings.Builder) {
	run, ok := r.main()
	if !ok {
		return
	}
	var lines []string
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
		}
	}
	if len(lines) == 0 {
		return
	}
	b.WriteString("## Peaks by size\n\nPeak memory where one thing grows, all of one run; in brackets, how much of the peak at the smallest size it is.\n\n")
	b.WriteString("| what grows | row, size | kiln | BuildKit |\n|---|---|---|---|\n" + strings.Join(lines, "") + "\n")
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
