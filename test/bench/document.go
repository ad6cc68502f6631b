package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const documentHead = `# Benchmarks

kiln beside BuildKit and buildah: the same builds, in turn, on one machine, against one registry on its loopback
interface. Written by ` + "`make bench`" + ` (test/bench); nothing here is edited by hand.

A cell is the median of a tool's rounds, with the fastest and the slowest in brackets. The ratio is kiln's median over
BuildKit's, unless the goal says otherwise. kiln runs as a process for each build, BuildKit as a client with a daemon
that runs already, buildah as a process for each build. Every round begins with an empty state; the base image is pulled
before the clock starts, but for the workload that is about pulling. Images are compared, file by file: a row whose
images differ does not count. Peak is the resident memory of the largest process (of the daemon, for BuildKit), written
is what the processes caused to be written to the disk; processor time is that of all processes of a build, which says
more than the seconds where other work shared the machine (see the load averages). Plain loops are what copying, hashing, linking or compressing
the same bytes costs without a builder, measured in the same rounds.

`

// document writes benchmarks.md and its plots.
func (r *results) document(dir string) error {
	var b strings.Builder
	b.WriteString(documentHead)
	b.WriteString("## Machine\n\n")
	for _, line := range r.Host {
		b.WriteString("- " + line + "\n")
	}
	b.WriteString("\n")
	r.missed(&b)
	for _, o := range r.Workloads {
		o.document(&b)
	}
	if err := os.MkdirAll(filepath.Join(dir, "benchmarks"), 0o755); err != nil {
		return err
	}
	plots, err := r.plots(filepath.Join(dir, "benchmarks"))
	if err != nil {
		return err
	}
	if len(plots) > 0 {
		b.WriteString("## How cost grows\n\n")
		for _, p := range plots {
			fmt.Fprintf(&b, "![%s](benchmarks/%s)\n\n", p.title, p.file)
		}
	}
	return os.WriteFile(filepath.Join(dir, "benchmarks.md"), []byte(strings.TrimRight(b.String(), "\n")+"\n"), 0o644)
}

// missed lists the rows that did not reach their goals.
func (r *results) missed(b *strings.Builder) {
	var lines []string
	reached := 0
	for _, o := range r.Workloads {
		for _, row := range o.Rows {
			switch verdict := row.verdict(); verdict {
			case "":
			case "reached":
				reached++
			default:
				lines = append(lines, fmt.Sprintf("- %s, %s: %s (goal %s): %s\n", row.ID, row.Title, row.figure(row.ratio()), row.figure(row.Goal), verdict+remark(row.ID)))
			}
		}
	}
	fmt.Fprintf(b, "## Goals\n\n%d of %d rows reach theirs.", reached, reached+len(lines))
	if len(lines) > 0 {
		b.WriteString(" Those that do not:\n\n" + strings.Join(lines, ""))
	}
	b.WriteString("\n")
	if len(lines) == 0 {
		b.WriteString("\n")
	}
}

// remarks say, for rows that have missed their goals, what the time was by profile
// and what would remove it.
var remarks = map[string]string{
	"W3":       "a third of the processor time is opening and closing the state, the rest copying the layers into the tarball",
	"W4":       "half of the processor time is gzip, a quarter making the pool's files, a tenth hashing; a level of gzip below 5 would save a tenth of all for images that are 2% larger",
	"W8":       "starting kiln, resolving the base and eight sandboxes that start beside each other are the distance to the ideal; whatever else the machine does comes on top",
	"W9":       "43% of the processor time is inflating, 19% sha256 over the blob, the layer and each file; the layers are unpacked beside each other, so that the distance to BuildKit grows with the number of processors",
	"W10 many": "a step that writes small files is followed by hashing each and linking it into the pool, about 20 µs a file",
	"W11":      "starting kiln, the step's sandbox, and the requests for each layer one round trip deep",
	"W12":      "the smallest graphs take as long as starting a process and opening the state folder, about 25 ms",
}

// remark gives the remark with the longest id that a row's begins with.
func remark(id string) string {
	found := ""
	for prefix := range remarks {
		if strings.HasPrefix(id, prefix) && len(prefix) > len(found) {
			found = prefix
		}
	}
	if found == "" {
		return ""
	}
	return "; " + remarks[found]
}

func (o *outcome) document(b *strings.Builder) {
	fmt.Fprintf(b, "## %s\n\n", o.Name)
	size := ""
	if o.Scale != 1 {
		size = fmt.Sprintf(", at %g of its size", o.Scale)
	}
	fmt.Fprintf(b, "Measured %s at commit %s%s.", o.When.Format("2006-01-02 15:04 UTC"), o.Commit, size)
	if o.Load != "" {
		fmt.Fprintf(b, " Load averages of the machine when it began: %s.", o.Load)
	}
	b.WriteString("\n\n")
	b.WriteString("| row | | kiln | BuildKit | buildah | ratio | goal | |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range o.Rows {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", r.ID, r.Title,
			r.cell("kiln"), r.cell("buildkit"), r.cell("buildah"), r.figure(r.ratio()), r.figure(r.Goal), r.verdict())
	}
	b.WriteString("\n")
	o.resources(b)
	o.loops(b)
	for _, tool := range toolNames {
		if why := o.Failed[tool]; why != "" {
			first, _, _ := strings.Cut(why, "\n")
			fmt.Fprintf(b, "%s is left out: %s.\n\n", tool, first)
		}
	}
	for _, n := range o.Notes {
		first, _, _ := strings.Cut(n, "\n")
		fmt.Fprintf(b, "%s\n\n", first)
	}
	o.comparison(b)
}

// resources writes peak memory, bytes written and processor time.
func (o *outcome) resources(b *strings.Builder) {
	var rows []string
	for _, r := range o.Rows {
		line := "| " + r.ID
		for _, tool := range toolNames {
			cell := "-"
			if len(r.Samples[tool]) > 0 {
				cell = fmt.Sprintf("%s, %s, %s s", megabytes(median(r.values(tool, memory))), megabytes(median(r.values(tool, written))), figure(median(r.values(tool, cpu))))
			}
			line += " | " + cell
		}
		rows = append(rows, line+" |\n")
	}
	b.WriteString("| peak, written, processor time | kiln | BuildKit | buildah |\n|---|---|---|---|\n" + strings.Join(rows, "") + "\n")
}

func (o *outcome) loops(b *strings.Builder) {
	var rows []string
	for _, r := range o.Rows {
		for _, name := range r.Loops {
			rows = append(rows, fmt.Sprintf("| %s | %s | %s s |\n", r.ID, name, figure(median(r.Plain[name]))))
		}
	}
	if len(rows) > 0 {
		b.WriteString("| plain loop | | |\n|---|---|---|\n" + strings.Join(rows, "") + "\n")
	}
}

// comparison says what became of comparing the images.
func (o *outcome) comparison(b *strings.Builder) {
	var same []string
	for _, r := range o.Rows {
		for _, tool := range toolNames {
			if lines := r.Differs[tool]; len(lines) > 0 {
				fmt.Fprintf(b, "%s: the image of %s differs from BuildKit's, in `%s` for one.\n\n", r.ID, tool, strings.ReplaceAll(lines[0], "`", "'"))
			}
		}
		if r.Compared && len(r.Differs["kiln"]) == 0 {
			same = append(same, r.ID)
		}
	}
	if len(same) > 0 {
		fmt.Fprintf(b, "Compared, and the same from kiln as from BuildKit: the images of %s.\n\n", strings.Join(same, ", "))
	}
}
