package daemon

import (
	"cmp"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln"
	"github.com/kiln-build/kiln/daemon/gateway"
	"github.com/kiln-build/kiln/daemon/history"
	"github.com/kiln-build/kiln/daemon/internal/fault"
	"github.com/kiln-build/kiln/exporter/attest"
	"github.com/kiln-build/kiln/exporter/provenance"
)

const (
	// errorType is the media type of a status with all its details.
	errorType = "application/vnd.googeapis.google.rpc.status+proto"
	// predicateNote is where a descriptor says which type of predicate it is of.
	predicateNote = "in-toto.io/predicate-type"
	// maxSpans bounds how many steps a trace tells of.
	maxSpans = 50_000
)

// steps are what the record of a build says of its steps. The zero value is ready for use.
type steps struct {
	seen     map[digest.Digest]progress
	warnings int
	spans    []span
}

// progress is how far a step is.
type progress struct{ completed, cached bool }

// span is a step from its start to its end. A step may have several.
type span struct {
	step           *client.Vertex
	started, ended time.Time
}

func (c *steps) add(s *client.SolveStatus) {
	if c.seen == nil {
		c.seen = map[digest.Digest]progress{}
	}
	for _, v := range s.Vertexes {
		p := c.seen[v.Digest]
		p.completed, p.cached = p.completed || v.Completed != nil, p.cached || v.Cached
		c.seen[v.Digest] = p
		if v.Started != nil && v.Completed != nil && len(c.spans) < maxSpans {
			c.spans = append(c.spans, span{v, *v.Started, *v.Completed})
		}
	}
	c.warnings += len(s.Warnings)
}

// count writes the numbers into a record.
func (c *steps) count(r *controlapi.BuildHistoryRecord) {
	r.NumTotalSteps, r.NumWarnings = int32(len(c.seen)), int32(c.warnings)
	r.NumCompletedSteps, r.NumCachedSteps = 0, 0
	for _, p := range c.seen {
		if p.completed {
			r.NumCompletedSteps++
		}
		if p.cached {
			r.NumCachedSteps++
		}
	}
}

// namedImports keeps of the caches that a build reads, as clients list them in JSON, what
// they are called by: other attributes may be keys and tokens, and a record is for all
// clients. A list that cannot be read is empty.
func namedImports(list string) string {
	var imports []*controlapi.CacheOptionsEntry
	if err := json.Unmarshal([]byte(list), &imports); err != nil {
		return ""
	}
	for _, i := range imports {
		maps.DeleteFunc(i.GetAttrs(), func(name, _ string) bool {
			return !slices.Contains([]string{"ref", "name", "scope", "bucket", "region", "src"}, name)
		})
	}
	named, err := json.Marshal(imports)
	if err != nil {
		return ""
	}
	return string(named)
}

// newRecord begins the record of a build. Names and passwords in URLs are left out, and the
// keys of caches.
func newRecord(req *controlapi.SolveRequest, now time.Time) *controlapi.BuildHistoryRecord {
	attrs := make(map[string]string, len(req.FrontendAttrs))
	for k, v := range req.FrontendAttrs {
		if k == gateway.CacheImports {
			v = namedImports(v)
		}
		attrs[k] = provenance.Redact(v)
	}
	return &controlapi.BuildHistoryRecord{
		Ref: req.Ref, Frontend: req.Frontend, FrontendAttrs: attrs,
		Exporters: slices.Clone(req.Exporters), CreatedAt: timestamppb.New(now),
	}
}

// finish completes what is known of a build when it ends.
func (n *build) finish(now time.Time, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.record
	r.CompletedAt = timestamppb.New(now)
	n.steps.count(r)
	r.Generation++
	if err != nil {
		r.Error = fault.Status(err).Proto()
	}
	n.done = true
	close(n.news)
	n.news = make(chan struct{})
}

// record writes the record of a build that has ended into the history. Its trace
// follows where its client may have something to add to it.
func (j *builds) record(n *build, t *tracing, result *kiln.Result, failed error) (*controlapi.BuildHistoryRecord, error) {
	d, err := j.kept.Draft()
	if err != nil {
		return nil, err
	}
	w := recording{d, n.snapshot()}
	t.record = w.BuildHistoryRecord
	steps := []func() error{func() error { return w.logs(n) }}
	if t.claim == nil {
		steps = append(steps, func() error { return w.trace(t) })
	}
	if failed != nil {
		steps = append(steps, w.failure)
	} else {
		w.ExporterResponse = maps.Clone(result.Metadata)
		steps = append(steps,
			func() error { return w.documents(result.Documents) },
			func() error { return w.provenances(result.Provenance) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			d.Discard()
			return nil, err
		}
	}
	return w.BuildHistoryRecord, d.Commit(w.BuildHistoryRecord)
}

// recording is a record that is being written.
type recording struct {
	draft *history.Draft
	*controlapi.BuildHistoryRecord
}

// logs attaches the status stream.
func (w recording) logs(n *build) (err error) {
	all := n.after(0)
	w.Logs, err = w.draft.Attach(history.LogsType, func(out io.Writer) error {
		return n.send(all, func(m *controlapi.StatusResponse) error { return history.WriteStatus(out, m) })
	})
	return err
}

// trace attaches the trace.
func (w recording) trace(t *tracing) (err error) {
	w.Trace, err = w.draft.Attach(traceType, t.write)
	return err
}

// failure attaches the error in full, and leaves its details out of the record.
func (w recording) failure() (err error) {
	data, err := proto.Marshal(w.Error)
	if err != nil {
		return err
	}
	w.Error.Details = nil
	w.ExternalError, err = w.draft.AttachBytes(errorType, data)
	return err
}

// documents attaches the manifests and configs that exporters made. The record
// names the first of each exporter's; the others are named by that.
func (w recording) documents(list []kiln.Document) error {
	for _, doc := range list {
		desc, err := w.draft.AttachBytes(doc.MediaType, doc.Data)
		if err != nil {
			return err
		}
		if !doc.Root {
			continue
		}
		if w.Result == nil {
			w.Result = &controlapi.BuildResultInfo{ResultDeprecated: desc, Results: map[int64]*controlapi.Descriptor{}}
		}
		w.Result.Results[int64(doc.Output)] = desc
	}
	return nil
}

// provenances attaches what each image was built from.
func (w recording) provenances(list []kiln.Provenance) error {
	for _, p := range list {
		data, kind, err := p.Document()
		if err != nil {
			return err
		}
		desc, err := w.draft.AttachBytes(attest.MediaType, data)
		if err != nil {
			return err
		}
		desc.Annotations = map[string]string{predicateNote: kind}
		if !p.Multi {
			w.Result = cmp.Or(w.Result, &controlapi.BuildResultInfo{})
			w.Result.Attestations = append(w.Result.Attestations, desc)
			continue
		}
		if w.Results == nil {
			w.Results = map[string]*controlapi.BuildResultInfo{}
		}
		w.Results[p.ID] = &controlapi.BuildResultInfo{Attestations: []*controlapi.Descriptor{desc}}
	}
	return nil
}

func digestOf(d *controlapi.Descriptor) digest.Digest { return digest.Digest(d.Digest) }
