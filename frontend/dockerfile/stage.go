package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/system"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const scratch = "scratch"

// stage is a FROM and what follows it, or an image that COPY --from or RUN --mount
// names, which is a stage without steps.
type stage struct {
	from     string // what FROM names, arguments expanded
	name     string // what the Dockerfile calls it, if anything
	shown    string // what progress calls it; empty for the one stage of a build
	comment  string // above FROM, for the outline
	code     string // the FROM line
	location []parser.Range
	isImage  bool

	base     *stage             // the earlier stage that FROM names
	platform *ocispecs.Platform // FROM --platform; what is built for, once the base is resolved
	replaced *namedContext      // what stands for the stage instead

	steps []step
	needs []need // stages that its steps read, in the order of the steps
	reads paths  // what is read of it; shared with its base

	noCache  bool
	resolved bool // the base is known
	pulled   bool // it is an image that has layers
	done     bool // state is what the stage comes to

	state   state
	counter counter
	once    onceOnly
	outline outline
}

// state is what the steps of a stage have made so far.
type state struct {
	root *fsys
	env  *environment // what steps see: ENV and ARG
	args []instructions.KeyValuePairOptional
	// image is the config; its working directory and user are those of the steps.
	image *Image
	base  *Image // the config of the image at the bottom, unchanged; nil for scratch
	// workdirSet says that a WORKDIR of this Dockerfile was seen.
	workdirSet bool
}

// step is an instruction of a stage.
type step struct {
	instructions.Command
	// sources are the stages that COPY --from or the RUN's mounts name, nil for a
	// mount that names none.
	sources []*stage
	trigger *trigger // the base's ONBUILD that left it, if one did
}

// need says which step reads another stage.
type need struct {
	*stage
	by instructions.Command
}

// dir is the folder in which the stage's steps run.
func (s *stage) dir() string {
	if s.state.image.Config.WorkingDir == "" {
		return "/"
	}
	return system.ToSlash(s.state.image.Config.WorkingDir, s.platform.OS)
}

// counter numbers the steps of a stage for the names of vertices.
type counter struct{ next, total int }

// title puts the stage and the number in front of a vertex's name:
// "[build 2/5] RUN make".
func (c *compiler) title(s *stage, text string, env *environment, onBuild bool) string {
	s.counter.next++
	return c.retitle(s, text, env, onBuild)
}

// retitle names another vertex of the step that title named last.
func (c *compiler) retitle(s *stage, text string, env *environment, onBuild bool) string {
	if s.counter.total == 0 {
		return text
	}
	var b strings.Builder
	b.WriteByte('[')
	if c.opts.multiPlatform && s.platform != nil {
		b.WriteString(platforms.FormatAll(*s.platform))
		b.WriteString(crossSuffix(*s.platform, env))
		b.WriteByte(' ')
	}
	if s.shown != "" {
		b.WriteString(s.shown)
		b.WriteByte(' ')
	}
	width := int(1 + math.Log10(float64(s.counter.total)))
	fmt.Fprintf(&b, "%*d/%d] ", width, s.counter.next, s.counter.total)
	if onBuild {
		b.WriteString("ONBUILD ")
	}
	b.WriteString(text)
	return b.String()
}

// stageTable holds the stages of a Dockerfile in their order, then the images that
// steps name.
type stageTable struct {
	list   []*stage
	byName map[string]*stage
}

func (t *stageTable) add(s *stage) {
	t.list = append(t.list, s)
	s.base = t.byName[s.from]
	if s.name != "" {
		if t.byName == nil {
			t.byName = map[string]*stage{}
		}
		t.byName[strings.ToLower(s.name)] = s
	}
}

// names gives those that instructions and --target can use.
func (t *stageTable) names() []string {
	var out []string
	for _, s := range t.list {
		if s.name != "" {
			out = append(out, s.shown)
		}
	}
	return out
}

// find gives the stage that a name means; the last one where several have it.
func (t *stageTable) find(name string) *stage { return t.byName[strings.ToLower(name)] }

