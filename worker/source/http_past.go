package source

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/cache/blob"
)

// httpMemory is what a URL gave when it was asked.
type httpMemory struct {
	Pin      httpPin `json:"pin"`
	Size     int64   `json:"size"`
	ETag     string  `json:"etag,omitempty"`
	Modified string  `json:"modified,omitempty"`
}

// httpPast is what a URL gave, the newest first: it may give the same again.
type httpPast []httpMemory

// The tags are in a header of each request, and servers take some kilobytes of those.
const (
	maxPast = 8
	maxTag  = 256 // bytes; a longer one is no tag
)

// tagOf gives the tag of an answer; empty is none.
func tagOf(resp *http.Response) string {
	if tag := resp.Header.Get("ETag"); len(tag) <= maxTag {
		return tag
	}
	return ""
}

// recall gives what a URL gave, as far as it is here.
func (s *HTTP) recall(h *httpOp) httpPast {
	v, ok := s.known.Get(h.key())
	var all httpPast
	if !ok || json.Unmarshal(v, &all) != nil {
		return nil
	}
	past := make(httpPast, 0, len(all))
	for _, m := range all {
		if s.cache.Blobs().Has(m.Pin.Digest) {
			past = append(past, m)
		}
	}
	return past
}

// gave says whether a URL gave these bytes, whatever form it was asked for.
func (s *HTTP) gave(h *httpOp, d blob.Digest) bool {
	plain := *h
	plain.checked = false
	same := func(m httpMemory) bool { return m.Pin.Digest == d }
	return slices.ContainsFunc(s.recall(h), same) || slices.ContainsFunc(s.recall(&plain), same)
}

// remember notes what a URL gave now. Losing it costs a download.
func (s *HTTP) remember(h *httpOp, past httpPast, now httpMemory) {
	if strings.HasPrefix(h.url, "http://"+SessionHost+"/") {
		return // a name that means something to one build only
	}
	next := httpPast{now}
	for _, m := range past {
		if len(next) < maxPast && weak(m.ETag) != weak(now.ETag) {
			next = append(next, m)
		}
	}
	if v, err := json.Marshal(next); err == nil {
		_ = s.known.Put(h.key(), v)
	}
}

// tagged gives those that have a tag.
func (p httpPast) tagged() (out httpPast) {
	for _, m := range p {
		if m.ETag != "" {
			out = append(out, m)
		}
	}
	return out
}

// tags gives the tags of what the URL gave, as a header lists them.
func (p httpPast) tags() string {
	var tags []string
	for _, m := range p.tagged() {
		tags = append(tags, m.ETag)
	}
	return strings.Join(tags, ", ")
}

// ask makes a request ask for what is none of these.
func (p httpPast) ask(req *http.Request) {
	if tags := p.tags(); tags != "" {
		req.Header.Set("If-None-Match", tags)
	} else if len(p) > 0 && p[0].Modified != "" {
		req.Header.Set("If-Modified-Since", p[0].Modified)
	}
}

// named gives the one of these that an answer to ask says the URL has now.
func (p httpPast) named(resp *http.Response) (httpMemory, bool) {
	tag := tagOf(resp)
	for _, m := range p {
		if tag != "" && weak(m.ETag) == weak(tag) {
			return m, true
		}
	}
	if resp.StatusCode != http.StatusNotModified {
		return httpMemory{}, false
	}
	// It is the one that was asked about, where that is clear.
	asked := p.tagged()
	if len(asked) == 0 && len(p) > 0 && p[0].Modified != "" {
		asked = p[:1]
	}
	if len(asked) != 1 {
		return httpMemory{}, false
	}
	m := asked[0]
	if tag != "" {
		m.ETag = tag
	}
	return m, true
}

// weak gives a tag without the mark that equal bytes are not promised for it: a file
// that means the same is the same to a build.
func weak(tag string) string { return strings.TrimPrefix(tag, "W/") }
