package local

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"
)

// matchers hands out pairs of pattern matchers: one pair belongs to one
// goroutine at a time, because a matcher compiles its patterns as it meets them.
type matchers struct {
	include, exclude []string
	// prefixIncludes says that all include patterns are plain paths, but for a
	// trailing glob, so that it can be told from a directory's path alone that
	// nothing below it is included; prefixExceptions says the same of the "!"
	// patterns of exclude.
	prefixIncludes, prefixExceptions bool
	free                             sync.Pool
}

// pair is one include and one exclude matcher; nil has no patterns.
type pair struct {
	include, exclude *patternmatcher.PatternMatcher
}

// any reports whether there are patterns at all.
func (p *pair) any() bool { return p.include != nil || p.exclude != nil }

// match is what the patterns said of a directory; names in it are judged by it.
type match struct {
	include, exclude patternmatcher.MatchInfo
}

// verdict is what the patterns say of a path.
type verdict int

const (
	// take includes the path.
	take verdict = iota
	// look leaves the path out unless something below it is included.
	look
	// leave leaves the path out, and all below.
	leave
)

func newMatchers(root *Folder, f Filter) (*matchers, error) {
	include := f.Include
	if f.Follow != nil {
		targets, err := followLinks(root, f.Follow)
		if err != nil {
			return nil, err
		}
		if targets != nil {
			include = dedupe(append(append([]string(nil), include...), targets...))
		}
	}
	m := &matchers{include: include, exclude: f.Exclude, prefixIncludes: true, prefixExceptions: true}
	p, err := m.make()
	if err != nil {
		return nil, err
	}
	if p.include != nil {
		for _, pat := range p.include.Patterns() {
			if !pat.Exclusion() && strings.ContainsAny(withoutGlob(pat), `*[]?^\`) {
				m.prefixIncludes = false
			}
		}
	}
	if p.exclude != nil {
		for _, pat := range p.exclude.Patterns() {
			if pat.Exclusion() && strings.ContainsAny(withoutGlob(pat), `*[]?^\`) {
				m.prefixExceptions = false
			}
		}
	}
	m.free.Put(p)
	return m, nil
}

func (m *matchers) make() (*pair, error) {
	p := new(pair)
	var err error
	if len(m.include) > 0 {
		if p.include, err = patternmatcher.New(m.include); err != nil {
			return nil, fmt.Errorf("invalid includepatterns %q: %w", m.include, err)
		}
	}
	if len(m.exclude) > 0 {
		if p.exclude, err = patternmatcher.New(m.exclude); err != nil {
			return nil, fmt.Errorf("invalid excludepatterns %q: %w", m.exclude, err)
		}
	}
	return p, nil
}

// borrow gives a pair that nobody else uses; give it back.
func (m *matchers) borrow() *pair {
	if p, ok := m.free.Get().(*pair); ok {
		return p
	}
	p, err := m.make()
	if err != nil {
		// newMatchers made a pair of the same patterns.
		panic(err)
	}
	return p
}

func (m *matchers) give(p *pair) { m.free.Put(p) }

// judge says what becomes of the path rel in a directory that the patterns said
// in of.
func (m *matchers) judge(p *pair, rel string, isDir bool, in match) (verdict, match, error) {
	v := take
	var out match
	if p.include != nil {
		ok, info, err := p.include.MatchesUsingParentResults(rel, in.include)
		if err != nil {
			return leave, out, fmt.Errorf("matching includepatterns: %w", err)
		}
		out.include = info
		if !ok {
			if !isDir || m.prefixIncludes && !reaches(p.include, false, rel) {
				return leave, out, nil
			}
			v = look
		}
	}
	if p.exclude != nil {
		ok, info, err := p.exclude.MatchesUsingParentResults(rel, in.exclude)
		if err != nil {
			return leave, out, fmt.Errorf("matching excludepatterns: %w", err)
		}
		out.exclude = info
		if ok {
			if !isDir || !p.exclude.Exclusions() || m.prefixExceptions && !reaches(p.exclude, true, rel) {
				return leave, out, nil
			}
			v = look
		}
	}
	return v, out, nil
}

// reaches reports whether a plain pattern (one with "!" where exception is true)
// names something below dir.
func reaches(pm *patternmatcher.PatternMatcher, exception bool, dir string) bool {
	for _, pat := range pm.Patterns() {
		if pat.Exclusion() == exception && strings.HasPrefix(withoutGlob(pat)+"/", dir+"/") {
			return true
		}
	}
	return false
}

func withoutGlob(p *patternmatcher.Pattern) string {
	return strings.TrimSuffix(strings.TrimSuffix(p.String(), "/**"), "/*")
}

// notThere reports whether an error says that a path leads nowhere, by itself or
// because something on its way is no directory.
func notThere(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
