package kiln

import (
	"sync"

	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/worker"
	"github.com/kiln-build/kiln/worker/usage"
)

// maxMeasured bounds the samples that a build keeps of its steps, a few hundred bytes
// each: of the steps beyond it is not known what they used.
const maxMeasured = 20_000

// measured is what a build, and the machine meanwhile, has used. It is safe for
// concurrent use.
type measured struct {
	system *usage.Series[*usage.System]

	mu    sync.Mutex // guards what is below
	steps map[llb.Digest]*usage.Samples
	count int
}

// measure begins to measure a build where somebody wants to know: who asks for it with
// the provenance (capture-usage), or who keeps a record. It gives what the build's
// session is told by; nil where nobody does.
func (b *build) measure(r *Request, attrs map[string]string) *worker.Usage {
	a, _ := parseAttests(attrs) // its error is told when they are parsed to be used
	asked := a.provenance != nil && a.provenance.Usage
	if !asked && !r.Record {
		return nil
	}
	b.used = &measured{
		system: usage.Begin(usage.Interval, usage.SystemBound, usage.ReadSystem),
		steps:  map[llb.Digest]*usage.Samples{},
	}
	// A record is not worth that a step takes longer.
	return &worker.Usage{Fully: asked && !a.provenance.Min, Used: b.used.note}
}

// note keeps what a step has used.
func (m *measured) note(v llb.Digest, s *usage.Samples) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.count += len(s.Samples); m.count <= maxMeasured {
		m.steps[v] = s
	}
}

// of gives what a step has used; nil is not known.
func (m *measured) of(v llb.Digest) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.steps[v]; ok {
		return s
	}
	return nil
}

// end takes no more samples, but for one whenever somebody reads them.
func (m *measured) end() {
	if m != nil {
		m.system.End()
	}
}
