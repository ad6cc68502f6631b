package kiln

import (
	"context"
	"fmt"
	"maps"

	"github.com/kiln-build/kiln/exporter"
	"github.com/kiln-build/kiln/exporter/all"
	"github.com/kiln-build/kiln/exporter/dest"
)

// exporters makes what r's outputs are written with, before anything is built:
// what is wrong with them is said at once.
func (b *build) exporters(r *Request) ([]exporter.Exporter, error) {
	return b.exportersOf(r, r.Outputs, 0)
}

// exportersOf makes exporters of outputs of which the first one has that number.
func (b *build) exportersOf(r *Request, outputs []Output, first int) ([]exporter.Exporter, error) {
	var out []exporter.Exporter
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
		out = append(out, shownExporter{Exporter: x, build: b, title: exportTitles[o.Type], number: i})
	}
	return out, nil
}

// allExporters gives those of the request and, once its result is there, those that
// the caller names then.
func (b *build) allExporters(ctx context.Context, r *Request, known []exporter.Exporter, m *made) ([]exporter.Exporter, error) {
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
