//go:build parity

package parity

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/tools/txtar"
)

// testCase is one file of cases/: a rule, and a build that shows it.
type testCase struct {
	// name is the file's path below cases/ without its ending, "copy/chown-name".
	name string
	rule string
	// args are the flags of the build, as `kiln build` and `docker buildx build` take them.
	args []string
	// context is the build's last argument; "." stands for the case's own files.
	context string
	// stdin names the file that standard input reads; "tar" is a tarball of the context.
	stdin string
	// output is added to the exporter's attributes, "rewrite-timestamp=true".
	output string
	// call asks a question of the Dockerfile in place of building it: "check",
	// "outline" or "targets".
	call string
	// fails is what the message of a build that has to fail matches; nil for a build that works.
	fails *regexp.Regexp
	// env is added to the environment of both builders.
	env []string
	// times makes times part of the comparison.
	times bool

	files   []txtar.File
	images  []baseImage
	prepare string
}

// baseImage is an image that is built before the case and pushed to @IMAGES@/<name>.
type baseImage struct {
	name       string
	dockerfile []byte
}

var headerLine = regexp.MustCompile(`^(flags|context|stdin|output|fails|env|compare|call): *(.*)$`)

// readCases reads every file below dir.
func readCases(dir string) ([]*testCase, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.txtar"))
	if err != nil {
		return nil, err
	}
	var cases []*testCase
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		rel, err := filepath.Rel(dir, strings.TrimSuffix(file, ".txtar"))
		if err != nil {
			return nil, err
		}
		c, err := parseCase(filepath.ToSlash(rel), data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		cases = append(cases, c)
	}
	return cases, nil
}

// parseCase reads one file. Its comment holds the rule and lines of "key: value";
// its files are the context's, but for those that begin with @: @prepare is a
// script, @image/NAME a Dockerfile of a base image, @dir/… files beside the context
// and @web/… files that the web server has.
func parseCase(name string, data []byte) (*testCase, error) {
	archive := txtar.Parse(data)
	c := &testCase{name: name, context: "."}
	var rule []string
	for _, line := range strings.Split(strings.TrimSpace(string(archive.Comment)), "\n") {
		m := headerLine.FindStringSubmatch(line)
		if m == nil {
			rule = append(rule, strings.TrimSpace(line))
			continue
		}
		if err := c.set(m[1], strings.TrimSpace(m[2])); err != nil {
			return nil, err
		}
	}
	c.rule = strings.TrimSpace(strings.Join(rule, " "))
	if c.rule == "" {
		return nil, fmt.Errorf("the comment does not say the rule")
	}
	for _, f := range archive.Files {
		switch {
		case f.Name == "@prepare":
			c.prepare = string(f.Data)
		case strings.HasPrefix(f.Name, "@image/"):
			c.images = append(c.images, baseImage{strings.TrimPrefix(f.Name, "@image/"), f.Data})
		case path.Clean(f.Name) != f.Name || path.IsAbs(f.Name) || strings.HasPrefix(f.Name, ".."):
			return nil, fmt.Errorf("file name %q is not clean", f.Name)
		default:
			c.files = append(c.files, f)
		}
	}
	return c, nil
}

func (c *testCase) set(key, value string) error {
	var err error
	switch key {
	case "flags":
		words, err := splitWords(value)
		if err != nil {
			return err
		}
		c.args = append(c.args, words...)
	case "context":
		c.context = value
	case "stdin":
		c.stdin = value
	case "call":
		c.call = value
	case "output":
		c.output = value
	case "env":
		c.env = append(c.env, value)
	case "fails":
		c.fails, err = regexp.Compile("(?is)" + value)
	case "compare":
		if value != "times" {
			return fmt.Errorf("compare: %s is not known", value)
		}
		c.times = true
	}
	return err
}

// splitWords splits at blanks; single quotes keep a word together.
func splitWords(s string) ([]string, error) {
	var words []string
	var word []byte
	inWord, quoted := false, false
	for i := range len(s) {
		switch b := s[i]; {
		case b == '\'':
			quoted, inWord = !quoted, true
		case b == ' ' && !quoted:
			if inWord {
				words, word, inWord = append(words, string(word)), nil, false
			}
		default:
			word, inWord = append(word, b), true
		}
	}
	if quoted {
		return nil, fmt.Errorf("flags: a quote without an end in %q", s)
	}
	if inWord {
		words = append(words, string(word))
	}
	return words, nil
}

// folders is where a case's files lie, and the addresses that they are served at.
type folders struct {
	context, dirs, web string
	vars               *strings.Replacer
}

// write puts the case's files below dir and runs its script.
func (c *testCase) write(dir string, s *site, registry string) (*folders, error) {
	f := &folders{context: filepath.Join(dir, "context"), dirs: filepath.Join(dir, "dirs"), web: filepath.Join(s.dir, c.name)}
	f.vars = strings.NewReplacer(
		"@REGISTRY@", registry,
		"@IMAGES@", registry+"/parity/"+strings.ToLower(c.name),
		"@WEB@", s.url+"/web/"+c.name,
		"@FAULT@", s.url+"/fault",
		"@GIT@", s.url+"/git/"+c.name,
		"@DIR@", f.dirs,
		"@GOROOT@", s.goroot)
	for _, d := range []string{f.context, f.dirs, f.web} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	for _, file := range c.files {
		to := filepath.Join(f.context, file.Name)
		if rest, ok := strings.CutPrefix(file.Name, "@dir/"); ok {
			to = filepath.Join(f.dirs, rest)
		} else if rest, ok := strings.CutPrefix(file.Name, "@web/"); ok {
			to = filepath.Join(f.web, rest)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(to, f.expand(file.Data), 0o644); err != nil {
			return nil, err
		}
	}
	return f, c.runPrepare(f)
}

func (f *folders) expand(data []byte) []byte {
	if !bytes.Contains(data, []byte("@")) {
		return data
	}
	return []byte(f.vars.Replace(string(data)))
}

// expandAll expands the words of a command line.
func (f *folders) expandAll(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = f.vars.Replace(w)
	}
	return out
}
