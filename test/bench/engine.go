package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kiln-build/kiln"
)

// What is measured inside one process of kiln, through its Go API: what a daemon
// of it would take.

// engineRun is what a driver prints.
type engineRun struct {
	Open, Close float64
	Builds      []float64 // seconds, in the order in which builds were asked for
	Total       float64
	Idle        int64 // resident bytes after a pause
}

// engineBuilds is a driver: ROOT CONCURRENCY IDLE CONTEXT DOCKERFILE… builds the
// Dockerfiles in one engine, so many at once, and then waits IDLE seconds. Where
// BENCH_OCI names a tarball, each writes it.
func engineBuilds(args []string) error {
	var concurrency, idle int
	if _, err := fmt.Sscan(args[1]+" "+args[2], &concurrency, &idle); err != nil {
		return err
	}
	ctx := context.Background()
	start := time.Now()
	e, err := kiln.Open(ctx, kiln.Options{Root: args[0]})
	if err != nil {
		return err
	}
	r := engineRun{Open: time.Since(start).Seconds(), Builds: make([]float64, len(args)-4)}
	stop, err := profile()
	if err != nil {
		return err
	}
	var outputs []kiln.Output
	if tarball := os.Getenv("BENCH_OCI"); tarball != "" {
		outputs = []kiln.Output{{Type: "oci", Dest: tarball}}
	}
	start = time.Now()
	errs := make([]error, len(r.Builds))
	places := make(chan struct{}, concurrency)
	var group sync.WaitGroup
	for i, file := range args[4:] {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			r.Builds[i], errs[i] = duration(func() error {
				_, err := e.Build(ctx, kiln.Request{Context: args[3], Dockerfile: file, Outputs: outputs})
				return err
			})
		})
	}
	group.Wait()
	r.Total = time.Since(start).Seconds()
	stop()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	if idle > 0 {
		time.Sleep(time.Duration(idle) * time.Second)
		kb, err := procField("/proc/self/status", "VmRSS:")
		if err != nil {
			return err
		}
		r.Idle = kb << 10
	}
	start = time.Now()
	if err := e.Close(); err != nil {
		return err
	}
	r.Close = time.Since(start).Seconds()
	return json.NewEncoder(os.Stdout).Encode(r)
}

// engine runs the driver.
func (r *run) engine(concurrency, idle int, context string, files ...string) (engineRun, error) {
	var e engineRun
	args := append([]string{"engine", r.tool.state(), fmt.Sprint(concurrency), fmt.Sprint(idle), context}, files...)
	out, err := r.driver(nil, args...)
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal([]byte(out), &e)
}

// W14: twenty builds at once of five Dockerfiles that share stages.

const sharing = 5

// sharedSteps are steps that all the files have; ownStep and resultStep are each
// file's.
var sharedSteps = [...]string{
	"echo tools > /tools && sleep 0.2",
	"cat /usr/lib/x86_64-linux-gnu/libc.so.6 /tools > /libs",
	"md5sum /usr/bin/* > /sums",
}

const resultStep = "cat /own > /result"

func ownStep(i int) string { return fmt.Sprintf("echo %d > /own && sleep 0.1", i) }

func concurrentFiles(l *lab) ([]string, error) {
	var files []string
	for i := range sharing {
		text := fmt.Sprintf(`FROM %[1]s AS tools
RUN %[2]s
FROM tools AS build
RUN %[3]s
RUN %[4]s
FROM build AS own
RUN %[5]s
FROM %[1]s
COPY --from=own /own /sums /libs /
RUN %[6]s
`, l.debian, sharedSteps[0], sharedSteps[1], sharedSteps[2], ownStep(i), resultStep)
		file, err := l.write(fmt.Sprintf("concurrent-%d/Dockerfile", i), text)
		if err != nil {
			return nil, err
		}
		for range 4 {
			files = append(files, file)
		}
	}
	return files, nil
}

func concurrentRound(r *run) error {
	files, err := concurrentFiles(r.lab)
	if err != nil {
		return err
	}
	if err := r.warm(r.debian); err != nil {
		return err
	}
	empty, err := r.empty()
	if err != nil {
		return err
	}
	settle()
	switch t := r.tool.(type) {
	case *kilnTool:
		e, err := r.engine(len(files), 0, empty, files...)
		if err != nil {
			return err
		}
		r.samples["W14"] = sample{Seconds: e.Total}
		r.notes = append(r.notes, "kiln's builds run in one process through its Go API, as a state folder has one owner; BuildKit's time has that of twenty clients in it.")
	case *buildkit:
		s, err := t.measure(func() (sample, error) { return r.together(t, empty, files) })
		if err != nil {
			return err
		}
		r.samples["W14"] = s
	default:
		return fmt.Errorf("%s cannot share the work of builds that run at once", t.name())
	}
	return r.exportConcurrent(empty, slices.Compact(files))
}

// exportConcurrent writes the images of W14's files, of the first round, for the
// comparison: what was built at once without an output is there.
func (r *run) exportConcurrent(context string, files []string) error {
	if r.n > 0 {
		return nil
	}
	for i, file := range files {
		b := build{context: context, dockerfile: file, oci: r.out(fmt.Sprintf("concurrent-%d", i))}
		if err := r.untimed(b); err != nil {
			return err
		}
		r.image("W14", b.oci)
	}
	return nil
}

// concurrentPlain runs the steps that are left when what is shared runs once.
func concurrentPlain(l *lab) (map[string][]part, error) {
	dir, err := l.scratch()
	if err != nil {
		return nil, err
	}
	p, err := l.parts([]string{"the 13 distinct steps, in sandboxes, those beside each other that can be", "stages", l.rootfs(), dir})
	return map[string][]part{"W14": p}, err
}

// together runs a client for each file at once.
func (r *run) together(t *buildkit, context string, files []string) (sample, error) {
	var script strings.Builder
	for _, f := range files {
		fmt.Fprintf(&script, "%s --addr %s build --progress plain --frontend dockerfile.v0 --local context=%s --local dockerfile=%s & pids=\"$pids $!\"\n",
			t.ctl(), t.addr(), context, filepath.Dir(f))
	}
	script.WriteString("for p in $pids; do wait $p || exit 1; done\n")
	return measure(r.ctx, nil, "sh", "-c", script.String())
}
