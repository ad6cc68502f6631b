package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
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

func concurrentFiles(l *lab) ([]string, error) {
	var files []string
	for i := range 5 {
		text := fmt.Sprintf(`FROM %[1]s AS tools
RUN echo tools > /tools && sleep 0.2
FROM tools AS build
RUN cat /usr/lib/x86_64-linux-gnu/libc.so.6 /tools > /libs
RUN md5sum /usr/bin/* > /sums
FROM build AS own
RUN echo %[2]d > /own && sleep 0.1
FROM %[1]s
COPY --from=own /own /sums /libs /
RUN cat /own > /result
`, l.debian, i)
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
	return nil
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
