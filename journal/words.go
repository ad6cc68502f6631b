package journal

import (
	"strings"

	"github.com/kiln-build/kiln/explain"
)

// maxWords bounds what is compared word by word: the time taken is the product of
// both lengths.
const maxWords = 2000

// compareWords gives the difference of two texts as runs of words that both have,
// or that one has. Spaces and line ends are alike.
func compareWords(old, new string) []explain.Word {
	a, b := strings.Fields(old), strings.Fields(new)
	var d difference
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		d.add("same", a[0])
		a, b = a[1:], b[1:]
	}
	end := 0
	for end < len(a) && end < len(b) && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	tail := a[len(a)-end:]
	a, b = a[:len(a)-end], b[:len(b)-end]
	if len(a) > maxWords || len(b) > maxWords {
		d.add("gone", a...)
		d.add("new", b...)
	} else {
		d.middle(a, b)
	}
	d.add("same", tail...)
	return d.words
}

// difference collects runs of words.
type difference struct{ words []explain.Word }

func (d *difference) add(change string, words ...string) {
	if len(words) == 0 {
		return
	}
	text := strings.Join(words, " ")
	if n := len(d.words); n > 0 && d.words[n-1].Change == change {
		d.words[n-1].Text += " " + text
		return
	}
	d.words = append(d.words, explain.Word{Change: change, Text: text})
}

// middle adds the difference of two lists by their longest common subsequence.
func (d *difference) middle(a, b []string) {
	// common[i][j] is its length for a[i:] and b[j:].
	common := make([][]int32, len(a)+1)
	for i := range common {
		common[i] = make([]int32, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			d.add("same", a[i])
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			d.add("gone", a[i])
			i++
		default:
			d.add("new", b[j])
			j++
		}
	}
}

// alike says what part of the words of two texts they have in common, from 0 to 1.
func alike(a, b string) float64 {
	words := map[string]int{}
	x, y := strings.Fields(a), strings.Fields(b)
	for _, w := range x {
		words[w]++
	}
	shared := 0
	for _, w := range y {
		if words[w] > 0 {
			words[w]--
			shared++
		}
	}
	return 2 * float64(shared) / float64(max(1, len(x)+len(y)))
}
