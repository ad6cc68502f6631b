package source

import (
	"encoding/json"
	"strings"
)

// PinDigest gives the digest that a pin of a source names: of an image, or of the
// bytes of a file; for a git source the name of the commit.
func PinDigest(identifier, pin string) string {
	if !strings.HasPrefix(identifier, "http://") && !strings.HasPrefix(identifier, "https://") {
		return pin
	}
	var p httpPin
	if json.Unmarshal([]byte(pin), &p) != nil {
		return ""
	}
	return p.Digest.String()
}
