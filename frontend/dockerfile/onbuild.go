package dockerfile

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// trigger is an instruction that ONBUILD left for the stages above.
type trigger struct {
	text string
	of   string         // what left it
	at   []parser.Range // the ONBUILD, where it is in this Dockerfile
}

// addTriggers puts in front of a stage's steps those that its base's ONBUILD left,
// and reports whether they need other stages. They count as being where FROM is.
func (c *compiler) addTriggers(s *stage) (needs bool, err error) {
	var steps []step
	for _, t := range triggersOf(s) {
		st, err := t.parse(s.location)
		if err != nil {
			return false, t.explain(err, s.location)
		}
		found, err := c.connect(s, &st)
		if err != nil {
			return false, t.explain(err, s.location)
		}
		needs = needs || found
		steps = append(steps, st)
	}
	if len(steps) == 0 {
		return false, nil
	}
	s.steps = append(steps, s.steps...)
	s.counter.total += len(steps)
	if err := c.budget.addSteps(len(steps)); err != nil {
		return false, locate(c.file, err, s.location)
	}
	// A trigger may have closed a circle.
	return needs, checkCircles(c.stages.list)
}

// triggersOf gives the triggers that a stage's base left, an image or an earlier stage.
func triggersOf(s *stage) []trigger {
	var list []trigger
	if s.base == nil {
		if s.state.image == nil || s.done {
			return nil
		}
		for _, text := range s.state.image.Config.OnBuild {
			list = append(list, trigger{text: text, of: s.from})
		}
		s.state.image.Config.OnBuild = nil
		return list
	}
	for _, st := range s.base.steps {
		if cmd, ok := st.Command.(*instructions.OnbuildCommand); ok {
			list = append(list, trigger{text: cmd.Expression, of: s.from, at: cmd.Location()})
		}
	}
	return list
}

func (t *trigger) parse(at []parser.Range) (step, error) {
	ast, err := parser.Parse(strings.NewReader(t.text))
	if err != nil {
		return step{}, err
	}
	if len(ast.AST.Children) != 1 {
		return step{}, errors.New("onbuild trigger should be a single expression")
	}
	node := ast.AST.Children[0]
	node.StartLine, node.EndLine = lineSpan(at)
	// A comment above it would be looked at for a linter that is not there.
	node.PrevComment = nil
	cmd, err := instructions.ParseCommand(node)
	if err != nil {
		return step{}, err
	}
	return step{Command: cmd, trigger: t}, nil
}

// explain says of an error which trigger it is about, and shows both the FROM that
// set it off and the ONBUILD.
func (t *trigger) explain(err error, from []parser.Range) error {
	err = parser.SetLocation(fmt.Errorf("in the trigger ONBUILD %s of %s: %w", t.text, t.of, err), from)
	if t.at != nil {
		err = parser.WithLocation(err, t.at)
	}
	return err
}

func lineSpan(r []parser.Range) (start, end int) {
	start = math.MaxInt32
	for _, rng := range r {
		start, end = min(start, rng.Start.Line), max(end, rng.End.Line)
	}
	if end == 0 {
		return 0, 0
	}
	return start, end
}

// onbuild is ONBUILD: an instruction for stages that start from this one.
func (l *line) onbuild(c *instructions.OnbuildCommand) error {
	img := l.stage.state.image
	img.Config.OnBuild = append(img.Config.OnBuild, c.Expression)
	return nil
}
