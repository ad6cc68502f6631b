// Command bench builds the same workloads with kiln, BuildKit and buildah, in
// turn, and prints what each took.
//
// A workload is a sequence of builds that stand on each other: a first build, one
// after an edit, one of what has not changed. A row is one timed build of it. A
// round runs the sequence of a workload with one tool, from an empty state; the
// rounds of the tools alternate, A B C A B C, so that what else the machine does
// meets all of them. With each round goes a plain round: loops that do to the same
// bytes what cannot be left out (copy, hash, link, compress), and nothing else.
//
// The images that the tools made are compared. A row whose images differ does
// not count, and the table says so.
//
//	bench [-rounds N] [-scale F] [-tools kiln,buildkit,buildah] [-doc DIR] [W1 W4 …]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) > 1 {
		if run, ok := drivers[os.Args[1]]; ok {
			exit(run(os.Args[2:]))
		}
	}
	exit(bench())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// settings are the flags.
type settings struct {
	rounds       int
	scale        float64
	tools        string
	peers, cache string
	kilnBin      string
	results, doc string
	keep         bool
	only         []string
}

func bench() error {
	var s settings
	home, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	flag.IntVar(&s.rounds, "rounds", 0, "rounds of each tool; 0 is what each workload says")
	flag.Float64Var(&s.scale, "scale", 1, "size of the workloads")
	flag.StringVar(&s.tools, "tools", "kiln,buildkit,buildah", "the tools that run")
	flag.StringVar(&s.peers, "peers", filepath.Join(home, "kiln-test", "peers"), "the folder of buildkitd and buildctl")
	flag.StringVar(&s.kilnBin, "kiln", "", "the kiln to measure; empty builds it")
	flag.StringVar(&s.cache, "dir", filepath.Join(os.TempDir(), "kiln-bench"), "the folder to work in; it is emptied")
	flag.StringVar(&s.results, "results", "", "a JSON file that keeps the results; workloads that do not run keep what it has of them")
	flag.StringVar(&s.doc, "doc", "", "write benchmarks.md and its plots, of all that -results has, to this folder")
	flag.BoolVar(&s.keep, "keep", false, "leave the work folder")
	flag.Parse()
	s.only = flag.Args()

	results, err := readResults(s.results)
	if err != nil {
		return err
	}
	if !slices.Equal(s.only, []string{"none"}) {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if err := runAll(ctx, s, results); err != nil {
			return err
		}
	}
	if s.doc == "" {
		return nil
	}
	return results.document(s.doc)
}

// runAll runs the workloads that were asked for.
func runAll(ctx context.Context, s settings, results *results) error {
	run := slices.DeleteFunc(slices.Clone(workloads), func(w workload) bool { return !wanted(w, s.only) })
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return err
	}
	free, err := freeBytes(s.cache)
	if err != nil {
		return err
	}
	if err := checkRoom(s.cache, s.scale, run, free); err != nil {
		return err
	}
	l, err := openLab(ctx, s)
	if err != nil {
		return err
	}
	defer l.close()
	results.Host = l.host()
	for _, w := range run {
		outcome, err := l.run(w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		results.add(outcome)
		outcome.print(os.Stdout)
		if err := results.write(s.results); err != nil {
			return err
		}
	}
	return nil
}

// wanted reports whether a workload has one of the rows that were named.
func wanted(w workload, only []string) bool {
	if len(only) == 0 {
		return true
	}
	for _, r := range w.rows {
		id, _, _ := strings.Cut(r.id, " ")
		if slices.Contains(only, id) {
			return true
		}
	}
	return false
}
