package dockerfile

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// warnFunc takes what a rule found; nil is nobody.
type warnFunc = linter.LintWarnFunc

// warnThrough tells warnings through the bridge.
func warnThrough(b frontend.Bridge, file *llb.File) warnFunc {
	return func(rule, description, url, text string, at []parser.Range) {
		w := frontend.Warning{URL: url, Level: 1, Detail: []string{description}}
		start := 0
		if l, ok := linesOf(at); ok {
			w.Location = &llb.Location{File: file, Start: l.Start, End: l.End}
			start = at[0].Start.Line
		}
		w.Short = linter.LintFormatShort(rule, text, start)
		b.Warn(w)
	}
}

// findings are the places that rules found fault with.
type findings struct {
	mu    sync.Mutex
	lines []Lines // at most maxFindings
}

// maxFindings is how many places an error shows.
const maxFindings = 5

// note gives a warnFunc that notes the place, too.
func (f *findings) note(warn warnFunc) warnFunc {
	if warn == nil {
		return nil
	}
	return func(rule, description, url, text string, at []parser.Range) {
		warn(rule, description, url, text, at)
		l, ok := linesOf(at)
		f.mu.Lock()
		defer f.mu.Unlock()
		if ok && len(f.lines) < maxFindings && !slices.Contains(f.lines, l) {
			f.lines = append(f.lines, l)
		}
	}
}

// locate gives the linter's error the places that were found.
func (f *findings) locate(file *llb.File, err error) error {
	if err == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	e := &Error{File: file, Lines: slices.Clone(f.lines), Err: err}
	slices.SortFunc(e.Lines, func(a, b Lines) int { return a.Start - b.Start })
	return e
}

// configureLint reads which rules hold: from the request, or from the Dockerfile's
// check directive.
func (c *compiler) configureLint() error {
	config := &linter.Config{}
	if c.opts.lint != nil {
		*config = *c.opts.lint
	} else {
		directive, _, at, _ := parser.ParseDirective("check", c.file.Data)
		parsed, err := linter.ParseLintOptions(directive)
		if err != nil {
			return parser.WithLocation(prefixed("failed to parse check options", err), at)
		}
		config = parsed
	}
	config.Warn = c.findings.note(c.warn)
	c.lint = linter.New(config)
	return nil
}

// checkStageNames finds names that several stages have, or that mean something else.
func checkStageNames(stages []instructions.Stage, lint *linter.Linter) {
	seen := map[string]bool{}
	for _, s := range stages {
		if s.Name == "" {
			continue
		}
		if s.Name == contextName || s.Name == scratch {
			lint.Run(&linter.RuleReservedStageName, s.Location, linter.RuleReservedStageName.Format(s.Name))
		}
		if seen[s.Name] {
			lint.Run(&linter.RuleDuplicateStageName, s.Location, linter.RuleDuplicateStageName.Format(s.Name))
		}
		seen[s.Name] = true
	}
}

// checkCasing finds instructions that are not written as most are, all in capitals
// or none.
func checkCasing(stages []instructions.Stage, lint *linter.Linter) {
	type word struct {
		name string
		at   []parser.Range
	}
	var words []word
	for _, s := range stages {
		words = append(words, word{s.OrigCmd, s.Location})
		for _, cmd := range s.Commands {
			words = append(words, word{cmd.Name(), cmd.Location()})
		}
	}
	balance := 0
	for _, w := range words {
		switch w.name {
		case strings.ToLower(w.name):
			balance--
		case strings.ToUpper(w.name):
			balance++
		}
	}
	for _, w := range words {
		casing, right := "uppercase", strings.ToUpper(w.name)
		if balance < 0 {
			casing, right = "lowercase", strings.ToLower(w.name)
		}
		if w.name != right {
			lint.Run(&linter.RuleConsistentInstructionCasing, w.at, linter.RuleConsistentInstructionCasing.Format(w.name, casing))
		}
	}
}

// checkDefaultBases finds base names that make no sense where no argument is given.
func (c *compiler) checkDefaultBases(stages []instructions.Stage, env *environment) {
	for _, s := range stages {
		word, err := c.expandGlobal(s.BaseName, env)
		if err != nil {
			return
		}
		if _, err := reference.ParseNormalizedNamed(word.Result); err != nil {
			c.lint.Run(&linter.RuleInvalidDefaultArgInFrom, s.Location, linter.RuleInvalidDefaultArgInFrom.Format(s.BaseName))
		}
	}
}

