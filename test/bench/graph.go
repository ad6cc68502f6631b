package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/cache"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/registry"
	"github.com/kiln-build/kiln/solver"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/executor"
)

// W12: graphs of many vertices, all of them file operations on scratch, given to
// the tools as LLB.

// shapes are graphs of about n vertices.
var shapes = []struct {
	name string
	make func(n int) (llb.Edge, error)
}{
	{"deep", deep},
	{"wide", wide},
	{"diamonds", diamonds},
}

func mkfile(on llb.Edge, name string) (llb.Edge, error) {
	var f llb.Files
	s := f.From(on).Mkfile(&pb.FileActionMkFile{Path: "/" + name, Mode: 0o644, Data: []byte(name), Timestamp: -1})
	v, err := f.Vertex([]llb.FileState{s})
	if err != nil {
		return llb.Edge{}, err
	}
	return v.Output(0), nil
}

// gather copies what the edges hold into one file system, a folder for each.
func gather(name string, edges []llb.Edge) (llb.Edge, error) {
	var f llb.Files
	s := f.From(llb.Edge{})
	for i, e := range edges {
		s = s.Copy(f.From(e), &pb.FileActionCopy{
			Src: "/", Dest: fmt.Sprintf("/%s-%d", name, i), Mode: -1, Timestamp: -1, DirCopyContents: true, CreateDestPath: true,
		})
	}
	v, err := f.Vertex([]llb.FileState{s})
	if err != nil {
		return llb.Edge{}, err
	}
	return v.Output(0), nil
}

// deep is a chain.
func deep(n int) (llb.Edge, error) {
	var e llb.Edge
	for i := range n {
		var err error
		if e, err = mkfile(e, fmt.Sprintf("f%d", i)); err != nil {
			return e, err
		}
	}
	return e, nil
}

// wide is n leaves, gathered by the hundred until one is left.
func wide(n int) (llb.Edge, error) {
	level := make([]llb.Edge, n)
	for i := range level {
		var err error
		if level[i], err = mkfile(llb.Edge{}, fmt.Sprintf("f%d", i)); err != nil {
			return llb.Edge{}, err
		}
	}
	return gatherAll("w", level)
}

func gatherAll(name string, level []llb.Edge) (llb.Edge, error) {
	for depth := 0; len(level) > 1; depth++ {
		var next []llb.Edge
		for at := 0; at < len(level); at += 100 {
			e, err := gather(fmt.Sprintf("%s%d-%d", name, depth, at), level[at:min(at+100, len(level))])
			if err != nil {
				return e, err
			}
			next = append(next, e)
		}
		level = next
	}
	return level[0], nil
}

// diamonds are towers of ten: two files beside each other on what is below, and a
// copy from one to the other.
func diamonds(n int) (llb.Edge, error) {
	var towers []llb.Edge
	for t := range max(1, n/30) {
		var e llb.Edge
		for i := range 10 {
			left, err := mkfile(e, fmt.Sprintf("t%d-left%d", t, i))
			if err != nil {
				return e, err
			}
			right, err := mkfile(e, fmt.Sprintf("t%d-right%d", t, i))
			if err != nil {
				return e, err
			}
			var f llb.Files
			name := fmt.Sprintf("/t%d-right%d", t, i)
			s := f.From(left).Copy(f.From(right), &pb.FileActionCopy{Src: name, Dest: name, Mode: -1, Timestamp: -1})
			v, err := f.Vertex([]llb.FileState{s})
			if err != nil {
				return e, err
			}
			e = v.Output(0)
		}
		towers = append(towers, e)
	}
	return gatherAll("d", towers)
}

// writeGraph is a driver: SHAPE N FILE writes a definition.
func writeGraph(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for _, s := range shapes {
		if s.name != args[0] {
			continue
		}
		e, err := s.make(n)
		if err != nil {
			return err
		}
		def, err := llb.Marshal(e)
		if err != nil {
			return err
		}
		data, err := proto.Marshal(def)
		if err != nil {
			return err
		}
		return os.WriteFile(args[2], data, 0o644)
	}
	return errors.New("no shape " + args[0])
}

// solveGraph is a driver: ROOT FILE… opens a state folder, solves each definition
// and prints how long that took from the definition's bytes on, with the time of
// opening and closing, as JSON. It is to kiln what buildctl and a daemon are to
// BuildKit, but for the process that starts.
func solveGraph(args []string) error {
	ctx := context.Background()
	start := time.Now()
	c, err := cache.Open(ctx, args[0], cache.Options{LazyClose: true, Warn: func(err error) { fmt.Fprintln(os.Stderr, err) }})
	if err != nil {
		return err
	}
	ex, err := executor.New(executor.Options{Dir: c.Path("tmp")})
	if err != nil {
		return err
	}
	w, err := worker.New(c, &registry.Client{}, ex, worker.Options{})
	if err != nil {
		return err
	}
	s := solver.New(c, w, solver.Options{Lease: func() solver.Lease { return c.Lease() }, Durations: c.Bucket("time")})
	took := map[string]float64{"open": time.Since(start).Seconds()}
	stop, err := profile()
	if err != nil {
		return err
	}
	for i, name := range args[1:] {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		start = time.Now()
		if err := solveOne(ctx, c, s, data); err != nil {
			return err
		}
		took[fmt.Sprintf("solve%d", i)] = time.Since(start).Seconds()
	}
	stop()
	start = time.Now()
	s.Close()
	if err := errors.Join(ex.Close(), c.Close()); err != nil {
		return err
	}
	took["close"] = time.Since(start).Seconds()
	return json.NewEncoder(os.Stdout).Encode(took)
}

