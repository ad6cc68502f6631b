package explain

import (
	"fmt"
	"strings"
)

// Place is where a step stands, as its name says: of "[build 3/7] RUN make" the
// stage "build", the number "3" and of "7", and the rest "RUN make". A name of
// another form has the rest alone.
type Place struct {
	Stage, Number, Of, Rest string
}

// PlaceOf reads the name of a step.
func PlaceOf(name string) Place {
	bracket, rest, ok := strings.Cut(strings.TrimPrefix(name, "["), "] ")
	if !ok || !strings.HasPrefix(name, "[") {
		return Place{Rest: name}
	}
	stage, numbers := "", bracket
	if i := strings.LastIndexByte(bracket, ' '); i >= 0 {
		stage, numbers = bracket[:i], bracket[i+1:]
	}
	number, of, ok := strings.Cut(numbers, "/")
	if !ok || strings.Trim(number+of, "0123456789") != "" {
		return Place{Stage: bracket, Rest: rest}
	}
	return Place{Stage: stage, Number: number, Of: of, Rest: rest}
}

// Instruction is the first word of what the step does.
func (p Place) Instruction() string {
	word, _, _ := strings.Cut(p.Rest, " ")
	return word
}

// Select narrows an explanation to the steps that a person means: by their place
// ("3/7", "build 3/7", with brackets or without), by their name or its beginning,
// or by the beginning of their digest. None is an error that says so.
func (e *Explanation) Select(step string) error {
	matches := []func(s *StepExplanation) bool{
		func(s *StepExplanation) bool { return s.Name == step },
		func(s *StepExplanation) bool {
			p := PlaceOf(s.Name)
			at := p.Number + "/" + p.Of
			bare := strings.TrimSuffix(strings.TrimPrefix(step, "["), "]")
			return p.Number != "" && (bare == at || bare == p.Stage+" "+at)
		},
		func(s *StepExplanation) bool {
			hex := strings.TrimPrefix(step, "sha256:")
			return len(hex) >= 4 && strings.HasPrefix(strings.TrimPrefix(s.Vertex, "sha256:"), hex)
		},
		func(s *StepExplanation) bool {
			return step != "" && (strings.HasPrefix(s.Name, step) || strings.HasPrefix(PlaceOf(s.Name).Rest, step))
		},
	}
	for _, match := range matches {
		var found []StepExplanation
		for i := range e.Steps {
			if match(&e.Steps[i]) {
				found = append(found, e.Steps[i])
			}
		}
		if len(found) > 0 {
			e.Steps = found
			return nil
		}
	}
	return fmt.Errorf("step %q of build %s: %w", step, e.Build.ID, ErrNotFound)
}

// Matches says whether a step's name is of a pattern, in which * is any text and ?
// any character, and everything else stands for itself.
func Matches(pattern, name string) bool {
	p, n := []rune(pattern), []rune(name)
	star, at := -1, 0 // the last star, and where in the name it was tried up to
	i, j := 0, 0
	for j < len(n) {
		switch {
		case i < len(p) && p[i] == '*':
			star, at = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == n[j]):
			i, j = i+1, j+1
		case star >= 0:
			at++
			i, j = star+1, at
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}
