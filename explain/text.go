package explain

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
)

// Text writes an explanation for people: of every step but the sources whether it
// was cached, and why it was not.
func (e *Explanation) Text(w io.Writer) error {
	p := printer{w: w}
	p.head(&e.Build)
	sources := true
	for i := range e.Steps {
		sources = sources && e.Steps[i].Kind == "source"
	}
	for i := range e.Steps {
		if s := &e.Steps[i]; s.Kind != "source" || sources {
			p.step(s)
		}
	}
	return p.err
}

// printer writes lines until one fails.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) linef(indent int, format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, strings.Repeat(" ", indent)+strings.Map(printable, fmt.Sprintf(format, args...)))
	}
}

// printable keeps a line one line, and the terminal as it is: names and paths may come
// from another machine.
func printable(r rune) rune {
	if unicode.IsControl(r) {
		return ' '
	}
	return r
}

func (p *printer) head(b *BuildInfo) {
	what := "Build " + short(b.ID)
	if b.Status == Previewed {
		what = "A build"
	}
	if b.Project != "" {
		what += " of " + b.Project
	}
	switch b.Status {
	case Previewed:
		might := ""
		if b.MightRun > 0 {
			might = fmt.Sprintf(", %d might", b.MightRun)
		}
		p.linef(0, "%s: %d cached, %d would run%s", what, b.Cached, b.WouldRun, might)
	case Done:
		p.linef(0, "%s, %s: %d cached, %d ran", what, b.Started.Local().Format(time.DateTime), b.Cached, b.Ran)
	default:
		p.linef(0, "%s, %s: %s; %d cached, %d ran", what, b.Started.Local().Format(time.DateTime), b.Status, b.Cached, b.Ran)
	}
}

// shortID is how much of a build's name is shown; it is enough to find it again.
const shortID = 10

func short(id string) string { return id[:min(shortID, len(id))] }

// outcomes are the words before a step.
var outcomes = map[string]string{
	"cached": "CACHED", "ran": "RAN", "failed": "FAILED", "stopped": "STOPPED", "not-needed": "CACHED", "not-run": "NOT RUN",
	"would-run": "WOULD RUN", "might-run": "MIGHT RUN",
}

// margin is where what is said of a step begins.
const margin = 10

func (p *printer) step(s *StepExplanation) {
	word := outcomes[s.Outcome]
	if s.Kind == "source" {
		word = "SOURCE"
	}
	took := ""
	if s.Seconds >= 0.05 {
		took = fmt.Sprintf(" (%.1fs)", s.Seconds)
	}
	p.linef(0, "%-*s%s%s", margin, word, s.Name, took)
	switch {
	case s.Kind == "source":
		p.linef(margin, "stands for %s", s.Pin)
	case s.Outcome == "not-needed":
		p.linef(margin, "nothing that ran reads it")
	case s.Cache == "this build" || s.Cache == "another build":
		p.linef(margin, "%s ran it", s.Cache)
	case s.Cached:
		p.linef(margin, "%s cache, by its %s key %.12s", s.Cache, s.By, s.Key)
	}
	if s.Miss != nil {
		p.miss(s)
	}
}

func (p *printer) miss(s *StepExplanation) {
	m := s.Miss
	if n := m.Nearest; n != nil {
		where := ""
		if n.Cache != "" {
			where = ", which " + n.Cache + " knows of"
		}
		p.linef(margin, "compared with build %s of %s%s:", short(n.Build), n.Started.Local().Format(time.DateTime), where)
		if PlaceOf(n.Step) != PlaceOf(s.Name) {
			p.linef(margin+2, "it was %s there", n.Step)
		}
	}
	for i := range m.Reasons {
		p.reason(s, &m.Reasons[i])
	}
}

// plain are the reasons that have one line and no fields of their own.
var plain = map[Kind]string{
	Evicted:   "its record was there and is not any more: it was evicted",
	NeverSeen: "it was never seen here",
	NoCache:   "the build asked to run it (--no-cache)",
	Unknown:   "it differs in something that the journal does not have",
}

func (p *printer) reason(s *StepExplanation, r *Reason) {
	const at = margin + 2
	switch r.Kind {
	case Command:
		p.linef(at, "the command changed: %s", marked(r.Words))
	case Argument:
		p.linef(at, "the build argument %s %s", r.Name, changed(r.Change))
	case Environment:
		p.linef(at, "the environment variable %s %s", r.Name, changed(r.Change))
	case Setting:
		if r.Change != "" {
			p.linef(at, "the %s %s", r.Name, changed(r.Change))
		} else {
			p.linef(at, "the %s changed: %s, and was %s", r.Name, orNone(r.New), orNone(r.Old))
		}
	case BaseImage, Source:
		what := "source"
		if r.Kind == BaseImage {
			what = "image"
		}
		if r.Change == "another" {
			p.linef(at, "the %s is another: %s, and was %s", what, r.New, r.Old)
		} else {
			p.linef(at, "the %s %s moved: to %s, from %s", what, r.Name, r.New, r.Old)
		}
	case Files:
		p.files(r)
	case Input:
		p.input(s, r)
	case NotFinished:
		p.linef(at, "it did not come to its end there (%s)", r.Old)
	default:
		p.linef(at, "%s", plain[r.Kind])
	}
}

func (p *printer) files(r *Reason) {
	const at = margin + 2
	if len(r.Files) == 0 {
		p.linef(at, "files of %s changed; which, is not known any more", r.Name)
		return
	}
	p.linef(at, "files of %s changed:", r.Name)
	for _, f := range r.Files {
		p.linef(at+2, "%-8s %s", strings.Join(f.Changes, ","), f.Path)
	}
	if r.More > 0 {
		p.linef(at+2, "and %d more", r.More)
	}
}

func (p *printer) input(s *StepExplanation, r *Reason) {
	const at = margin + 2
	switch {
	case r.Old != "":
		p.linef(at, "it reads %s, and read %s", r.Step, r.Old)
	case s.Outcome == "might-run":
		p.linef(at, "it reads %s, which may come out different", r.Step)
	default:
		p.linef(at, "it reads %s, which is different now", r.Step)
	}
}

// changed says what became of a thing with a value.
func changed(change string) string {
	switch change {
	case "new":
		return "is new"
	case "gone":
		return "is gone"
	}
	return "changed"
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// marked writes a difference with [-what is gone-] and {+what is new+}.
func marked(words []Word) string {
	out := make([]string, len(words))
	for i, w := range words {
		switch w.Change {
		case "gone":
			out[i] = "[-" + w.Text + "-]"
		case "new":
			out[i] = "{+" + w.Text + "+}"
		default:
			out[i] = w.Text
		}
	}
	return strings.Join(out, " ")
}
