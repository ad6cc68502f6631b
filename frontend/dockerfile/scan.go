package dockerfile

import (
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/frontend/sbom"
	"github.com/kiln-build/kiln/llb"
)

// The arguments by which a Dockerfile asks for more to be listed in a bill of
// materials than the image: a boolean, or the names of the stages in which it is
// true. Steps do not see them.
const (
	scanContextArg = "BUILDKIT_SBOM_SCAN_CONTEXT"
	scanStageArg   = "BUILDKIT_SBOM_SCAN_STAGE"
)

// contextExtra is what the context is called among what is scanned.
const contextExtra = "context"

// isScanArg reports whether an argument asks for a scan of a stage.
func isScanArg(key string) bool { return key == scanContextArg || key == scanStageArg }

// scanned says what a generator is to look at besides the image: the context where
// the target asks for it, and those stages below that ask for it for themselves.
func (c *compiler) scanned(target *stage) (t sbom.Target, err error) {
	t.Core, err = target.state.root.get()
	if err != nil {
		return t, err
	}
	t.Extras, t.IgnoreCache = map[string]llb.Edge{}, target.noCache
	if c.scans(target, scanContextArg) {
		if t.Extras[contextExtra], err = c.context.get(); err != nil {
			return t, err
		}
	}
	needed := neededBy(target)
	for _, s := range c.stages.list {
		// An image, and what stands in a stage's place, are no stages of this file.
		if s == target || !needed[s] || s.isImage || s.replaced != nil || !c.scans(s, scanStageArg) {
			continue
		}
		if t.Extras[s.shown], err = s.state.root.get(); err != nil {
			return t, err
		}
		t.IgnoreCache = t.IgnoreCache || s.noCache
	}
	return t, nil
}

// scans reports whether an argument asks for a scan in a stage: the last ARG of the
// stage or those that it stands on decides, and without one that in front of the
// first FROM.
func (c *compiler) scans(s *stage, arg string) bool {
	on := false
	if v, ok := c.globals.env.Get(arg); ok {
		on = enabledIn(s.shown, v)
	}
	for _, a := range s.state.args {
		if a.Key == arg && a.Value != nil {
			on = enabledIn(s.shown, *a.Value)
		}
	}
	return on
}

func enabledIn(stage, value string) bool {
	if on, err := strconv.ParseBool(value); err == nil {
		return on
	}
	return slices.Contains(strings.Split(value, ","), stage)
}
