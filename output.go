package kiln

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/all"
	"github.com/kiln-build/kiln/exporter/dest"
	"github.com/kiln-build/kiln/solver"
)

// exporters makes what r's outputs are written with, before anything is built:
// what is wrong with them is said at once.
func (b *build) exporters(r *Request) ([]shownExporter, error) {
	return b.exportersOf(r, r.Outputs, 0)
}

// exportersOf makes exporters of outputs of which the first one has that number.
func (b *build) exportersOf(r *Request, outputs []Output, first int) ([]shownExporter, error) {
	var out []shownExporter
	for i, o := range outputs {
		i += first
		env := exporter.Env{
			Cache: b.engine.cache, Source: b.engine.worker.Reader(b.session), Registry: b.engine.registry, Credentials: b.credentials, Clock: b.engine.clock,
		}
		if r.Record {
			env.Keep = func(d exporter.Document) {
				b.result.Documents = append(b.result.Documents, Document{Document: d, Output: i})
			}
		}
		switch {
		case o.Target != nil:
			env.Target = o.Target
		case o.Writer != nil:
			env.Target = dest.Path{Name: "-", Stdout: o.Writer}
		case o.Dest != "":
			env.Target = dest.Path{Name: o.Dest}
		}
		x, err := all.New(o.Type, maps.Clone(o.Attrs), env)
		if err != nil {
			return nil, fmt.Errorf("output %s: %w", o.Type, err)
		}
		out = append(out, shownExporter{Exporter: x, build: b, title: exportTitles[o.Type], number: i, publishes: o.Type == "image" || o.Type == "registry"})
	}
	return out, nil
}

// allExporters gives those of the request and, once its result is there, those that
// the caller names then.
func (b *build) allExporters(ctx context.Context, r *Request, known []shownExporter, m *made) ([]shownExporter, error) {
	if r.MoreOutputs == nil {
		return known, nil
	}
	outputs, err := r.MoreOutputs(ctx, m.Result)
	if err != nil {
		return nil, err
	}
	more, err := b.exportersOf(r, outputs, len(r.Outputs))
	return append(known[:len(known):len(known)], more...), err
}

// Document is one that an output made.
type Document struct {
	exporter.Document
	Output int // the number of the output in the request
}

// exportTitles are what displays call an export, by its type, in BuildKit's words.
var exportTitles = map[string]string{
	"docker":   "exporting to docker image format",
	"image":    "exporting to image",
	"local":    "exporting to client directory",
	"oci":      "exporting to oci image format",
	"registry": "exporting to image",
	"tar":      "exporting to client tarball",
}

// shownExporter is the exporter of one output of a build, which tells of what it
// does as one step with its parts.
type shownExporter struct {
	exporter.Exporter
	build  *build
	title  string
	number int // of the output
	// publishes says that others may see what it writes before the build ends.
	publishes bool
}

// writeOutputs writes a result with all exporters, those to registries last: nobody is to
// find an image there of a build that fails with a later output.
func (b *build) writeOutputs(ctx context.Context, result exporter.Result, exporters []shownExporter) error {
	order := slices.Clone(exporters)
	slices.SortStableFunc(order, func(x, y shownExporter) int {
		switch {
		case x.publishes == y.publishes:
			return 0
		case x.publishes:
			return 1
		}
		return -1
	})
	told := make(map[int]map[string]string, len(order))
	for i, x := range order {
		if i == len(order)-1 {
			result.Assembled = func() { b.finishCaches(ctx) }
		}
		var err error
		if told[x.number], err = x.Export(ctx, result, steps{b}); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range exporters {
		maps.Copy(b.result.Metadata, told[x.number])
	}
	return nil
}

// Export runs the exporter. The parts that it tells of are shown in its own step.
func (x shownExporter) Export(ctx context.Context, r exporter.Result, _ exporter.Progress) (map[string]string, error) {
	b := x.build
	started := b.engine.clock()
	subject := solver.Subject{Vertex: sha256.Sum256(fmt.Appendf(nil, "%s export %d", b.session, x.number)), Name: x.title, Time: started}
	b.emit(solver.VertexStarted{Subject: subject})
	told, err := x.Exporter.Export(ctx, r, parts{b, subject})
	subject.Time = b.engine.clock()
	b.emit(solver.VertexCompleted{Subject: subject, Started: started, Err: err})
	return told, err
}

// parts tells of what a step outside of the graph consists of.
type parts struct {
	build *build
	of    solver.Subject
}

// Step begins one; done ends it.
func (p parts) Step(name string) (done func(error)) {
	progress := solver.Progress{ID: name, Started: p.build.engine.clock()}
	tell := func() {
		at := p.of
		at.Time = p.build.engine.clock()
		p.build.emit(solver.VertexProgress{Subject: at, Progress: progress})
	}
	tell()
	return func(error) {
		progress.Completed = p.build.engine.clock()
		tell()
	}
}
