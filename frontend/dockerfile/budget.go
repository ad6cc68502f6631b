package dockerfile

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// What compiling one Dockerfile may use. Substitution can double a value with
// every line, and so a short Dockerfile could ask for any amount of memory.
const (
	maxSubstituted = 64 << 20  // bytes of values put into words, all together
	maxReplaced    = 256 << 20 // bytes that one ${name/pattern/text} could come to
	maxStepBytes   = 512 << 20 // bytes of arguments and environments of all steps
	maxPorts       = 1 << 20   // ports of all EXPOSE; a range may hold 65,536
)

// budget counts what a compilation uses.
type budget struct {
	substituted, stepBytes atomic.Int64
	steps, ports           atomic.Int64
}

func (b *budget) addSteps(n int) error {
	if total := b.steps.Add(int64(n)); total > maxInstructions {
		return tooManyInstructions(int(total))
	}
	return nil
}

func (b *budget) addPorts(n int) error {
	if b.ports.Add(int64(n)) > maxPorts {
		return fmt.Errorf("more than %d ports are exposed", maxPorts)
	}
	return nil
}

// addStep counts what a step is told: its arguments and its environment.
func (b *budget) addStep(lists ...[]string) error {
	n := 0
	for _, list := range lists {
		for _, s := range list {
			n += len(s)
		}
	}
	if b.stepBytes.Add(int64(n)) > maxStepBytes {
		return fmt.Errorf("the arguments and environments of all steps together exceed %d bytes", maxStepBytes)
	}
	return nil
}

// meter gives env, counting what is read of it for word.
func (b *budget) meter(env shell.EnvGetter, word string) *meter {
	return &meter{EnvGetter: env, budget: b, word: word}
}

type meter struct {
	shell.EnvGetter
	budget   *budget
	word     string
	exceeded bool
}

// Get is the value of a variable; an empty one when the budget is used up.
func (m *meter) Get(key string) (string, bool) {
	v, ok := m.EnvGetter.Get(key)
	if m.budget.substituted.Add(int64(len(v))) > maxSubstituted ||
		strings.Contains(m.word, "/") && len(v)*len(m.word) > maxReplaced {
		m.exceeded = true
		return "", ok
	}
	return v, ok
}

func (m *meter) err() error {
	if m.exceeded {
		return fmt.Errorf("the values of variables used in the Dockerfile exceed %d bytes all together", maxSubstituted)
	}
	return nil
}
