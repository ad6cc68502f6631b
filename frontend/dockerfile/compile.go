package dockerfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/patternmatcher"
	"golang.org/x/sync/errgroup"
)

// compiler compiles a Dockerfile for one platform. It is used once.
type compiler struct {
	opts      *options
	in        *origin
	file      *llb.File
	images    *resolver
	platforms platformSet
	warn      warnFunc
	// everyStage compiles stages that the target does not need, for a check of the
	// whole file.
	everyStage bool

	// buildArgs are the request's, with SOURCE_DATE_EPOCH in seconds.
	buildArgs map[string]string
	lex       *shell.Lex
	lint      *linter.Linter
	lastStage string // the name of the last stage, if it has one
	globals   globalArgs
	stages    stageTable
	epoch     *epoch
	budget    budget
	findings  findings // of the linter, where they are errors

	ignored []string                       // patterns of the main context's ignore file
	unread  error                          // what kept the ignore file from being read
	ignorer *patternmatcher.PatternMatcher // of ignored; nil if it is empty
	reads   paths                          // of the main context
	context *fsys                          // the main context
}

func newCompiler(opts *options, in *origin, file *llb.File, images *resolver, p platformSet, warn warnFunc) *compiler {
	c := &compiler{
		opts: opts, in: in, file: file, images: images, platforms: p, warn: warn,
		reads: paths{}, buildArgs: maps.Clone(opts.buildArgs),
	}
	c.context = &fsys{make: func() (llb.Edge, error) {
		if c.unread != nil {
			return llb.Edge{}, c.unread
		}
		return in.mainContext(c.reads, c.ignored).get()
	}}
	return c
}

// compile compiles the target and what it needs, and makes the graph.
func (c *compiler) compile(ctx context.Context) (*compiled, error) {
	target, err := c.evaluate(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.findings.locate(c.file, c.lint.Error()); err != nil {
		return nil, err
	}
	out := &compiled{epoch: c.epoch}
	if out.image.Root, err = target.state.root.get(); err != nil {
		return nil, err
	}
	if c.opts.sbom != nil && !c.opts.nested {
		if out.scanned, err = c.scanned(target); err != nil {
			return nil, err
		}
	}
	if base := target.state.base; base != nil {
		if out.image.BaseConfig, err = imageConfig(base); err != nil {
			return nil, err
		}
	}
	c.finish(target.state.image)
	out.own = target.state.image.Platform
	out.image.Config, err = imageConfig(target.state.image)
	return out, err
}

// finish puts what the request says into the target's config.
func (c *compiler) finish(img *Image) {
	if len(c.opts.labels) > 0 && img.Config.Labels == nil {
		img.Config.Labels = make(map[string]string, len(c.opts.labels))
	}
	maps.Copy(img.Config.Labels, c.opts.labels)
	if !c.platforms.implicit {
		p := c.platforms.target
		same := p.OS == img.OS && p.Architecture == img.Architecture
		img.OS, img.Architecture = p.OS, p.Architecture
		// What the base image knows of its platform stays, where the request is less exact.
		if p.Variant != "" || !same {
			img.Variant = p.Variant
		}
		if p.OSVersion != "" || !same {
			img.OSVersion = p.OSVersion
		}
		if p.OSFeatures != nil {
			img.OSFeatures = slices.Clone(p.OSFeatures)
		}
	}
	img.Platform = platforms.Normalize(img.Platform)
}

// evaluate runs through the Dockerfile up to the state of the target stage.
func (c *compiler) evaluate(ctx context.Context) (*stage, error) {
	target, err := c.evaluateStages(ctx)
	if err != nil {
		return nil, locate(c.file, err)
	}
	return target, nil
}

func (c *compiler) evaluateStages(ctx context.Context) (*stage, error) {
	stages, args, err := c.parse()
	if err != nil {
		return nil, err
	}
	if err := c.defineGlobals(ctx, stages, args); err != nil {
		return nil, err
	}
	if err := c.addStages(ctx, stages); err != nil {
		return nil, err
	}
	target, err := c.stages.target(c.opts.target)
	if err != nil {
		return nil, err
	}
	if err := c.connectStages(); err != nil {
		return nil, err
	}
	needed, err := c.askOutside(ctx, target)
	if err != nil {
		return nil, err
	}
	for _, s := range c.stages.list {
		if s.done || !needed[s] && !c.everyStage {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.runStage(s); err != nil {
			return nil, err
		}
	}
	// Everything of the target is used: by the exporter.
	target.reads.add("/")
	return target, nil
}

// askOutside finds the bases and reads the ignore file, at the same time, and gives
// the stages that the target needs.
func (c *compiler) askOutside(ctx context.Context, target *stage) (needed map[*stage]bool, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		needed, err = c.resolveBases(ctx, target)
		return err
	})
	group.Go(func() error { return c.readIgnore(ctx) })
	return needed, group.Wait()
}