// checkFromArgs finds arguments in FROM that nothing defines.
func (c *compiler) checkFromArgs(unmatched map[string]struct{}, at []parser.Range, lint *linter.Linter) {
	known := slices.Sorted(maps.Keys(c.globals.infos))
	known = append(known, c.globals.env.Keys()...)
	for _, name := range slices.Sorted(maps.Keys(unmatched)) {
		if slices.Contains(known, name) {
			continue
		}
		match, _ := nearest(name, known)
		lint.Run(&linter.RuleUndefinedArgInFrom, at, linter.RuleUndefinedArgInFrom.Format(name, match))
	}
}

// checkRedundantPlatform finds --platform=$TARGETPLATFORM, which is the default.
func checkRedundantPlatform(st *instructions.Stage, word shell.ProcessWordResult, env *environment, lint *linter.Linter) {
	if len(word.Matched) != 1 || len(word.Unmatched) != 0 {
		return
	}
	if _, ok := word.Matched["TARGETPLATFORM"]; !ok {
		return
	}
	if target, _ := env.Get("TARGETPLATFORM"); word.Result == target {
		lint.Run(&linter.RuleRedundantTargetPlatform, st.Location, linter.RuleRedundantTargetPlatform.Format(st.Platform))
	}
}

// checkConstPlatform finds a --platform that is always the same, in a stage whose
// name does not say so.
func checkConstPlatform(st *instructions.Stage, word shell.ProcessWordResult, lint *linter.Linter) {
	if len(word.Matched) > 0 || len(word.Unmatched) > 0 {
		return
	}
	p, err := platforms.Parse(word.Result)
	if err != nil || strings.Contains(st.Name, p.OS) || strings.Contains(st.Name, p.Architecture) {
		return
	}
	lint.Run(&linter.RuleFromPlatformFlagConstDisallowed, st.Location, linter.RuleFromPlatformFlagConstDisallowed.Format(word.Result))
}

// checkBasePlatform finds a base image that is of another platform than was asked for.
func (c *compiler) checkBasePlatform(s *stage) {
	if !s.pulled {
		return
	}
	got := s.state.image.Platform
	if s.platform.OS == got.OS && s.platform.Architecture == got.Architecture {
		return
	}
	c.lint.Run(&linter.RuleInvalidBaseImagePlatform, s.location, linter.RuleInvalidBaseImagePlatform.Format(s.from,
		platforms.FormatAll(platforms.Normalize(*s.platform)), platforms.FormatAll(platforms.Normalize(got))))
}

// checkUndefined finds variables that nothing defines.
func (l *line) checkUndefined(unmatched map[string]struct{}) {
	for _, name := range slices.Sorted(maps.Keys(unmatched)) {
		declared := slices.ContainsFunc(l.stage.state.args, func(a instructions.KeyValuePairOptional) bool { return a.Key == name })
		if declared || isScanArg(name) {
			continue
		}
		match, _ := nearest(name, l.stage.state.env.Keys())
		l.lint.Run(&linter.RuleUndefinedVar, l.step.Location(), linter.RuleUndefinedVar.Format(name, match))
	}
}

// checkOnce finds an instruction that a later one of its kind makes useless.
func (l *line) checkOnce(c instructions.Command, last *[]parser.Range) {
	if *last != nil {
		l.lint.Run(&linter.RuleMultipleInstructionsDisallowed, *last, linter.RuleMultipleInstructionsDisallowed.Format(c.Name()))
	}
	*last = c.Location()
}

var (
	secretWords   = regexp.MustCompile(`(?i)(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)`)
	harmlessWords = regexp.MustCompile(`(?i)(?:_|^)(?:public|file|version)(?:_|$)`)
)

// checkSecretKey finds variables whose names say that they hold a secret.
func (l *line) checkSecretKey(instruction, key string) {
	if secretWords.MatchString(key) && !harmlessWords.MatchString(key) {
		l.lint.Run(&linter.RuleSecretsUsedInArgOrEnv, l.step.Location(), linter.RuleSecretsUsedInArgOrEnv.Format(instruction, key))
	}
}

// checkIgnored finds a source that the ignore file leaves out. Patterns that take
// names back ("!name") are beyond what can be told here.
func (l *line) checkIgnored(cp *copying, src string) {
	if !cp.fromCtx || l.ignorer == nil || l.ignorer.Exclusions() {
		return
	}
	src = filepath.ToSlash(filepath.Clean(src))
	if (src == "." || src == "/") && !rootIgnored(l.ignorer) {
		return
	}
	out, err := l.ignorer.MatchesOrParentMatches(src)
	if err != nil || !out {
		return
	}
	verb := "Copy"
	if cp.verb == "ADD" {
		verb = "Add"
	}
	l.lint.Run(&linter.RuleCopyIgnoredFile, l.step.Location(), linter.RuleCopyIgnoredFile.Format(verb, src))
}