func solveOne(ctx context.Context, c *cache.Cache, s *solver.Solver, data []byte) error {
	var def pb.Definition
	if err := proto.Unmarshal(data, &def); err != nil {
		return err
	}
	e, err := llb.Load(&def)
	if err != nil {
		return err
	}
	lease := c.Lease()
	defer lease.Release()
	_, err = s.Solve(ctx, solver.Request{Session: "bench", Edges: []llb.Edge{e}, Lease: lease})
	s.EndSession("bench")
	return err
}

// graphSizes are the sizes of graphs. BuildKit is given those of largeGraph and more
// in the first round alone, and is stopped after graphLimit: the largest would take
// it longer than all the rest together.
var graphSizes = []int{100, 1000, 10_000, 100_000}

const (
	largeGraph = 10_000
	graphLimit = 3 * time.Minute
)

func graphRows() []row {
	var rows []row
	for _, s := range shapes {
		for _, n := range graphSizes {
			for _, kind := range []string{"first", "hit"} {
				rows = append(rows, row{id: graphRow(s.name, n, kind), title: fmt.Sprintf("%s graph of %d vertices, %s solve", s.name, n, kind), goal: 0.1})
			}
		}
	}
	return rows
}

func graphRow(shape string, n int, kind string) string {
	return fmt.Sprintf("W12 %s %d %s", shape, n, kind)
}

func (l *lab) graph(shape string, n int) string {
	return filepath.Join(l.dir, "src", fmt.Sprintf("%s-%d.llb", shape, n))
}

func graphSetup(l *lab) error {
	for _, s := range shapes {
		for _, n := range graphSizes {
			if _, err := l.driver(nil, "graph", s.name, fmt.Sprint(l.scaled(n)), l.graph(s.name, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

func graphRound(r *run) error {
	for _, s := range shapes {
		for _, n := range graphSizes {
			if r.tool != r.kiln && n >= largeGraph && r.n > 0 {
				break
			}
			if more, err := r.graphPair(s.name, n); err != nil {
				return err
			} else if !more {
				break
			}
		}
	}
	return nil
}

// graphPair solves a graph twice, first on an empty state, and reports whether a larger one of its shape is
// worth trying: not where this one could not be solved, or not in time.
func (r *run) graphPair(shape string, n int) (more bool, err error) {
	if err := r.tool.reset(r.ctx); err != nil {
		return false, err
	}
	for _, kind := range []string{"first", "hit"} {
		id := graphRow(shape, n, kind)
		took, err := r.solve(r.graph(shape, n))
		if err != nil && r.ctx.Err() != nil {
			return false, err
		}
		if err != nil && !took.Unended {
			note := fmt.Sprintf("%s could not solve the %s graph of %d vertices, and was given no larger one: %s.", r.tool.name(), shape, r.scaled(n), lastLine(err.Error()))
			fmt.Fprintln(os.Stderr, "  "+note)
			r.notes = append(r.notes, note)
			return false, nil
		}
		r.samples[id] = took
		fmt.Fprintf(os.Stderr, "  %-9s round %d  %-28s %8.3f s  %5d MB\n", r.tool.name(), r.n+1, id, took.Seconds, took.Memory>>20)
		if took.Unended {
			return false, nil
		}
	}
	return true, r.exportGraph(shape, n)
}

// lastLine gives the end of a message, where tools say what it is about.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	s = s[strings.LastIndexByte(s, '\n')+1:]
	if len(s) > 160 {
		s = s[:48] + " … " + s[len(s)-40:] // between them are the folders of this run
	}
	return s
}

// solve solves a definition with the tool of the round.
func (r *run) solve(file string) (sample, error) {
	settle()
	t, ok := r.tool.(*buildkit)
	if !ok {
		return measure(r.ctx, nil, r.self, "solve", r.tool.state(), file)
	}
	ctx, cancel := context.WithTimeout(r.ctx, graphLimit)
	defer cancel()
	s, err := t.measure(func() (sample, error) {
		return measure(ctx, nil, "sh", "-c", `exec "$0" --addr "$1" build --progress plain <"$2"`, t.ctl(), t.addr(), file)
	})
	s.Unended = err != nil && ctx.Err() != nil
	return s, err
}
