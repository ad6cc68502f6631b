package dockerfile

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
)

// nearestEdits is how many edits a word may be away from what it was meant to be.
const nearestEdits = 2

// nearest gives the one of known that word was most likely meant to be, if one is
// near. It is the same one in every run, whatever the order of known.
func nearest(word string, known []string) (string, bool) {
	best, edits := "", nearestEdits+1
	for _, k := range slices.Sorted(slices.Values(known)) {
		if k == word {
			return "", false // the error is about something else
		}
		if d := editDistance(word, k); d < edits {
			best, edits = k, d
		}
	}
	return best, best != ""
}

// nearestInstruction is nearest among the instructions, in the case of word. The
// parser's own guess counts letters that changed places twice, and so takes RNU for
// ENV as soon as for RUN.
func nearestInstruction(word string) (string, bool) {
	match, ok := nearest(strings.ToLower(word), slices.Collect(maps.Keys(command.Commands)))
	if ok && strings.ToLower(word) != word {
		match = strings.ToUpper(match)
	}
	return match, ok
}

// editDistance counts the edits between two words: a letter that was left out, put
// in or changed, or two neighbours that changed places.
func editDistance(a, b string) int {
	if d := len(a) - len(b); d > nearestEdits || -d > nearestEdits {
		return max(d, -d) // they are that many edits apart at least
	}
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row := rows[(i-1)%3], rows[i%3], rows[(i+1)%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			changed := 1
			if a[i-1] == b[j-1] {
				changed = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+changed)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return rows[(len(a)+1)%3][len(b)]
}
