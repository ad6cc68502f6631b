package dockerfile

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/system"
	"github.com/moby/patternmatcher"
	digest "github.com/opencontainers/go-digest"
	mode "github.com/tonistiigi/dchapes-mode"
)

// copying is a COPY or an ADD: files from somewhere, put somewhere.
type copying struct {
	verb    string // "COPY" or "ADD"
	code    string // the instruction as it is written
	words   instructions.SourcesAndDest
	from    *fsys // what paths are paths of
	fromCtx bool  // it is the main context
	chown   string
	chmod   string
	exclude []string
	link    bool
	parents bool

	// For ADD alone.
	keepGit  *bool
	checksum string
	unpack   *bool

	// What is made of these.
	dest    string
	mode    int32
	modeStr string
	copies  []copyAction
	created []string // words of the history entry
}

// copy is COPY.
func (l *line) copy(c *instructions.CopyCommand) error {
	cp := &copying{
		verb: "COPY", code: c.String(), words: c.SourcesAndDest,
		from: l.context, fromCtx: true,
		chown: c.Chown, chmod: c.Chmod, exclude: c.ExcludePatterns,
		link: c.Link, parents: c.Parents,
	}
	reads := l.reads
	if len(l.step.sources) > 0 {
		src := l.step.sources[0]
		if !src.done {
			return fmt.Errorf("cannot copy from stage %q, it needs to be defined before current stage %q", c.From, l.stage.shown)
		}
		cp.from, cp.fromCtx, reads = src.state.root, false, src.reads
	}
	if err := l.place(cp); err != nil {
		return err
	}
	for _, src := range c.SourcePaths {
		reads.add(filepath.ToSlash(src))
	}
	return nil
}

// place puts the files of a COPY or an ADD where they belong.
func (l *line) place(cp *copying) error {
	var err error
	if cp.dest, err = l.destination(cp.words.DestPath); err != nil {
		return err
	}
	if err := cp.parseMode(); err != nil {
		return err
	}
	for _, p := range cp.exclude {
		if _, err := patternmatcher.New([]string{p}); err != nil {
			return fmt.Errorf("--exclude=%s: %w", p, err)
		}
	}
	cp.describeFlags()
	text := l.shown(l.lex, cp.code, l.stage.state.env)
	name := l.compiler.title(l.stage, text, l.stage.state.env, l.step.trigger != nil)
	for _, src := range cp.words.SourcePaths {
		cp.created = append(cp.created, src)
		if err := l.addSource(cp, src, name); err != nil {
			return err
		}
	}
	for _, file := range cp.words.SourceContents {
		cp.created = append(cp.created, "<<"+file.Path)
		if err := l.addContent(cp, file); err != nil {
			return err
		}
	}
	cp.created = append(cp.created, cp.words.DestPath)
	l.makeCopy(cp, name, text)
	l.commit(strings.Join(cp.created, " ")+" # buildkit", true)
	return nil
}

// destination makes the target absolute, keeping what says that it is a folder.
func (l *line) destination(p string) (string, error) {
	os := l.stage.platform.OS
	p, err := system.CheckSystemDriveAndRemoveDriveLetter(p, os, true)
	if err != nil {
		return "", fmt.Errorf("removing drive letter: %w", err)
	}
	if system.IsAbs(p, os) {
		return system.NormalizePath("/", p, os, true)
	}
	if p == "." || p == "" {
		p = "./"
	}
	return system.NormalizePath(l.stage.dir(), p, os, true)
}

// parseMode reads --chmod: octal, or symbolic as chmod(1) has it.
func (cp *copying) parseMode() error {
	cp.mode = keepMode
	if cp.chmod == "" {
		return nil
	}
	notOctal := fmt.Errorf("invalid chmod parameter: '%v'. it should be octal string and between 0 and 07777", cp.chmod)
	n, err := strconv.ParseUint(cp.chmod, 8, 32)
	if err == nil {
		if n > 0o7777 {
			return notOctal
		}
		cp.mode = int32(n)
		return nil
	}
	if _, err := mode.Parse(cp.chmod); err != nil {
		var num *strconv.NumError
		if errors.As(err, &num) {
			return notOctal
		}
		return fmt.Errorf("invalid chmod parameter: '%v'. it should be octal, or symbolic as in u=rwX,go=rX: %w", cp.chmod, err)
	}
	cp.mode, cp.modeStr = 0, cp.chmod
	return nil
}

// describeFlags begins the history entry.
func (cp *copying) describeFlags() {
	cp.created = append(cp.created, cp.verb)
	if cp.parents {
		cp.created = append(cp.created, "--parents")
	}
	if cp.chown != "" {
		cp.created = append(cp.created, "--chown="+cp.chown)
	}
	if cp.chmod != "" {
		cp.created = append(cp.created, "--chmod="+cp.chmod)
	}
}

