package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// outcome is what the rounds of a workload came to.
type outcome struct {
	Name   string
	When   time.Time
	Run    time.Time // when the run began that it is of; zero in results of before that was noted
	Commit string
	Scale  float64
	Load   string // the machine's load averages when the workload began
	Rows   []*rowOutcome
	Failed map[string]string // why a tool has no further rounds, by tool
	Notes  []string
}

// rowOutcome is what the rounds of a row came to.
type rowOutcome struct {
	ID, Title string
	Goal      float64
	Ideal     float64
	OverPlain bool
	Resident  bool
	Samples   map[string][]sample  // by tool
	Plain     map[string][]float64 // seconds by loop
	Loops     []string             // the keys of Plain in order
	Differs   map[string][]string  // lines in which a tool's image is not BuildKit's
	Compared  bool
}

func newOutcome(w workload, l *lab) *outcome {
	o := &outcome{Name: w.name, When: time.Now().UTC(), Run: l.began, Commit: l.revision(), Scale: l.scale, Failed: map[string]string{}}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		o.Load = strings.Join(strings.Fields(string(load))[:3], " ")
	}
	for _, r := range w.rows {
		o.Rows = append(o.Rows, &rowOutcome{
			ID: r.id, Title: r.title, Goal: r.goal, Ideal: r.ideal, OverPlain: r.overPlain, Resident: r.memory,
			Samples: map[string][]sample{}, Plain: map[string][]float64{}, Differs: map[string][]string{},
		})
	}
	return o
}

func (o *outcome) failed(tool string) bool { return o.Failed[tool] != "" }

// note keeps what is worth saying of a workload, once.
func (o *outcome) note(notes []string) {
	for _, n := range notes {
		if !slices.Contains(o.Notes, n) {
			o.Notes = append(o.Notes, n)
		}
	}
}

func (o *outcome) row(id string) *rowOutcome {
	for _, r := range o.Rows {
		if r.ID == id {
			return r
		}
	}
	r := &rowOutcome{ID: id, Title: id, Samples: map[string][]sample{}, Plain: map[string][]float64{}, Differs: map[string][]string{}}
	o.Rows = append(o.Rows, r)
	return r
}

func (o *outcome) addSamples(tool string, samples map[string]sample) {
	for id, s := range samples {
		r := o.row(id)
		r.Samples[tool] = append(r.Samples[tool], s)
	}
}

func (o *outcome) addPlain(parts map[string][]part) {
	for id, list := range parts {
		r := o.row(id)
		for _, p := range list {
			if !slices.Contains(r.Loops, p.Name) {
				r.Loops = append(r.Loops, p.Name)
			}
			r.Plain[p.Name] = append(r.Plain[p.Name], p.Seconds)
		}
	}
}

// compare notes where the images that tools made differ from BuildKit's: by the files
// that list what is in them, tool by tool and row by row. Lists are large, and this
// process has to stay small (see measure): a driver reads them.
func (o *outcome) compare(l *lab, trees map[string]map[string]string) error {
	for _, r := range o.Rows {
		want, ok := trees["buildkit"][r.ID]
		if !ok {
			continue
		}
		for tool, lists := range trees {
			got, ok := lists[r.ID]
			if !ok || tool == "buildkit" {
				continue
			}
			found, err := l.driver(nil, "differ", want, got)
			if err != nil {
				return err
			}
			r.Compared = true
			if found != "" {
				r.Differs[tool] = strings.Split(strings.TrimSpace(found), "\n")
			}
		}
	}
	return nil
}

// values gives one figure of a tool's samples.
func (r *rowOutcome) values(tool string, of func(sample) float64) []float64 {
	var out []float64
	for _, s := range r.Samples[tool] {
		out = append(out, of(s))
	}
	return out
}

func seconds(s sample) float64  { return s.Seconds }
func memory(s sample) float64   { return float64(s.Memory) }
func cpu(s sample) float64      { return s.CPU }
func written(s sample) float64  { return float64(s.Written) }
func moved(s sample) float64    { return float64(s.Moved) }
func requests(s sample) float64 { return float64(s.Requests) }

// counted reports whether what went to and from the registry was.
func (r *rowOutcome) counted() bool {
	for _, samples := range r.Samples {
		for _, s := range samples {
			if s.Requests > 0 {
				return true
			}
		}
	}
	return false
}

// time gives the median seconds of a tool, NaN without samples.
func (r *rowOutcome) time(tool string) float64 {
	if len(r.Samples[tool]) == 0 {
		return math.NaN()
	}
	return median(r.values(tool, seconds))
}

// ratio is what the goal is of: kiln's time over BuildKit's, over the ideal, over
// the plain loop, or its resident bytes.
func (r *rowOutcome) ratio() float64 {
	switch {
	case r.Resident && len(r.Samples["kiln"]) == 0:
		return math.NaN()
	case r.Resident:
		return median(r.values("kiln", memory))
	case r.OverPlain && len(r.Loops) > 0:
		return r.time("kiln") / median(r.Plain[r.Loops[0]])
	}
	if r.Ideal > 0 {
		return r.time("kiln") / r.Ideal
	}
	return r.time("kiln") / r.time("buildkit")
}