func (t *stageTable) at(index int) (*stage, error) {
	if index < 0 || index >= len(t.list) {
		return nil, fmt.Errorf("invalid stage index %d", index)
	}
	return t.list[index], nil
}

// target gives the stage that is to be built: the one named, or the last.
func (t *stageTable) target(name string) (*stage, error) {
	if name == "" {
		return t.list[len(t.list)-1], nil
	}
	if s := t.find(name); s != nil {
		return s, nil
	}
	e := &Error{Err: fmt.Errorf("target stage %q could not be found", name)}
	names := t.names()
	if match, ok := nearest(name, names); ok {
		e.Hint = "did you mean " + match + "?"
	} else if len(names) > 0 {
		e.Hint = "the stages are " + strings.Join(names, ", ")
	} else {
		e.Hint = "no stage has a name; FROM IMAGE AS NAME gives it one"
	}
	return nil, e
}

// addStages makes the stages, with the arguments in their FROM lines expanded.
func (c *compiler) addStages(ctx context.Context, parsed []instructions.Stage) error {
	for i := range parsed {
		st := &parsed[i]
		s := &stage{
			name:     st.Name,
			shown:    st.Name,
			comment:  st.DocComment,
			code:     st.SourceCode,
			location: st.Location,
			reads:    paths{},
		}
		if err := c.expandFrom(s, st); err != nil {
			return parser.WithLocation(err, st.Location)
		}
		if st.Name != "" {
			nc, err := c.namedContextFor(st.Name, s.platform, s.reads)
			if err != nil {
				return err
			}
			if nc != nil {
				s.replaced = nc
				c.stages.add(s)
				s.base = nil
				continue
			}
		}
		if s.shown == "" {
			s.shown = "stage-" + strconv.Itoa(i)
		}
		c.stages.add(s)
		if s.base != nil {
			s.outline.inherit(&s.base.outline)
		}
		for _, cmd := range st.Commands {
			s.steps = append(s.steps, step{Command: cmd})
		}
		s.counter.total = countedSteps(s)
		s.noCache = c.opts.ignoresCache(st.Name)
	}
	return nil
}

// countedSteps is how many steps of the stage progress counts: those that may make
// a vertex.
func countedSteps(s *stage) int {
	n := 0
	if s.from != scratch && s.base == nil {
		n++
	}
	for _, st := range s.steps {
		switch st.Command.(type) {
		case *instructions.AddCommand, *instructions.CopyCommand, *instructions.RunCommand, *instructions.WorkdirCommand:
			n++
		}
	}
	return n
}

// connectStages finds the stages that steps name, and refuses circles.
func (c *compiler) connectStages() error {
	// Images that steps name are added while this goes on, and have no steps.
	for _, s := range slices.Clone(c.stages.list) {
		for i := range s.steps {
			if _, err := c.connect(s, &s.steps[i]); err != nil {
				return err
			}
		}
	}
	if err := checkCircles(c.stages.list); err != nil {
		return err
	}
	if len(c.stages.list) == 1 {
		c.stages.list[0].shown = ""
	}
	return nil
}

// connect finds the stages that one step names, and reports whether there are any.
func (c *compiler) connect(s *stage, st *step) (any bool, err error) {
	switch cmd := st.Command.(type) {
	case *instructions.CopyCommand:
		if cmd.From == "" {
			return false, nil
		}
		src, err := c.copySource(cmd)
		if err != nil {
			return false, parser.WithLocation(err, cmd.Location())
		}
		st.sources = []*stage{src}
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(cmd) {
			from := m.From
			if from == "" {
				from = scratch
			}
			src := c.stages.find(from)
			if src == nil {
				src = newImageStage(from, cmd.Location())
			}
			st.sources = append(st.sources, src)
		}
	}
	for _, src := range st.sources {
		s.needs = append(s.needs, need{src, st.Command})
		if src.isImage {
			c.stages.add(src)
		}
	}
	return len(st.sources) > 0, nil
}

