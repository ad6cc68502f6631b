package dockerfile

import (
	"fmt"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// line is a step while it is compiled. Each instruction is a method of it, in a file
// of its own or of its family.
type line struct {
	*compiler
	stage *stage
	step  step
	lint  *linter.Linter // with what a comment above the instruction says
}

func (c *compiler) runStep(s *stage, st step) error {
	l := &line{compiler: c, stage: s, step: st, lint: c.lint.WithMergedConfigFromComments(st.Comments())}
	if err := l.expand(); err != nil {
		return err
	}
	switch cmd := st.Command.(type) {
	case *instructions.RunCommand:
		return l.run(cmd)
	case *instructions.CopyCommand:
		return l.copy(cmd)
	case *instructions.AddCommand:
		return l.add(cmd)
	case *instructions.WorkdirCommand:
		return l.workdir(cmd)
	case *instructions.UserCommand:
		return l.user(cmd)
	case *instructions.EnvCommand:
		return l.env(cmd)
	case *instructions.ArgCommand:
		return l.arg(cmd)
	case *instructions.LabelCommand:
		return l.label(cmd)
	case *instructions.MaintainerCommand:
		return l.maintainer(cmd)
	case *instructions.ExposeCommand:
		return l.expose(cmd)
	case *instructions.VolumeCommand:
		return l.volume(cmd)
	case *instructions.CmdCommand:
		return l.cmd(cmd)
	case *instructions.EntrypointCommand:
		return l.entrypoint(cmd)
	case *instructions.ShellCommand:
		return l.shell(cmd)
	case *instructions.HealthCheckCommand:
		return l.healthcheck(cmd)
	case *instructions.StopSignalCommand:
		return l.stopsignal(cmd)
	case *instructions.OnbuildCommand:
		return l.onbuild(cmd)
	}
	return fmt.Errorf("instruction %s is not known here", st.Name())
}

// expand replaces variables in the instruction's words, and in its heredocs.
func (l *line) expand() error {
	// The default of an ARG is expanded only if nothing overrides it.
	if _, isArg := l.step.Command.(*instructions.ArgCommand); isArg {
		return nil
	}
	if cmd, ok := l.step.Command.(instructions.SupportsSingleWordExpansion); ok {
		if err := cmd.Expand(func(word string) (string, error) { return l.expandWord(l.lex, word) }); err != nil {
			return err
		}
	}
	if cmd, ok := l.step.Command.(instructions.SupportsSingleWordExpansionRaw); ok {
		// In a heredoc quotes are text, and the escape is the shell's, whatever the
		// Dockerfile's is.
		lex := shell.NewLex('\\')
		lex.SkipProcessQuotes = true
		return cmd.ExpandRaw(func(word string) (string, error) { return l.expandWord(lex, word) })
	}
	return nil
}

func (l *line) expandWord(lex *shell.Lex, word string) (string, error) {
	m := l.budget.meter(l.stage.state.env, word)
	out, unmatched, err := lex.ProcessWord(word, m)
	if err == nil {
		err = m.err()
	}
	if err != nil {
		return "", err
	}
	l.checkUndefined(unmatched)
	return out, nil
}

// title is the name of the instruction's vertex. Variables are shown expanded.
func (l *line) title(code string) string {
	return l.compiler.title(l.stage, l.shown(l.lex, code, l.stage.state.env), l.stage.state.env, l.step.trigger != nil)
}

// shown is the instruction's text as progress displays have it.
func (l *line) shown(lex *shell.Lex, code string, env shell.EnvGetter) string {
	m := l.budget.meter(env, code)
	if text, _, err := lex.ProcessWord(code, m); err == nil && m.err() == nil {
		code = text
	}
	return upperFirst(code)
}

// meta is what every vertex of the instruction says of itself.
func (l *line) meta(name string) llb.Meta {
	return llb.Meta{Name: name, IgnoreCache: l.stage.noCache, Locations: l.location(l.step.Location())}
}

// commit adds the instruction to the image's history.
func (l *line) commit(createdBy string, layer bool) {
	img := l.stage.state.image
	img.History = append(img.History, ocispecs.History{
		Created:    l.epoch,
		CreatedBy:  createdBy,
		Comment:    historyComment,
		EmptyLayer: !layer,
	})
}

// onceOnly remembers where the instructions stand of which a stage has one.
type onceOnly struct {
	cmd, entrypoint, healthcheck []parser.Range
}
