package parity

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTableHasCases holds the table of docs/dockerfile.md against the cases: what it
// says is there is shown by those that it names, and every folder of cases is named.
func TestTableHasCases(t *testing.T) {
	data, err := os.ReadFile("../../docs/dockerfile.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	rows := 0
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if !strings.HasPrefix(line, "|") || len(cells) != 6 || cells[2] == "kiln" {
			continue
		}
		rows++
		patterns := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[5], -1)
		if len(patterns) == 0 {
			t.Errorf("no case shows %s %s", cells[0], cells[1])
		}
		for _, p := range patterns {
			found, err := filepath.Glob(filepath.Join("cases", p[1]+".txtar"))
			if err != nil || len(found) == 0 {
				t.Errorf("%s %s: no case is called %s", cells[0], cells[1], p[1])
			}
			named[path.Dir(p[1])] = true
		}
	}
	if rows < 50 {
		t.Errorf("the table has %d rows", rows)
	}
	folders, err := filepath.Glob("cases/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range folders {
		switch name := filepath.Base(f); name {
		case "project", "sandbox", "output": // of builds, not of the language
		default:
			if !named[name] {
				t.Errorf("no row of the table names cases/%s", name)
			}
		}
	}
}
