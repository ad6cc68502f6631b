package fuzz

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReferenceExamples compiles every example of BuildKit's Dockerfile reference as it
// stands there, by both compilers. One that is a part of a file gets a FROM.
func TestReferenceExamples(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/buildkit").Output()
	if err != nil {
		t.Fatalf("looking for BuildKit's module: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "frontend/dockerfile/docs/reference.md"))
	if err != nil {
		t.Fatal(err)
	}
	examples := examplesOf(string(text))
	if len(examples) < 120 {
		t.Fatalf("the reference has %d examples, of more than 120", len(examples))
	}
	works := 0
	for _, e := range examples {
		ours := byKiln(t.Context(), e)
		if meant(ours) || asksOutside(e) {
			continue
		}
		if theirs := byBuildKit(t.Context(), e); (ours == nil) != (theirs == nil) {
			t.Errorf("the compilers disagree\nkiln:     %v\nBuildKit: %v\n%s", ours, theirs, e)
		}
		if ours == nil {
			works++
		}
	}
	if works < 80 {
		t.Errorf("of %d examples %d compile", len(examples), works)
	}
}

var (
	fence = regexp.MustCompile("(?m)^([ >]*)```[Dd]ockerfile$")
	from  = regexp.MustCompile(`(?im)^FROM `)
)

// examplesOf gives the blocks of Dockerfile text of a page.
func examplesOf(page string) []string {
	var out []string
	for _, at := range fence.FindAllStringSubmatchIndex(page, -1) {
		indent := page[at[2]:at[3]]
		block, _, _ := strings.Cut(page[at[1]+1:], "```")
		var text strings.Builder
		for line := range strings.Lines(block) {
			line = strings.TrimPrefix(strings.TrimRight(line, "\n"), indent)
			text.WriteString(strings.TrimPrefix(line, strings.TrimRight(indent, " ")) + "\n")
		}
		example := text.String()
		if !from.MatchString(example) {
			example = "FROM base\n" + example
		}
		out = append(out, example)
	}
	return out
}
