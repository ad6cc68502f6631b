// Package explain says why steps of a build ran: an Explanation has, of each step,
// whether it was cached and by what, and of a step that was not, in which Reasons
// it differs from its nearest earlier run. It is what an engine tells, here or on
// another machine, and what people read (Text) or programs (its JSON). Package
// journal works it out.
package explain

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// ErrNotFound is wrapped by what says that a journal has no such build, or a build
// no such step.
var ErrNotFound = errors.New("not in the journal")

// Status is how a build ended.
type Status string

// The ways in which builds end.
const (
	Done        Status = "done"
	Failed      Status = "failed"
	Interrupted Status = "interrupted"
	// Previewed is a build that was only looked ahead at (--dry-run).
	Previewed Status = "dry-run"
)

// Explanation says what became of a build's steps, and why those ran that did. Its
// JSON is what `kiln explain --format json` prints; docs/caching.md describes it.
type Explanation struct {
	Build BuildInfo         `json:"build"`
	Steps []StepExplanation `json:"steps"`
}

// BuildInfo is what an explanation says of the build.
type BuildInfo struct {
	ID        string    `json:"id,omitempty"`
	Project   string    `json:"project,omitempty"`
	Started   time.Time `json:"started"`
	Completed time.Time `json:"completed"`
	Status    Status    `json:"status"`
	// Cached and Ran count the steps, sources left out; WouldRun those of a preview that
	// run in any case, and MightRun those of which that depends on what others come to.
	Cached   int `json:"cached"`
	Ran      int `json:"ran"`
	WouldRun int `json:"wouldRun,omitempty"`
	MightRun int `json:"mightRun,omitempty"`
}

// StepExplanation is what an explanation says of a step.
type StepExplanation struct {
	Name    string `json:"name"`
	Vertex  string `json:"vertex"`
	Kind    string `json:"kind"`
	Outcome string `json:"outcome"`
	Cached  bool   `json:"cached"`
	// Cache says what had the record: "local", the name of a remote cache, or
	// "another build"; By under which key: "definition" or "content"; Key is that key.
	Cache         string  `json:"cache,omitempty"`
	By            string  `json:"by,omitempty"`
	Key           string  `json:"key,omitempty"`
	DefinitionKey string  `json:"definitionKey,omitempty"`
	Pin           string  `json:"pin,omitempty"` // of a source: what it stood for
	Seconds       float64 `json:"seconds,omitempty"`
	Miss          *Miss   `json:"miss,omitempty"`
}

// Miss says why a step was not cached.
type Miss struct {
	// Nearest is the earlier run that the step is compared with; nil where there is none.
	Nearest *Nearest `json:"nearest,omitempty"`
	Reasons []Reason `json:"reasons"`
	// Lookup is what the caches answered.
	Lookup string `json:"lookup,omitempty"`
}

// Nearest is an earlier run of a step.
type Nearest struct {
	Build   string    `json:"build"`
	Started time.Time `json:"started"`
	Step    string    `json:"step"`
	// Cache is the remote cache that knew of it; empty is a run here.
	Cache string `json:"cache,omitempty"`
}

// Kind says in what a step differs from its nearest earlier run.
type Kind string

const (
	// Command is a command that changed: Words is the difference.
	Command Kind = "command"
	// Argument is a build argument (--build-arg) whose value changed: Name, Change.
	Argument Kind = "argument"
	// Environment is any other variable of the step's environment: Name, Change.
	Environment Kind = "environment"
	// Setting is something else that the step says: Name, Old, New.
	Setting Kind = "setting"
	// BaseImage is an image that moved, or that is another: Name, Old, New.
	BaseImage Kind = "base-image"
	// Source is a repository, a download or a layout that moved: Name, Old, New.
	Source Kind = "source"
	// Files are files that the step reads: Name says of what, Files which, More how
	// many there are besides those.
	Files Kind = "files"
	// Input is a step below, Step, that came out different or may have.
	Input Kind = "input"
	// Evicted is a record that was there and is not any more.
	Evicted Kind = "evicted"
	// NotFinished is an earlier run that failed or was interrupted.
	NotFinished Kind = "not-finished"
	// NeverSeen is a step that was not in any build that the journal has.
	NeverSeen Kind = "never-seen"
	// NoCache is a build that was asked to run the step whatever the cache holds.
	NoCache Kind = "no-cache"
	// Unknown is a difference in something that the journal does not have.
	Unknown Kind = "unknown"
)

// Reason is one thing in which a step differs from its nearest earlier run. Which
// fields are set, the Kind says.
type Reason struct {
	Kind   Kind   `json:"kind"`
	Name   string `json:"name,omitempty"`
	Change string `json:"change,omitempty"` // "changed", "new" or "gone"
	Old    string `json:"old,omitempty"`
	New    string `json:"new,omitempty"`
	Words  []Word `json:"words,omitempty"`
	Files  []File `json:"files,omitempty"`
	More   int    `json:"more,omitempty"`
	Step   string `json:"step,omitempty"`
}

// File is a file that changed.
type File struct {
	Path string `json:"path"`
	// Changes are "new", "gone", or what differs: "kind", "content", "target",
	// "mode", "owner", "xattrs" and "device".
	Changes []string `json:"changes"`
}

// Word is a run of words of a command, as one or both of two commands have it.
type Word struct {
	Change string `json:"change"` // "same", "gone" or "new"
	Text   string `json:"text"`
}

// MissedError says that a step ran which was to be cached (--fail-on-miss).
type MissedError struct{ Step, Pattern string }

// missedText tells a MissedError that has come over a wire.
const missedText = " was not cached, and --fail-on-miss "

func (e *MissedError) Error() string {
	return e.Step + missedText + strconv.Quote(e.Pattern) + " is for it"
}

// IsMissed says whether an error is a MissedError, also where it came from a daemon
// and only its text is left.
func IsMissed(err error) bool {
	return errors.As(err, new(*MissedError)) || err != nil && strings.Contains(err.Error(), missedText)
}