// loops gives what the row's plain loops take together, by their medians; NaN of none.
func (r *rowOutcome) loops() float64 {
	if len(r.Loops) == 0 {
		return math.NaN()
	}
	sum := 0.0
	for _, name := range r.Loops {
		sum += median(r.Plain[name])
	}
	return sum
}

// overLoops is the distance to what the machine can do: kiln's median over the sum of
// the row's plain loops.
func (r *rowOutcome) overLoops() string {
	if r.Resident {
		return "-"
	}
	return number(r.time("kiln") / r.loops())
}

// unended reports whether builds of a tool were stopped, so that their seconds are a
// bound from below.
func (r *rowOutcome) unended(tool string) bool {
	return slices.ContainsFunc(r.Samples[tool], func(s sample) bool { return s.Unended })
}

// print writes the outcome as a table for people at a terminal.
func (o *outcome) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s (size %g)\n", o.Name, o.Scale)
	fmt.Fprintf(w, "%-26s %22s %22s %22s  %7s %6s %10s\n", "", "kiln", "buildkit", "buildah", "ratio", "goal", "over loops")
	for _, r := range o.Rows {
		fmt.Fprintf(w, "%-26s", r.ID)
		for _, tool := range toolNames {
			fmt.Fprintf(w, " %22s", r.cell(tool))
		}
		fmt.Fprintf(w, "  %7s %6s %10s %s\n", r.over(), r.figure(r.Goal), r.overLoops(), r.verdict())
		if r.counted() {
			for _, tool := range toolNames {
				if len(r.Samples[tool]) > 0 {
					fmt.Fprintf(w, "    %-40s %s\n", tool+" moved", r.traffic(tool))
				}
			}
		}
		for _, name := range r.Loops {
			fmt.Fprintf(w, "    %-40s %.3f s\n", name, median(r.Plain[name]))
		}
		for tool, lines := range r.Differs {
			fmt.Fprintf(w, "    the image of %s differs:\n      %s\n", tool, strings.Join(lines, "\n      "))
		}
	}
	for tool, why := range o.Failed {
		fmt.Fprintf(w, "%s did not run to the end: %s\n", tool, why)
	}
}

var toolNames = []string{"kiln", "buildkit", "buildah"}

// traffic says what went between a tool and the registry.
func (r *rowOutcome) traffic(tool string) string {
	if len(r.Samples[tool]) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f MB in %.0f requests", median(r.values(tool, moved))/1e6, median(r.values(tool, requests)))
}

// cell gives the median of a tool with its spread.
func (r *rowOutcome) cell(tool string) string {
	v := r.values(tool, seconds)
	if len(v) == 0 {
		return "-"
	}
	if r.Resident {
		return megabytes(median(r.values(tool, memory)))
	}
	if r.unended(tool) {
		return "over " + figure(slices.Max(v)) + " s"
	}
	return fmt.Sprintf("%s s (%s-%s)", figure(median(v)), figure(slices.Min(v)), figure(slices.Max(v)))
}

// figure gives seconds with three digits that count.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

// figure gives a ratio, or bytes where the goal is of bytes.
func (r *rowOutcome) figure(v float64) string {
	if r.Resident && !math.IsNaN(v) {
		return megabytes(v)
	}
	return number(v)
}

// over gives the ratio as text.
func (r *rowOutcome) over() string {
	if r.unended("buildkit") {
		return "under " + r.figure(r.ratio())
	}
	return r.figure(r.ratio())
}

func megabytes(v float64) string { return fmt.Sprintf("%.0f MB", v/(1<<20)) }

// number gives a ratio, a dash where there is none.
func number(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) || v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}

// incomparable is the verdict on a row that BuildKit could not build, or not in time.
const incomparable = "BuildKit did not solve it"

// verdict says whether the row reached its goal.
func (r *rowOutcome) verdict() string {
	switch ratio := r.ratio(); {
	case len(r.Differs["kiln"]) > 0:
		return "does not count: the image differs"
	case r.Goal == 0:
		return ""
	case math.IsNaN(ratio) && len(r.Samples["kiln"]) > 0:
		return incomparable
	case math.IsNaN(ratio):
		return "not measured"
	case r.counted() && median(r.values("kiln", moved)) > median(r.values("buildkit", moved)):
		return "missed: it moves more bytes"
	case ratio <= r.Goal:
		return "reached"
	case r.unended("buildkit"):
		return incomparable
	default:
		return "missed"
	}
}

// results are the outcomes of several workloads, as a file keeps them.
type results struct {
	Host      []string
	Workloads []*outcome
}

func readResults(path string) (*results, error) {
	r := &results{}
	if path == "" {
		return r, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	return r, json.Unmarshal(data, r)
}

// add puts an outcome in the place of an earlier one of the same workload.
func (r *results) add(o *outcome) {
	for i, old := range r.Workloads {
		if old.Name == o.Name {
			r.Workloads[i] = o
			return
		}
	}
	r.Workloads = append(r.Workloads, o)
}

func (r *results) write(path string) error {
	if path == "" {
		return nil
	}
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
