//go:build conformance

package conformance

import (
	"fmt"
	"os"
	"strings"
)

// known is a case that is expected to fail, with its reason.
type known struct {
	reason string
	seen   bool
}

// readKnown reads lines of "CASE | REASON".
func readKnown(file string) (map[string]*known, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	list := map[string]*known{}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, ok := strings.Cut(line, " | ")
		name, reason = strings.TrimSpace(name), strings.TrimSpace(reason)
		if !ok || name == "" || reason == "" || list[name] != nil {
			return nil, fmt.Errorf("%s:%d: want CASE | REASON, each case once", file, i+1)
		}
		list[name] = &known{reason: reason}
	}
	return list, nil
}
