package proxy

import (
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// Record is what a step asked for, as far as its log had room.
type Record struct {
	Requests []Request `json:"requests,omitempty"`
	// Files are what was fetched in full, a URL once for each content.
	Files []File `json:"files,omitempty"`
	// Missed are the requests whose answers are no Files.
	Missed []Missed `json:"missed,omitempty"`
}

// Request is a request of a step's. Its URL has no names and passwords in it.
type Request struct {
	Method string `json:"method"`
	URL    string `json:"url"`
	Status int    `json:"status"`
	// Location is where the answer led on to, if anywhere.
	Location string `json:"location,omitempty"`
}

// File is what a step fetched from a URL.
type File struct {
	URL    string `json:"url"`
	Digest string `json:"digest"` // sha256:HEX of the body
}

// Missed is a request of which it is not known what the step got.
type Missed struct {
	Method string `json:"method,omitempty"`
	URL    string `json:"url,omitempty"`
	Reason string `json:"reason"` // in BuildKit's words, where it has one
}

// Reasons why a request is Missed.
const (
	reasonMethod  = "method_not_materializable"
	reasonPart    = "partial_response"
	reasonBody    = "body_read_failed"
	reasonStatus  = "unsuccessful_response"
	reasonSilence = "upstream_error"
	// ReasonTooMany is kiln's own: of what came after nothing is known.
	ReasonTooMany = "too_many_requests"
	// ReasonForgotten is kiln's own: the step ran on another machine, or long ago.
	ReasonForgotten = "not_recorded"
)

// Bounds of a log, which a hostile step may fill. An installation of some thousand
// packages fits.
const (
	maxEntries  = 20_000
	maxLogBytes = 2 << 20
)

// log takes a Record down.
type log struct {
	mu     sync.Mutex
	record Record
	size   int
	files  map[File]bool   // that are in the record
	misses map[Missed]bool // as well
	full   bool
}

// room says whether an entry with these texts still fits.
func (l *log) room(texts ...string) bool {
	for _, t := range texts {
		l.size += len(t)
	}
	if l.size > maxLogBytes || len(l.record.Requests)+len(l.record.Files)+len(l.record.Missed) >= maxEntries {
		if !l.full {
			l.full = true
			l.record.Missed = append(l.record.Missed, Missed{Reason: ReasonTooMany})
		}
		return false
	}
	return true
}

func (l *log) request(r Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.room(r.Method, r.URL, r.Location) {
		l.record.Requests = append(l.record.Requests, r)
	}
}

func (l *log) file(f File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.files[f] || !l.room(f.URL, f.Digest) {
		return
	}
	if l.files == nil {
		l.files = map[File]bool{}
	}
	l.files[f] = true
	l.record.Files = append(l.record.Files, f)
}

func (l *log) missed(m Missed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.misses[m] || !l.room(m.Method, m.URL) {
		return
	}
	if l.misses == nil {
		l.misses = map[Missed]bool{}
	}
	l.misses[m] = true
	l.record.Missed = append(l.record.Missed, m)
}

// all gives what was taken down, with a file for each URL too that led to one.
func (l *log) all() Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := Record{Requests: slices.Clone(l.record.Requests), Files: slices.Clone(l.record.Files), Missed: slices.Clone(l.record.Missed)}
	known, leads := map[string]string{}, map[string]string{}
	for _, f := range r.Files {
		known[f.URL] = f.Digest
	}
	for _, q := range r.Requests {
		if q.Location != "" {
			leads[q.URL] = q.Location
		}
	}
	for _, q := range r.Requests {
		from := q.URL
		at := leads[from]
		for range maxRedirects {
			if known[at] != "" || at == "" {
				break
			}
			at = leads[at]
		}
		if known[from] == "" && known[at] != "" {
			known[from] = known[at]
			r.Files = append(r.Files, File{URL: from, Digest: known[at]})
		}
	}
	return r
}

// maxRedirects is how far one URL leads to another: clients follow no more.
const maxRedirects = 50

// Print says what was asked for, in BuildKit's form.
func (r *Record) Print(w io.Writer) {
	if len(r.Requests) == 0 {
		return
	}
	var b strings.Builder
	b.WriteString("proxy network requests:\n")
	for _, q := range r.Requests {
		fmt.Fprintf(&b, "- %s %s -> %d\n", q.Method, q.URL, q.Status)
	}
	io.WriteString(w, b.String()) // whoever watches may be gone
}

// public gives a URL in its one form, for policies and for people: without user and
// password, without the port that its scheme has anyway, and with a host that has no
// dot at its end.
func public(u *url.URL) string {
	out := *u
	if out.User != nil {
		out.User = url.UserPassword("xxxxx", "xxxxx")
	}
	port := out.Port()
	out.Host = strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(out.Host), ":"+port), ".")
	if port != "" && !(out.Scheme == "http" && port == "80") && !(out.Scheme == "https" && port == "443") {
		out.Host += ":" + port
	}
	return out.String()
}
