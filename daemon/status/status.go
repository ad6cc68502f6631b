// Package status puts a build's events into the form in which BuildKit's clients
// take them (client.SolveStatus), for its progress displays and its control API.
package status

import (
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/solver"
)

// Of gives an event as a status.
func Of(e kiln.Event) *client.SolveStatus {
	s := e.On()
	switch e := e.(type) {
	case solver.VertexStarted:
		v := vertex(s)
		v.Started = &s.Time
		return &client.SolveStatus{Vertexes: []*client.Vertex{v}}
	case solver.VertexCached:
		v := vertex(s)
		v.Started, v.Completed, v.Cached = &s.Time, &s.Time, true
		return &client.SolveStatus{Vertexes: []*client.Vertex{v}}
	case solver.VertexCompleted:
		v := vertex(s)
		v.Started, v.Completed = &e.Started, &s.Time
		if e.Err != nil {
			v.Error = e.Err.Error()
		}
		return &client.SolveStatus{Vertexes: []*client.Vertex{v}}
	case solver.VertexLog:
		return &client.SolveStatus{Logs: []*client.VertexLog{{Vertex: dgst(s.Vertex), Stream: e.Stream, Data: e.Data, Timestamp: s.Time}}}
	case solver.VertexProgress:
		return &client.SolveStatus{Statuses: []*client.VertexStatus{progress(s, e.Progress)}}
	case solver.Warning:
		return &client.SolveStatus{Warnings: []*client.VertexWarning{{Vertex: dgst(s.Vertex), Level: 1, Short: []byte(e.Text)}}}
	case kiln.FrontendWarning:
		return &client.SolveStatus{Warnings: []*client.VertexWarning{warning(s, e.Warning)}}
	}
	return &client.SolveStatus{}
}

func dgst(d llb.Digest) digest.Digest { return digest.Digest(d.String()) }

func vertex(s solver.Subject) *client.Vertex {
	v := &client.Vertex{Digest: dgst(s.Vertex), Name: s.Name, ProgressGroup: s.Group}
	for _, in := range s.Inputs {
		v.Inputs = append(v.Inputs, dgst(in))
	}
	return v
}

func progress(s solver.Subject, p solver.Progress) *client.VertexStatus {
	st := &client.VertexStatus{
		ID: p.ID, Vertex: dgst(s.Vertex), Name: p.Action, Total: p.Total, Current: p.Current,
		Timestamp: s.Time, Started: timeOrNil(p.Started), Completed: timeOrNil(p.Completed),
	}
	return st
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func warning(s solver.Subject, w frontend.Warning) *client.VertexWarning {
	out := &client.VertexWarning{Vertex: dgst(s.Vertex), Level: w.Level, Short: []byte(w.Short), URL: w.URL}
	for _, d := range w.Detail {
		out.Detail = append(out.Detail, []byte(d))
	}
	if l := w.Location; l != nil {
		out.SourceInfo = l.File.Info()
		for _, l := range append([]llb.Location{*l}, w.More...) {
			out.Range = append(out.Range, l.Range())
		}
	}
	return out
}