// What a Dockerfile may hold at most. BuildKit sets no limits but that of a line;
// these are far above any Dockerfile that is known, and keep memory in bounds.
const (
	maxLines        = 500_000
	maxInstructions = 50_000
	// maxLine is the parser's own limit. It is checked here as well, as the parser
	// does not say which line it is.
	maxLine = 64<<10 - 1
)

// longLine gives the number of the first line that is too long, or 0.
func longLine(data []byte) int {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if len(line) > maxLine {
			return n
		}
	}
	return 0
}

// parse reads the text into stages, and the ARGs in front of them.
func (c *compiler) parse() ([]instructions.Stage, []instructions.ArgCommand, error) {
	data := c.file.Data
	if len(data) == 0 {
		return nil, nil, &Error{File: c.file, Err: errors.New("the Dockerfile cannot be empty")}
	}
	if n := bytes.Count(data, []byte("\n")); n > maxLines {
		return nil, nil, &Error{File: c.file, Lines: []Lines{{maxLines + 1, maxLines + 1}}, Err: fmt.Errorf("the Dockerfile has %d lines, the limit is %d", n, maxLines)}
	}
	if n := longLine(data); n > 0 {
		e := fmt.Errorf("dockerfile line greater than max allowed size of %d", maxLine)
		return nil, nil, &Error{File: c.file, Lines: []Lines{{n, n}}, Err: e, Hint: "divide it by \\ at the ends of lines, or put the text into a file of its own and COPY it"}
	}
	if err := c.configureLint(); err != nil {
		return nil, nil, err
	}
	ast, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		return nil, nil, err
	}
	if err := c.budget.addSteps(len(ast.AST.Children)); err != nil {
		e := &Error{File: c.file, Err: err}
		if first := ast.AST.Children[min(maxInstructions, len(ast.AST.Children)-1)]; first.StartLine > 0 {
			e.Lines = []Lines{{first.StartLine, first.StartLine}} // the first that is too many
		}
		return nil, nil, e
	}
	for _, w := range ast.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL {
			c.lint.Run(&linter.RuleNoEmptyContinuation, []parser.Range{*w.Location}, linter.RuleNoEmptyContinuation.Format())
		}
	}
	c.lex = shell.NewLex(ast.EscapeToken)
	stages, args, err := instructions.Parse(ast.AST, c.lint)
	if err != nil {
		return nil, nil, err
	}
	if len(stages) == 0 {
		return nil, nil, &Error{File: c.file, Err: errors.New("dockerfile contains no stages to build"), Hint: "a stage begins with FROM"}
	}
	checkStageNames(stages, c.lint)
	checkCasing(stages, c.lint)
	return stages, args, nil
}

func tooManyInstructions(n int) error {
	return fmt.Errorf("the Dockerfile comes to %d instructions, the limit is %d", n, maxInstructions)
}

// readIgnore reads the ignore file. Where there is none to be had, as the client has no
// context, that is an error of whatever reads the context; not all builds do.
func (c *compiler) readIgnore(ctx context.Context) error {
	list, err := c.in.ignorePatterns(ctx)
	if said := (*Error)(nil); err != nil && ctx.Err() == nil && !errors.As(err, &said) {
		c.unread = err
		return nil
	}
	if err != nil || len(list) == 0 {
		return err
	}
	c.ignored = list
	c.ignorer, err = patternmatcher.New(list)
	return err
}

// location is where a vertex was compiled from: a range for each line, as clients of
// BuildKit's know it.
func (c *compiler) location(ranges []parser.Range) []llb.Location {
	var out []llb.Location
	for _, r := range ranges {
		if r.Start.Line > 0 {
			out = append(out, llb.Location{File: c.file, Start: r.Start.Line, End: r.End.Line})
		}
	}
	return out
}

// describe is the description of a vertex: the instruction that it stands for.
func describe(code string) map[string]string {
	return map[string]string{"com.docker.dockerfile.v1.command": code}
}

// upperFirst writes the first word, an instruction's name, in capitals.
func upperFirst(s string) string {
	name, rest, ok := strings.Cut(s, " ")
	if !ok {
		return strings.ToUpper(name)
	}
	return strings.ToUpper(name) + " " + rest
}
