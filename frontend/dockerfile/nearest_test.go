package dockerfile

import "testing"

func TestNearestInstruction(t *testing.T) {
	for _, tt := range []struct{ word, want string }{
		{"RNU", "RUN"},               // letters that changed places are one edit; ENV is two away
		{"FORM", "FROM"},             // the same at the start
		{"ENTRYPIONT", "ENTRYPOINT"}, // and in the middle
		{"copyy", "copy"},            // in the case of the word
		{"Runn", "RUN"},              // mixed case counts as upper case
		{"EXPSE", "EXPOSE"},          // a letter left out
		{"HELTHCHEK", "HEALTHCHECK"}, // two of them
		{"RUN", ""},                  // known: nothing to suggest
		{"FETCH", ""},                // near to none
		{"", ""},                     // nothing at all
	} {
		if got, _ := nearestInstruction(tt.word); got != tt.want {
			t.Errorf("nearestInstruction(%q) = %q, want %q", tt.word, got, tt.want)
		}
	}
}

func TestNearestDoesNotDependOnOrder(t *testing.T) {
	for _, known := range [][]string{{"ab", "ac", "ad"}, {"ad", "ac", "ab"}} {
		if got, _ := nearest("ax", known); got != "ab" {
			t.Errorf("nearest of %v = %q, want ab", known, got)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "ab", 2}, {"ab", "", 2}, {"ab", "ba", 1}, {"abc", "acb", 1},
		{"abcd", "badc", 2}, {"kitten", "sitting", 3}, {"a", "abcdef", 5},
	} {
		if got := editDistance(tt.a, tt.b); got != tt.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
