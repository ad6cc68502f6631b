package provenance

import (
	"fmt"
	"strings"
)

// IncompleteError says that not all of an image's materials have names and digests by
// which others could find them.
type IncompleteError struct {
	Locals []string // folders of the client's
	Missed []Missed // requests of steps
}

func (c *Capture) incomplete() error { return &IncompleteError{Locals: c.Locals, Missed: c.Missed} }

func (e *IncompleteError) Error() string {
	var b strings.Builder
	b.WriteString("provenance materials are incomplete")
	if len(e.Locals) > 0 {
		fmt.Fprintf(&b, "\nlocal folders: %s", strings.Join(e.Locals, ", "))
	}
	for _, m := range e.Missed {
		fmt.Fprintf(&b, "\n%s: %s", m.Name, strings.Join(strings.Fields(m.Method+" "+m.URI+" "+m.Reason), " "))
	}
	return b.String()
}

// Detail gives the error as BuildKit's clients have it.
func (e *IncompleteError) Detail() (kind string, value any) {
	type material struct {
		Op     string `json:"op,omitempty"`
		Name   string `json:"name,omitempty"`
		Method string `json:"method,omitempty"`
		URI    string `json:"uri,omitempty"`
		Reason string `json:"reason,omitempty"`
	}
	var list []material
	for _, l := range e.Locals {
		list = append(list, material{Name: l, Reason: "local_source"})
	}
	for _, m := range e.Missed {
		list = append(list, material(m))
	}
	return "errdefs.ProvenanceMaterialsIncomplete+json", struct {
		Incomplete []material `json:"incomplete,omitempty"`
	}{list}
}
