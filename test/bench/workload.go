package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// workload is a sequence of builds.
type workload struct {
	name string
	rows []row
	// rounds of each tool, five where it is 0.
	rounds int
	// setup makes what the builds read; it is not timed.
	setup func(*lab) error
	// round runs the sequence with a tool whose state is empty.
	round func(*run) error
	// plain runs the loops that the builds are compared with; nil has none.
	plain func(*lab) (map[string][]part, error)
	// tools that cannot run it, with the reason.
	without map[string]string
	// disk is how many gigabytes a round of every tool, with what it reads, takes at most;
	// 0 is 6.
	disk float64
	// fewer are the rounds of tools that take minutes for each.
	fewer map[string]int
}

// row is a timed build.
type row struct {
	id, title string
	goal      float64 // kiln's time over BuildKit's
	ideal     float64 // seconds; where it is set the goal is over this
	overPlain bool    // the goal is over the first plain loop
	memory    bool    // the goal is resident bytes
}

// part is a plain loop and what it took.
type part struct {
	Name    string
	Seconds float64
}

// run is one round of a workload with one tool.
type run struct {
	*lab
	tool    tool
	n       int // the round, from 0
	samples map[string]sample
	images  map[string][]string // OCI tarballs, or docker://REF, by row, of the first round
	notes   []string
}

// time runs a build as the row of that id.
func (r *run) time(id string, b build) error {
	settle()
	s, err := r.tool.build(r.ctx, b)
	if err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	r.samples[id] = s
	fmt.Fprintf(os.Stderr, "  %-9s round %d  %-28s %8.3f s  cpu %7.2f s  %5d MB  written %5d MB\n",
		r.tool.name(), r.n+1, id, s.Seconds, s.CPU, s.Memory>>20, s.Written>>20)
	return nil
}

// untimed runs a build that no row is of.
func (r *run) untimed(b build) error {
	_, err := r.tool.build(r.ctx, b)
	return err
}

// image names images that a row made, to be compared.
func (r *run) image(id string, images ...string) { r.images[id] = append(r.images[id], images...) }

// settle has the kernel write out what earlier builds left to it, which the next
// one would pay for.
func settle() { syscall.Sync() }

// out gives the path of an output of this tool.
func (r *run) out(name string) string {
	return filepath.Join(r.dir, "out", r.tool.name()+"-"+name+".tar")
}

// outOf gives the path of what the first tool put there, for the plain loops.
func (l *lab) outOf(name string) string {
	return filepath.Join(l.dir, "out", l.tools[0].name()+"-"+name+".tar")
}

// run runs the rounds of a workload.
func (l *lab) run(w workload) (*outcome, error) {
	fmt.Fprintf(os.Stderr, "%s\n", w.name)
	if err := l.clear(w); err != nil {
		return nil, err
	}
	if w.setup != nil {
		if err := w.setup(l); err != nil {
			return nil, err
		}
	}
	rounds := w.rounds
	if rounds == 0 {
		rounds = 5
	}
	if l.rounds > 0 {
		rounds = l.rounds
	}
	o := newOutcome(w, l)
	trees := map[string]map[string]string{}
	for n := range rounds {
		for _, t := range l.tools {
			if most, ok := w.fewer[t.name()]; o.failed(t.name()) || ok && n >= most {
				continue
			}
			if err := l.makeRoom(w, o); err != nil {
				return nil, err
			}
			trees[t.name()] = l.round(w, t, n, o, trees[t.name()])
			if l.ctx.Err() != nil {
				return nil, l.ctx.Err()
			}
		}
		if w.plain == nil {
			continue
		}
		settle()
		parts, err := w.plain(l)
		if err != nil {
			return nil, fmt.Errorf("plain loops: %w", err)
		}
		o.addPlain(parts)
	}
	if err := o.compare(l, trees); err != nil {
		return nil, err
	}
	return o, l.closeTools()
}

// round runs one round and gives the files that list what its images hold, by row. A
// tool that fails is left out of the rounds that follow, and the table says why.
func (l *lab) round(w workload, t tool, n int, o *outcome, trees map[string]string) map[string]string {
	if why, ok := w.without[t.name()]; ok {
		o.Failed[t.name()] = why
		return nil
	}
	r := &run{lab: l, tool: t, n: n, samples: map[string]sample{}, images: map[string][]string{}}
	err := t.reset(l.ctx)
	if err == nil {
		err = w.round(r)
	}
	o.addSamples(t.name(), r.samples)
	o.note(r.notes)
	if err != nil {
		fmt.Fprintf(os.Stderr, "  %s: %v\n", t.name(), err)
		o.Failed[t.name()] = err.Error()
		return trees
	}
	if n > 0 {
		return trees
	}
	trees = map[string]string{}
	for id, images := range r.images {
		list := filepath.Join(l.dir, "out", t.name()+"-"+strings.ReplaceAll(id, " ", "-")+".tree")
		if _, err := l.driver(nil, append([]string{"tree", list}, images...)...); err != nil {
			o.Failed[t.name()] = "reading its image: " + err.Error()
			continue
		}
		trees[id] = list
	}
	return trees
}

// duration runs f and gives its seconds.
func duration(f func() error) (float64, error) {
	start := time.Now()
	err := f()
	return time.Since(start).Seconds(), err
}
