package kiln

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/solver"
)

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
