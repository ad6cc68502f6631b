package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const documentHead = `# Benchmarks

kiln beside BuildKit and buildah: the same builds, in turn, on one machine, against one registry on its loopback
interface. Written by the program in test/bench, which ` + "`make bench`" + ` runs.

A cell is the median of a tool's rounds, with the fastest and the slowest in brackets. The ratio is kiln's median over
BuildKit's, unless the goal says otherwise. kiln runs as a process for each build, BuildKit as a client with a daemon
that runs already, buildah as a process for each build. Every round begins with an empty state; the base image is pulled
before the clock starts, but for the workload that is about pulling. Images are compared, file by file: a row whose
images differ does not count. Peak is the resident memory of the largest process (of the daemon, for BuildKit; 213 to 215 MB of kiln and buildah are
the measuring program's, which the kernel counted in), written
is what the processes caused to be written to the disk; processor time is that of all processes of a build, which says
more than the seconds where other work shared the machine (see the load averages).

Plain loops are what the machine takes for what a build cannot leave out (to copy, hash, link, compress or fetch the
same bytes, to start a process) without a builder around it, measured in the same rounds. Each is one goroutine, unless
its name says more. "Over loops" is the distance to them: kiln's median over the sum of the medians of the row's loops,
which run one after the other. It is below 1 where kiln does at the same time, or does not do again, what the loops do
in turn for every byte.

`

// document writes benchmarks.md and its plots.
func (r *results) document(dir string) error {
	var b strings.Builder
	b.WriteString(documentHead)
	b.WriteString(r.provenance())
	b.WriteString("## Machine\n\n")
	for _, line := range r.Host {
		b.WriteString("- " + line + "\n")
	}
	b.WriteString("\n")
	r.missed(&b)
	for _, o := range r.Workloads {
		o.document(&b)
	}
	r.peaks(&b)
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

// missed lists the rows that did not reach their goals, and those without one in which
// kiln is slower than BuildKit.
func (r *results) missed(b *strings.Builder) {
	var lines, slower, alone []string
	reached := 0
	for _, o := range r.Workloads {
		for _, row := range o.Rows {
			switch verdict := row.verdict(); verdict {
			case "":
				if row.ratio() > 1 {
					slower = append(slower, fmt.Sprintf("- %s, %s%s: %s%s\n", row.ID, row.Title, o.size(), row.over(), remark(row.ID)))
				}
			case "reached":
				reached++
			case incomparable:
				alone = append(alone, row.ID)
			default:
				if verdict == "missed" {
					verdict += remark(row.ID)
				}
				lines = append(lines, fmt.Sprintf("- %s, %s%s: %s (goal %s): %s\n", row.ID, row.Title, o.size(), row.over(), row.figure(row.Goal), verdict))
			}
		}
	}
	fmt.Fprintf(b, "## Goals\n\n%d of %d rows reach theirs.", reached, reached+len(lines))
	if len(lines) == 0 {
		b.WriteString("\n")
	}
	if len(lines) > 0 {
		b.WriteString(" Those that do not:\n\n" + strings.Join(lines, ""))
	}
	if len(slower) > 0 {
		b.WriteString("\nOf the rows without a goal, kiln is slower than BuildKit in these:\n\n" + strings.Join(slower, ""))
	}
	if len(alone) > 0 {
		fmt.Fprintf(b, "\nkiln built %d more rows, which BuildKit could not, or not in the time that it was given: %s.\n", len(alone), strings.Join(alone, ", "))
	}
	if absent := r.absent(); len(absent) > 0 {
		b.WriteString("\nNot measured yet: " + strings.Join(absent, ", ") + ".\n")
	}
	b.WriteString("\n")
}

// remarks say, for rows that have missed their goals, what the time was by profile
// and what would remove it.
var remarks = map[string]string{
	"W2 alone":      "the initialization of the program's packages is a quarter of the time, opening the database a quarter",
	"W4":            "writing 340 MB; a virtual machine's memory costs 2 ms a megabyte where it is written for the first time, and a tenth of that later: kiln's rounds take 1.5 s or 2.0",
	"W9":            "kiln's processor time for one pull was 5.4 s to 7.8, since memory that is written for the first time costs a virtual machine more; a third is sha256 over the blob, the layer and each file, a sixth inflating, a quarter system calls; one pass for two of the sums took 7% of it off, by rounds of our own in assembly, and the library is kept all the same",
	"W10 1 GB":      "rounds differ by as much as a factor of two, as those of W9 do; nearly half of zstd's processor time is sha256 over the stream, its pieces and the blob, a sixth compressing, since the files have most pieces in common; uncompressed, it is the hash of one stream, which one processor makes, and the writing beside it",
	"W10 many":      "the step's own commands are three quarters of the processor time, and as much in BuildKit; a step that writes small files is followed by hashing each and linking it into the pool, about 15 µs a file, half of them the link, which the export gets back; the other processor idles while the step runs, and could hash by then what is written",
	"W10 many zstd": "most of it is opening and reading 100,000 files: uncompressed it takes three quarters as long",
	"W11":           "a plain client's requests, with the step and the start of a process, take as long: two thirds are the registry's answers to an upload and to the manifest",
	"W12":           "of a hundred vertices it is mostly the start of a process, of which the initialization of packages is 4 to 6 ms, and opening the state folder, 3 ms, both of which BuildKit's daemon has behind it",
	"W13":           "what is above the compiler's time is the walk over the 16,000 files of the context and of the Go distribution, and the start and end of the step",
	"W16":           "half of the seconds are what a plain loop on all processors takes to fetch, hash, inflate and write the files of the layers that steps need, a sixth the steps' own commands; the rest is the push and, at the end, a look at whether another runner has written the cache meanwhile, since a registry knows no conditions",
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
		return "; not profiled"
	}
	return "; " + remarks[found]
}

