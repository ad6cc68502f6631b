package dockerfile

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// globalArgs are the arguments that FROM lines see, and that a stage gets by
// declaring them: those in front of the first FROM, and the predefined ones.
type globalArgs struct {
	env   *environment
	infos map[string]argInfo // of the declared ones
}

// predefined are the arguments that exist without being declared.
func (c *compiler) predefined() *environment {
	build, target := c.platforms.machine, c.platforms.target
	stage := c.opts.target
	if stage == "" {
		stage = c.lastStage
	}
	if stage == "" {
		stage = "default"
	}
	env := &environment{}
	for _, kv := range [...][2]string{
		{"BUILDPLATFORM", platforms.Format(build)},
		{"BUILDOS", build.OS},
		{"BUILDOSVERSION", build.OSVersion},
		{"BUILDARCH", build.Architecture},
		{"BUILDVARIANT", build.Variant},
		{"TARGETPLATFORM", platforms.FormatAll(target)},
		{"TARGETOS", target.OS},
		{"TARGETOSVERSION", target.OSVersion},
		{"TARGETARCH", target.Architecture},
		{"TARGETVARIANT", target.Variant},
		{"TARGETSTAGE", stage},
	} {
		value := kv[1]
		if given, ok := c.buildArgs[kv[0]]; ok {
			value = given
		}
		env.set(kv[0], value)
	}
	return env
}

// defineGlobals evaluates the ARGs in front of the first FROM.
func (c *compiler) defineGlobals(ctx context.Context, stages []instructions.Stage, args []instructions.ArgCommand) error {
	c.lastStage = stages[len(stages)-1].Name
	// First as if nobody had given values: base names should make sense then too.
	if defaults, err := c.evaluateGlobals(args, nil); err == nil {
		c.checkDefaultBases(stages, defaults.env)
	}
	var err error
	if c.globals, err = c.evaluateGlobals(args, c.buildArgs); err != nil {
		return err
	}
	return c.defineEpoch(ctx, stages)
}

func (c *compiler) evaluateGlobals(args []instructions.ArgCommand, given map[string]string) (globalArgs, error) {
	g := globalArgs{env: c.predefined(), infos: map[string]argInfo{}}
	for i := range args {
		for _, arg := range args[i].Args {
			if err := c.defineGlobal(&g, arg, given, args[i].Location()); err != nil {
				return g, parser.WithLocation(err, args[i].Location())
			}
		}
	}
	return g, nil
}

func (c *compiler) defineGlobal(g *globalArgs, arg instructions.KeyValuePairOptional, given map[string]string, at []parser.Range) error {
	info := argInfo{key: arg.Key, comment: arg.DocComment, location: at}
	value := arg.Value
	if v, ok := given[arg.Key]; ok {
		value = &v
	} else if value != nil {
		word, err := c.expandGlobal(*value, g.env)
		if err != nil {
			return err
		}
		value = &word.Result
		info.uses = word.Matched
		if _, self := info.uses[arg.Key]; self {
			// ARG A=$A uses what the A before it used.
			delete(info.uses, arg.Key)
			if info.uses == nil {
				info.uses = map[string]struct{}{}
			}
			maps.Copy(info.uses, g.infos[arg.Key].uses)
		}
	}
	if value != nil {
		g.env.set(arg.Key, *value)
		info.value = *value
	}
	g.infos[arg.Key] = info
	return nil
}

func (c *compiler) expandGlobal(word string, env *environment) (shell.ProcessWordResult, error) {
	m := c.budget.meter(env, word)
	out, err := c.lex.ProcessWordWithMatches(word, m)
	if err == nil {
		err = m.err()
	}
	return out, err
}

// expandFrom replaces the arguments in a FROM line.
func (c *compiler) expandFrom(s *stage, st *instructions.Stage) error {
	lint := c.lint.WithMergedConfigFromComments(st.Comments)
	env := c.globals.env
	base, err := c.expandGlobal(st.BaseName, env)
	c.checkFromArgs(base.Unmatched, st.Location, lint)
	if err != nil {
		return err
	}
	if base.Result == "" {
		return fmt.Errorf("base name (%s) should not be blank", st.BaseName)
	}
	s.from = base.Result
	s.outline.use(base.Matched)
	if st.Platform == "" {
		return nil
	}
	word, err := c.expandGlobal(st.Platform, env)
	c.checkFromArgs(word.Unmatched, st.Location, lint)
	checkRedundantPlatform(st, word, env, lint)
	checkConstPlatform(st, word, lint)
	if err != nil {
		return fmt.Errorf("failed to process arguments for platform %s: %w", word.Result, err)
	}
	if word.Result == "" {
		return suggestArg(fmt.Errorf("empty platform value from expression %s", st.Platform), word.Unmatched, env)
	}
	p, err := platforms.Parse(word.Result)
	if err != nil {
		return suggestArg(fmt.Errorf("failed to parse platform %s: %w", st.Platform, err), word.Unmatched, env)
	}
	s.outline.use(word.Matched)
	s.platform = &p
	return nil
}

// suggestArg adds to an error the argument that was perhaps meant.
func suggestArg(err error, unmatched map[string]struct{}, env *environment) error {
	for _, name := range slices.Sorted(maps.Keys(unmatched)) {
		if match, ok := nearest(name, env.Keys()); ok {
			return &hinted{err, "did you mean " + match + "?"}
		}
	}
	return err
}
