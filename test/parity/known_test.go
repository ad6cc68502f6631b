//go:build parity

package parity

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"sync"
)

// known is a difference that is expected, with its reason.
type known struct {
	cases  string // a pattern of path.Match over case names
	line   *regexp.Regexp
	reason string
	seen   bool
}

// knownList is the file of known differences. Safe for concurrent use.
type knownList struct {
	mu   sync.Mutex
	list []*known
}

// readKnown reads lines of "CASES | REGEXP | REASON".
func readKnown(file string) (*knownList, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	k := &knownList{}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, " | ")
		if len(fields) != 3 || fields[2] == "" {
			return nil, fmt.Errorf("%s:%d: want CASES | REGEXP | REASON", file, i+1)
		}
		re, err := regexp.Compile(fields[1])
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
		if _, err := path.Match(fields[0], ""); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
		k.list = append(k.list, &known{cases: fields[0], line: re, reason: fields[2]})
	}
	return k, nil
}

// find gives the known difference that a line of a case is, nil where it is none.
func (k *knownList) find(name, line string) *known {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.list {
		if ok, _ := path.Match(d.cases, name); ok && d.line.MatchString(line) {
			d.seen = true
			return d
		}
	}
	return nil
}

// stale gives the entries that no case showed.
func (k *knownList) stale() []*known {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*known
	for _, d := range k.list {
		if !d.seen {
			out = append(out, d)
		}
	}
	return out
}
