package provenance

import (
	"regexp"
	"strings"
)

// mask stands for what must not be seen.
const mask = "xxxxx"

// userInfo is the name and password in a URL. A password may hold an "@" though
// it should not: the last one before the path counts.
var userInfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)([^/?#\s"']*)@`)

// Redact replaces the names and passwords in all URLs of a text.
func Redact(s string) string {
	if !strings.Contains(s, "://") {
		return s
	}
	return userInfo.ReplaceAllStringFunc(s, func(m string) string {
		at := strings.Index(m, "://") + len("://")
		if strings.Contains(m[at:], ":") {
			return m[:at] + mask + ":" + mask + "@"
		}
		return m[:at] + mask + "@"
	})
}