// copySource is the stage that COPY --from names: by number, by name, or an image.
func (c *compiler) copySource(cmd *instructions.CopyCommand) (*stage, error) {
	word, err := c.lex.ProcessWordWithMatches(cmd.From, shell.EnvsFromSlice(nil))
	if err != nil {
		return nil, err
	}
	if word.Result != cmd.From {
		return nil, errors.New("variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround")
	}
	if index, err := strconv.Atoi(cmd.From); err == nil {
		return c.stages.at(index)
	}
	if s := c.stages.find(cmd.From); s != nil {
		return s, nil
	}
	return newImageStage(cmd.From, cmd.Location()), nil
}

func newImageStage(ref string, at []parser.Range) *stage {
	return &stage{from: ref, location: at, isImage: true, reads: paths{}}
}

// checkCircles refuses stages that, through others, read themselves.
func checkCircles(list []*stage) error {
	visited := map[*stage]bool{}
	onPath := map[*stage]bool{}
	var visit func(s *stage, path []need) error
	visit = func(s *stage, path []need) error {
		if visited[s] {
			return nil
		}
		visited[s], onPath[s] = true, true
		defer delete(onPath, s)
		for _, n := range s.needs {
			next := append(path, n)
			if onPath[n.stage] {
				return circle(next)
			}
			if err := visit(n.stage, next); err != nil {
				return err
			}
		}
		return nil
	}
	for _, s := range list {
		if err := visit(s, nil); err != nil {
			return err
		}
	}
	return nil
}

func circle(path []need) error {
	closes := path[len(path)-1]
	err := fmt.Errorf("circular dependency detected on stage: %s", closes.shown)
	for _, n := range path {
		err = parser.WithLocation(err, n.by.Location())
	}
	return err
}

// neededBy gives the stages that a stage is made of.
func neededBy(target *stage) map[*stage]bool {
	out := map[*stage]bool{}
	todo := []*stage{target}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if s == nil || out[s] {
			continue
		}
		out[s] = true
		todo = append(todo, s.base)
		for _, n := range s.needs {
			todo = append(todo, n.stage)
		}
	}
	return out
}

// runStage works out what a stage comes to: its base, and its steps on top.
func (c *compiler) runStage(s *stage) error {
	s.begin()
	s.done = true
	if s.platform == nil {
		s.platform = &c.platforms.target
	}
	img := s.state.image
	if _, ok := shell.EnvsFromSlice(img.Config.Env).Get("PATH"); !ok && s.platform.OS != "windows" {
		img.Config.Env = append(img.Config.Env, "PATH="+system.DefaultPathEnv(s.platform.OS))
	}
	for _, kv := range img.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		s.state.env.set(k, v)
	}
	if wd := img.Config.WorkingDir; wd != "" {
		abs, err := system.NormalizeWorkdir(wd, wd, s.platform.OS)
		if err != nil {
			return parser.WithLocation(fmt.Errorf("normalizing workdir: %w", err), s.location)
		}
		img.Config.WorkingDir = abs
	}
	for _, st := range s.steps {
		if err := c.runStep(s, st); err != nil {
			if st.trigger != nil {
				return st.trigger.explain(err, s.location)
			}
			return parser.WithLocation(err, st.Location())
		}
	}
	return nil
}

// begin starts a stage's state from its base stage's, where it has one.
func (s *stage) begin() {
	b := s.base
	if b == nil {
		if s.state.env == nil {
			s.state.env = &environment{}
		}
		return
	}
	s.state = state{
		root:       b.state.root,
		env:        b.state.env.clone(),
		args:       slices.Clone(b.state.args),
		image:      cloneImage(b.state.image),
		base:       b.state.base,
		workdirSet: b.state.workdirSet,
	}
	// Triggers are for the stages right above.
	s.state.image.Config.OnBuild = nil
	s.platform = b.platform
	s.reads = b.reads
}
