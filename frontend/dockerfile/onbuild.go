package dockerfile

import (
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// addTriggers puts in front of a stage's steps those that its base's ONBUILD left,
// and reports whether they need other stages. They count as being where FROM is.
func (c *compiler) addTriggers(s *stage) (needs bool, err error) {
	var steps []step
	for _, text := range triggersOf(s) {
		st, err := parseTrigger(text, s.location)
		if err != nil {
			return false, parser.SetLocation(err, s.location)
		}
		found, err := c.connect(s, &st)
		if err != nil {
			return false, parser.SetLocation(err, s.location)
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
		return false, err
	}
	// A trigger may have closed a circle.
	return needs, checkCircles(c.stages.list)
}

// triggersOf gives the triggers that a stage's base left, an image or an earlier stage.
func triggersOf(s *stage) []string {
	if s.base == nil {
		if s.state.image == nil || s.done {
			return nil
		}
		list := s.state.image.Config.OnBuild
		s.state.image.Config.OnBuild = nil
		return slices.Clone(list)
	}
	var list []string
	for _, st := range s.base.steps {
		if cmd, ok := st.Command.(*instructions.OnbuildCommand); ok {
			list = append(list, cmd.Expression)
		}
	}
	return list
}

func parseTrigger(text string, at []parser.Range) (step, error) {
	ast, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return step{}, err
	}
	if len(ast.AST.Children) != 1 {
		return step{}, errors.New("onbuild trigger should be a single expression")
	}
	node := ast.AST.Children[0]
	node.StartLine, node.EndLine = lineSpan(at)
	cmd, err := instructions.ParseCommand(node)
	if err != nil {
		return step{}, err
	}
	return step{Command: cmd, onBuild: true}, nil
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