// action adds a copy from a file system, with what the flags say of every source.
func (cp *copying) action(from *fsys, a *pb.FileActionCopy) {
	a.Src = cleanAbs(a.Src)
	a.Dest = absPath("/", cp.dest, true)
	a.Mode, a.ModeStr = cp.mode, cp.modeStr
	a.CreateDestPath = true
	a.Timestamp = keepTime
	a.ExcludePatterns = cp.exclude
	if cp.chown != "" {
		a.Owner = parseOwner(cp.chown)
	}
	cp.copies = append(cp.copies, copyAction{from, a})
}

// addSource adds a source: a repository, a download, or a path.
func (l *line) addSource(cp *copying, src, name string) error {
	git, ok, err := parseGit(src)
	switch {
	case ok && err != nil:
		return err
	case ok && !git.IndistinguishableFromLocal:
		return l.addGit(cp, git, name)
	case isHTTP(src):
		return l.addHTTP(cp, src, name)
	}
	return l.addPath(cp, src)
}

// addPath adds files of the context or of a stage. Names may have wildcards, a
// folder stands for what is in it, and links are followed.
func (l *line) addPath(cp *copying, src string) error {
	l.checkIgnored(cp, src)
	os := l.stage.platform.OS
	a := &pb.FileActionCopy{
		FollowSymlink:                    true,
		DirCopyContents:                  true,
		AllowWildcard:                    true,
		AllowEmptyWildcard:               true,
		AttemptUnpackDockerCompatibility: cp.verb == "ADD",
	}
	if cp.unpack != nil {
		a.AttemptUnpackDockerCompatibility = *cp.unpack
	}
	if cp.parents {
		var err error
		if src, err = setParents(a, src, os); err != nil {
			return err
		}
	}
	src, err := system.NormalizePath("/", src, os, false)
	if err != nil {
		return fmt.Errorf("removing drive letter: %w", err)
	}
	a.Src = src
	cp.action(cp.from, a)
	return nil
}

// setParents is --parents: what is copied is the folder up to the pivot "/./", or
// the root, narrowed to the rest of the path.
func setParents(a *pb.FileActionCopy, src, os string) (string, error) {
	folder, pattern, pivot := strings.Cut(src, "/./")
	if !pivot {
		folder, pattern = "/", src
	}
	pattern, err := system.NormalizePath("/", pattern, os, false)
	if err != nil {
		return "", fmt.Errorf("removing drive letter: %w", err)
	}
	a.IncludePatterns = []string{strings.TrimPrefix(pattern, "/")}
	// A path without wildcards must be there; a pattern may match nothing.
	if !hasWildcard(folder) && !hasWildcard(pattern) {
		required, err := system.NormalizePath("/", filepath.Join(folder, pattern), os, false)
		if err != nil {
			return "", fmt.Errorf("removing drive letter: %w", err)
		}
		a.RequiredPaths = []string{required}
	}
	return folder, nil
}

func hasWildcard(name string) bool {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '*', '?', '[':
			return true
		case '\\':
			i++
		}
	}
	return false
}

// addContent adds a heredoc as a file.
func (l *line) addContent(cp *copying, file instructions.SourceContent) error {
	os := l.stage.platform.OS
	name, err := system.CheckSystemDriveAndRemoveDriveLetter(file.Path, os, false)
	if err != nil {
		return fmt.Errorf("removing drive letter: %w", err)
	}
	cp.action(inlineFile(name, 0o644, file.Data), &pb.FileActionCopy{Src: system.ToSlash(name, os)})
	return nil
}

// makeCopy makes the vertex, or with --link two: the files on their own, which does
// not depend on what is below, and a merge of both.
func (l *line) makeCopy(cp *copying, name, text string) {
	st := &l.stage.state
	meta := l.meta(name)
	// With --chmod nothing is linked, as in BuildKit, so that layers are the same.
	if !cp.link || cp.chmod != "" {
		st.root = copied(st.root, cp.copies, meta)
		return
	}
	group := &pb.ProgressGroup{Id: digest.FromString(name).Encoded(), Name: name, Weak: true}
	files := meta
	files.Group = group
	alone := copied(nil, cp.copies, files)
	merge := meta
	merge.Name = l.retitle(l.stage, "LINK "+text, st.env, l.step.trigger != nil)
	merge.Group = &pb.ProgressGroup{Id: group.Id, Name: name}
	below := st.root
	if below == nil {
		st.root = alone
		return
	}
	st.root = &fsys{make: func() (llb.Edge, error) {
		base, err := below.get()
		if err != nil {
			return llb.Edge{}, err
		}
		top, err := alone.get()
		if err != nil {
			return llb.Edge{}, err
		}
		return output(llb.Merge([]llb.Edge{base, top}, llb.WithMeta(merge)))
	}}
}

// rootIgnored reports whether patterns leave out everything.
func rootIgnored(m *patternmatcher.PatternMatcher) bool {
	return slices.ContainsFunc(m.Patterns(), func(p *patternmatcher.Pattern) bool {
		return !p.Exclusion() && slices.Contains([]string{"*", "**", "**/*"}, p.String())
	})
}
