// Package source brings in what builds start from. Each kind of source has files
// of its own: image ("docker-image://…") is what registries hold, layout
// ("oci-layout://…") an image in a folder, blob ("docker-image+blob://…",
// "oci-layout+blob://…") one blob of either as a file, http one file by its URL, git
// the files of a commit. Folders of the user's own are in package source/local.
//
// A source is resolved first, which gives its pin: the one name under which it
// stays the same, a digest. Then it becomes a chain. The layers of an image's
// chain are known from its config, so making the chain fetches none of them; they
// are fetched and unpacked when somebody reads their files (Images.Unpack), or
// copied as they are to where an image goes (Images.Blob).
package source

import (
	"time"

	"github.com/kiln-build/kiln/solver"
)

// Progress takes how far a part of a source's work is; nil says nothing.
type Progress func(solver.Progress)

// progressEvery is how often a transfer is reported: terminals show no more.
const progressEvery = 100 * time.Millisecond

// meter reports one transfer. It is used by one goroutine.
type meter struct {
	report Progress
	state  solver.Progress
	last   time.Time
}

func newMeter(report Progress, id, action string, current, total int64) *meter {
	m := &meter{report: report}
	now := time.Now()
	m.state = solver.Progress{ID: id, Action: action, Current: current, Total: total, Started: now}
	m.send(now)
	return m
}

// add counts n more bytes.
func (m *meter) add(n int) {
	if m.report == nil {
		return
	}
	m.state.Current += int64(n)
	if now := time.Now(); now.Sub(m.last) >= progressEvery {
		m.send(now)
	}
}

// done reports the end.
func (m *meter) done() {
	now := time.Now()
	m.state.Completed = now
	m.send(now)
}

func (m *meter) send(now time.Time) {
	if m.report != nil {
		m.last = now
		m.report(m.state)
	}
}

// Transfer reports what comes of something that may not have to come at all. It is
// used by one goroutine.
type Transfer struct {
	report     Progress
	id, action string
	meter      *meter // nil while nothing has come
}

// NewTransfer makes the report of a transfer, called id, which BuildKit's clients show.
func NewTransfer(report Progress, id, action string) *Transfer {
	return &Transfer{report: report, id: id, action: action}
}

// Add counts n more bytes.
func (t *Transfer) Add(n int) {
	if t.meter == nil {
		t.meter = newMeter(t.report, t.id, t.action, 0, 0)
	}
	t.meter.add(n)
}

// Done says that no more comes.
func (t *Transfer) Done() {
	if t.meter != nil {
		t.meter.done()
	}
}
