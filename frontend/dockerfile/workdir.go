package dockerfile

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/system"
)

// workdir is WORKDIR: the folder in which steps and the image run, made where it
// is not there.
func (l *line) workdir(c *instructions.WorkdirCommand) error {
	st := &l.stage.state
	os := l.stage.platform.OS
	// Only the first one of a Dockerfile can stand on what the base image happens to have.
	if !st.workdirSet && !system.IsAbs(c.Path, os) {
		l.lint.Run(&linter.RuleWorkdirRelativePath, c.Location(), linter.RuleWorkdirRelativePath.Format(c.Path))
	}
	st.workdirSet = true
	wd, err := system.NormalizeWorkdir(st.image.Config.WorkingDir, c.Path, os)
	if err != nil {
		return fmt.Errorf("normalizing workdir: %w", err)
	}
	st.image.Config.WorkingDir = wd
	wd = system.ToSlash(wd, os)
	if wd == "/" {
		l.commit("WORKDIR /", false)
		return nil
	}
	mkdir := &pb.FileActionMkDir{Path: cleanAbs(wd), Mode: 0o755, MakeParents: true, Timestamp: keepTime}
	if user := st.image.Config.User; user != "" {
		mkdir.Owner = parseOwner(user)
	}
	if l.epoch != nil {
		mkdir.Timestamp = l.epoch.UnixNano()
	}
	meta := l.meta(l.title(c.String()))
	// Making a folder is not worth being done again for --no-cache.
	meta.IgnoreCache = false
	st.root = withFolder(st.root, mkdir, meta)
	l.commit("WORKDIR "+wd, true)
	return nil
}

// user is USER: whom steps and the image run as.
func (l *line) user(c *instructions.UserCommand) error {
	l.stage.state.image.Config.User = c.User
	l.commit("USER "+c.User, false)
	return nil
}
