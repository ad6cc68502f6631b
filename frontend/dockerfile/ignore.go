package dockerfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// ignoreFile is a .dockerignore.
type ignoreFile struct {
	name string
	data []byte // nil: there is none
}

func (f ignoreFile) patterns() ([]string, error) {
	if len(f.data) == 0 {
		return nil, nil
	}
	list, err := ignorefile.ReadAll(bytes.NewReader(f.data))
	if err != nil {
		return nil, fmt.Errorf("failed parsing %s: %w", f.name, err)
	}
	for _, p := range list {
		if _, err := patternmatcher.New([]string{p}); err != nil {
			return nil, f.badPattern(p, err)
		}
	}
	return list, nil
}

// badPattern says in which line a pattern is that cannot be used.
func (f ignoreFile) badPattern(pattern string, err error) error {
	e := &Error{
		File: &llb.File{Name: f.name, Data: f.data},
		Err:  fmt.Errorf("failed parsing %s: pattern %q: %w", f.name, pattern, err),
	}
	n := 0
	for line := range bytes.Lines(f.data) {
		n++
		if list, err := ignorefile.ReadAll(bytes.NewReader(line)); err == nil && slices.Contains(list, pattern) {
			e.Lines = append(e.Lines, Lines{n, n})
			break
		}
	}
	if strings.Contains(pattern, "[") {
		e.Hint = `a [ begins a set of characters, which a ] ends; \[ is the character itself`
	}
	return e
}

// readIgnoreOf reads the .dockerignore of a local folder; having none is no error.
func readIgnoreOf(ctx context.Context, b frontend.Bridge, from localSource) (ignoreFile, error) {
	e, err := from.vertex()
	if err != nil {
		return ignoreFile{}, err
	}
	ref, err := b.Solve(ctx, e)
	if err != nil {
		return ignoreFile{}, err
	}
	data, err := readFile(ctx, ref, ignoreName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ignoreFile{}, fmt.Errorf("failed to read %s: %w", ignoreName, err)
	}
	return ignoreFile{name: ignoreName, data: data}, nil
}

// IgnoredBy reports whether the patterns of an ignore file leave the path name out,
// and the pattern that does. A file that was not found in a context, though it is in
// the folder, is explained by it.
func IgnoredBy(patterns []string, name string) (pattern string, ok bool) {
	name = path.Clean(path.Join("/", filepath.ToSlash(name)))[1:]
	if name == "" {
		return "", false
	}
	// The last pattern that matches decides; so each is tried on its own, with those
	// after it able to take the name back.
	for i, p := range patterns {
		m, err := patternmatcher.New(patterns[i:])
		if err != nil {
			return "", false
		}
		last, err := patternmatcher.New(patterns[i : i+1])
		if err != nil || last.Exclusions() {
			continue
		}
		alone, err := last.MatchesOrParentMatches(name)
		if err != nil || !alone {
			continue
		}
		if out, err := m.MatchesOrParentMatches(name); err == nil && out {
			pattern, ok = p, true
		}
	}
	return pattern, ok
}

// Explain says why the vertex v may not find the path name in a local folder that it
// reads: a pattern of the ignore file leaves it out.
func Explain(v *llb.Vertex, name string) (hint string, ok bool) {
	for _, in := range v.Inputs() {
		src := in.Vertex.Op().GetSource()
		if !strings.HasPrefix(src.GetIdentifier(), "local://") {
			continue
		}
		var patterns []string
		if err := json.Unmarshal([]byte(src.Attrs[pb.AttrExcludePatterns]), &patterns); err != nil {
			continue
		}
		if p, ok := IgnoredBy(patterns, name); ok {
			return fmt.Sprintf("%q is left out of the context by the pattern %q of the ignore file", name, p), true
		}
	}
	return "", false
}
