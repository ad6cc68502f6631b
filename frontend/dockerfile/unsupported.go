package dockerfile

import "strings"

// UnsupportedError says what a client asks for that this frontend has not: an answer
// to a question, or a capability. It carries the name for clients that look for it.
type UnsupportedError struct {
	Request    string // one of these is set
	Capability string
}

func (e *UnsupportedError) Error() string {
	if e.Capability != "" {
		return "unsupported frontend capability " + e.Capability
	}
	return "unsupported request " + e.Request
}

// Detail gives the name as BuildKit's clients have it.
func (e *UnsupportedError) Detail() (kind string, value any) {
	if e.Capability != "" {
		return "errdefs.FrontendCap+json", named{e.Capability}
	}
	return "errdefs.Subrequest+json", named{e.Request}
}

type named struct {
	Name string `json:"name"`
}

// capabilities are those that clients may require by the option "frontend.caps".
var capabilities = map[string]bool{
	"moby.buildkit.frontend.inputs":         true,
	"moby.buildkit.frontend.subrequests":    true,
	"moby.buildkit.frontend.contexts":       true,
	"moby.buildkit.frontend.gitquerystring": true,
	"moby.buildkit.frontend.contexts.zstd":  true,
}

// checkCapabilities gives an error where a client requires a capability that is not
// there. elsewhere says that another frontend may have it, if the Dockerfile names one.
func checkCapabilities(required string) (elsewhere bool, err error) {
	if required == "" {
		return false, nil
	}
	for c := range strings.SplitSeq(required, ",") {
		name, more, _ := strings.Cut(c, "+")
		if capabilities[name] {
			continue
		}
		err = &UnsupportedError{Capability: name}
		if !strings.Contains(more, "forward") {
			return false, err
		}
		elsewhere = true
	}
	return elsewhere, err
}
