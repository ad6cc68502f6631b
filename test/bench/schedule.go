package main

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
)

// W8: eight stages that do not depend on each other, against the ideal schedule.

const stages = 8

// stagesDockerfile has eight stages that run command, and one that wants them all.
func stagesDockerfile(base, command string) string {
	var b strings.Builder
	for i := range stages {
		fmt.Fprintf(&b, "FROM %s AS s%d\nRUN echo %d; %s; echo done > /done%d\n", base, i, i, command, i)
	}
	b.WriteString("FROM scratch\n")
	for i := range stages {
		fmt.Fprintf(&b, "COPY --from=s%d /done%d /\n", i, i)
	}
	return b.String()
}

// spin is a shell loop; countFor says how often it turns in a second here.
const spin = "i=0; while [ $i -lt %d ]; do i=$((i+1)); done"

func countFor(l *lab) (int, error) {
	const n = 400_000
	seconds, err := l.loop("start", "/bin/sh", "-c", fmt.Sprintf(spin, n))
	return int(n / seconds), err
}

// scheduleRound builds the stages. The ideal is that of the machine: as many
// stages at once as it has processors, or all for those that sleep.
func scheduleRound(r *run) error {
	if r.spins == 0 {
		n, err := countFor(r.lab)
		if err != nil {
			return err
		}
		r.spins = n
	}
	empty, err := r.empty()
	if err != nil {
		return err
	}
	if err := r.warm(r.debian); err != nil {
		return err
	}
	for id, command := range map[string]string{"W8 compute": fmt.Sprintf(spin, r.spins), "W8 sleep": "sleep 1"} {
		file, err := r.write(strings.ReplaceAll(id, " ", "-")+"/Dockerfile", stagesDockerfile(r.debian, command))
		if err != nil {
			return err
		}
		if err := r.time(id, build{context: empty, dockerfile: file}); err != nil {
			return err
		}
	}
	return nil
}

// schedulePlain runs the same loops beside each other with nothing around them.
func schedulePlain(l *lab) (map[string][]part, error) {
	cpus := runtime.NumCPU()
	script := fmt.Sprintf("for s in 1 2 3 4 5 6 7 8; do (%s) & done; wait", fmt.Sprintf(spin, l.spins))
	compute, err := l.loop("start", "/bin/sh", "-c", script)
	if err != nil {
		return nil, err
	}
	sleep, err := l.loop("start", "/bin/sh", "-c", "for s in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait")
	return map[string][]part{
		"W8 compute": {{"the eight loops at once, on " + strconv.Itoa(cpus) + " processors", compute}},
		"W8 sleep":   {{"eight processes that sleep, at once", sleep}},
	}, err
}