// size says at what size a workload ran, where that is not the whole.
func (o *outcome) size() string {
	if o.Scale == 1 {
		return ""
	}
	return fmt.Sprintf(", at %g of its size", o.Scale)
}

// rounds gives how many of kiln's there were.
func (o *outcome) rounds() int {
	return o.roundsOf("kiln")
}

func (o *outcome) roundsOf(tool string) int {
	n := 0
	for _, r := range o.Rows {
		n = max(n, len(r.Samples[tool]))
	}
	return n
}

// fewer names the tools that had fewer rounds than kiln.
func (o *outcome) fewer() string {
	var out string
	for _, tool := range toolNames {
		if n := o.roundsOf(tool); n > 0 && n < o.rounds() {
			out += fmt.Sprintf(", of %s %d", tool, n)
		}
	}
	return out
}

// absent lists the workloads that these results do not have.
func (r *results) absent() []string {
	var out []string
	for _, w := range workloads {
		if !slices.ContainsFunc(r.Workloads, func(o *outcome) bool { return o.Name == w.name }) {
			id, _, _ := strings.Cut(w.rows[0].id, " ")
			out = append(out, id+" ("+strings.ToLower(w.name[:1])+w.name[1:]+")")
		}
	}
	return out
}

func (o *outcome) document(b *strings.Builder) {
	fmt.Fprintf(b, "## %s\n\n", o.Name)
	fmt.Fprintf(b, "Measured %s at commit %s%s, in %d rounds%s.", o.When.Format("2006-01-02 15:04 UTC"), o.Commit, o.size(), o.rounds(), o.fewer())
	if o.Load != "" {
		fmt.Fprintf(b, " Load averages of the machine when it began: %s.", o.Load)
	}
	b.WriteString("\n\n")
	b.WriteString("| row | | kiln | BuildKit | buildah | ratio | goal | over loops | |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range o.Rows {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", r.ID, r.Title,
			r.cell("kiln"), r.cell("buildkit"), r.cell("buildah"), r.over(), r.figure(r.Goal), r.overLoops(), r.verdict())
	}
	b.WriteString("\n")
	o.resources(b)
	o.traffic(b)
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
			if peak := median(r.values(tool, memory)); peak > 0 { // not so of what a driver builds
				cell = fmt.Sprintf("%s, %s, %s s", megabytes(peak), megabytes(median(r.values(tool, written))), figure(median(r.values(tool, cpu))))
			}
			line += " | " + cell
		}
		rows = append(rows, line+" |\n")
	}
	b.WriteString("| peak, written, processor time | kiln | BuildKit | buildah |\n|---|---|---|---|\n" + strings.Join(rows, "") + "\n")
}

// traffic writes what went to and from the registry.
func (o *outcome) traffic(b *strings.Builder) {
	var rows []string
	for _, r := range o.Rows {
		if r.counted() {
			rows = append(rows, fmt.Sprintf("| %s | %s | %s |\n", r.ID, r.traffic("kiln"), r.traffic("buildkit")))
		}
	}
	if len(rows) > 0 {
		b.WriteString("| to and from the registry, base, cache and image | kiln | BuildKit |\n|---|---|---|\n" + strings.Join(rows, "") + "\n")
	}
}

func (o *outcome) loops(b *strings.Builder) {
	var rows []string
	for _, r := range o.Rows {
		var loops []string
		for _, name := range r.Loops {
			loops = append(loops, fmt.Sprintf("%s %s s", name, figure(median(r.Plain[name]))))
		}
		if len(loops) > 0 {
			rows = append(rows, fmt.Sprintf("| %s | %s | %s s |\n", r.ID, strings.Join(loops, "; "), figure(r.loops())))
		}
	}
	if len(rows) > 0 {
		b.WriteString("| row | plain loops | together |\n|---|---|---|\n" + strings.Join(rows, "") + "\n")
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
