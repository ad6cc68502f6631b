package main

import (
	"fmt"
	"strings"
	"time"
)

// origin is the run and the commit that a workload's figures are of.
type origin struct {
	run    time.Time // when the run began; zero where that was not noted
	commit string
}

func (o *outcome) origin() origin { return origin{o.Run, o.Commit} }

func (g origin) String() string {
	if g.run.IsZero() {
		return "at commit " + g.commit
	}
	return fmt.Sprintf("of the run that began %s at commit %s", g.run.Format("2006-01-02 15:04 UTC"), g.commit)
}

// main gives the origin that most rows have, the earliest in the document of those that
// have as many.
func (r *results) main() (origin, bool) {
	count := map[origin]int{}
	for _, o := range r.Workloads {
		count[o.origin()] += len(o.Rows)
	}
	var most origin
	for _, o := range r.Workloads {
		if g := o.origin(); count[g] > count[most] {
			most = g
		}
	}
	return most, len(r.Workloads) > 0
}

// provenance says whether all rows are of one run, and which are not.
func (r *results) provenance() string {
	most, ok := r.main()
	if !ok {
		return ""
	}
	var order []origin
	others := map[origin][]string{}
	for _, o := range r.Workloads {
		g := o.origin()
		if g == most {
			continue
		}
		if others[g] == nil {
			order = append(order, g)
		}
		others[g] = append(others[g], o.ids()...)
	}
	switch {
	case len(order) == 0 && most.run.IsZero():
		return fmt.Sprintf("All rows are %s.\n\n", most)
	case len(order) == 0:
		return fmt.Sprintf("All rows are of one run, at commit %s.\n\n", most.commit)
	}
	text := fmt.Sprintf("The rows are %s, but for these:\n\n", most)
	for _, g := range order {
		text += fmt.Sprintf("- %s: %s\n", strings.Join(others[g], ", "), g)
	}
	return text + "\n"
}

// ids gives what the rows of a workload are called, without their parts.
func (o *outcome) ids() []string {
	var out []string
	for _, r := range o.Rows {
		id, _, _ := strings.Cut(r.ID, " ")
		if len(out) == 0 || out[len(out)-1] != id {
			out = append(out, id)
		}
	}
	return out
}
