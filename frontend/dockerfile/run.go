package dockerfile

import (
	"fmt"
	"path"
	"strings"

	"github.com/kiln-build/kiln/llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// run is RUN: a process, and what it leaves is a layer.
func (l *line) run(c *instructions.RunCommand) error {
	st := &l.stage.state
	// A process can read anything.
	l.stage.reads.add("/")
	p := &process{root: st.root, options: &l.opts.run, platform: *l.stage.platform}
	args, note, err := l.runArgs(c, p)
	if err != nil {
		return err
	}
	if err := l.addMounts(c, p); err != nil {
		return err
	}
	if err := l.setIsolation(c, p); err != nil {
		return err
	}
	env := st.env.list()
	p.meta = &pb.Meta{
		Args:                      args,
		Env:                       env,
		Cwd:                       l.stage.dir(),
		User:                      st.image.Config.User,
		RemoveMountStubsRecursive: true,
	}
	created := "RUN " + l.runHistory(args) + " # buildkit"
	if err := l.budget.addStep(args, env, []string{created}); err != nil {
		return err
	}
	p.about = l.meta(l.runTitle(c, note))
	p.about.Description = describe(c.String())
	p.about.Resources = l.opts.run.resources
	st.root = p.fsys()
	l.commit(created, true)
	return nil
}

// runArgs gives the arguments of the process, and what the vertex's name adds of a
// heredoc.
func (l *line) runArgs(c *instructions.RunCommand, p *process) (args []string, note string, err error) {
	args = c.CmdLine
	if len(c.Files) > 0 {
		if len(args) != 1 || !c.PrependShell {
			return nil, "", fmt.Errorf("parsing produced an invalid run command: %v", args)
		}
		if parser.MustParseHeredoc(args[0]) != nil {
			args = l.heredocArgs(c.Files[0], p)
			note = " (" + summary(c.Files[0].Data) + ")"
		} else {
			args = []string{withHeredocs(args[0], c.Files)}
		}
	}
	if c.PrependShell {
		args = withShell(l.stage.state.image, args)
	}
	return args, note, nil
}

// heredocArgs is RUN <<EOF: a script. One that names its interpreter becomes a file
// that is mounted; any other is given to the shell whole, so that shells without
// heredocs run it too.
func (l *line) heredocArgs(file instructions.ShellInlineFile, p *process) []string {
	data := file.Data
	if file.Chomp {
		data = parser.ChompHeredocContent(data)
	}
	if l.stage.state.image.OS == "windows" || !strings.HasPrefix(data, "#!") {
		return []string{data}
	}
	const folder = "/dev/pipes/"
	p.mounts = append(p.mounts, mount{
		from:  inlineFile(file.Name, 0o755, data),
		Mount: &pb.Mount{Dest: folder, Selector: "/", Readonly: true},
	})
	return []string{path.Join(folder, file.Name)}
}

// withHeredocs puts back the heredocs that the parser took out of a command, for
// the shell to read.
func withHeredocs(command string, files []instructions.ShellInlineFile) string {
	var b strings.Builder
	b.WriteString(command)
	for _, f := range files {
		b.WriteByte('\n')
		b.WriteString(f.Data)
		b.WriteString(f.Name)
	}
	return b.String()
}

// summary is the first line of a heredoc.
func summary(doc string) string {
	first, _, more := strings.Cut(strings.TrimSpace(doc), "\n")
	if more {
		return strings.TrimSuffix(first, "\r") + "..."
	}
	return first
}

func (l *line) setIsolation(c *instructions.RunCommand, p *process) error {
	switch mode := instructions.GetNetwork(c); mode {
	case instructions.NetworkDefault:
		p.network = p.options.network
	case instructions.NetworkNone:
		p.network = pb.NetMode_NONE
	case instructions.NetworkHost:
		p.network = pb.NetMode_HOST
	default:
		return fmt.Errorf("unsupported network mode %q", mode)
	}
	switch mode := instructions.GetSecurity(c); mode {
	case instructions.SecuritySandbox:
	case instructions.SecurityInsecure:
		p.security = pb.SecurityMode_INSECURE
	default:
		return fmt.Errorf("unsupported security mode %q", mode)
	}
	for _, d := range instructions.GetDevices(c) {
		p.devices = append(p.devices, &pb.CDIDevice{Name: d.Name, Optional: !d.Required})
	}
	return nil
}

// runTitle is the vertex's name. Secrets in the environment are shown as stars.
func (l *line) runTitle(c *instructions.RunCommand, note string) string {
	lex := *l.lex
	lex.RawQuotes = true
	lex.SkipUnsetEnv = true
	text := l.shown(&lex, c.String()+note, maskSecrets(c, l.stage.state.env))
	return l.compiler.title(l.stage, text, l.stage.state.env, l.step.trigger != nil)
}

// runHistory is the command with the build arguments that it saw:
// "|1 A=b /bin/sh -c make".
func (l *line) runHistory(args []string) string {
	var given []string
	index := map[string]int{}
	for _, arg := range l.stage.state.args {
		v, ok := l.stage.state.env.Get(arg.Key)
		if !ok {
			v = arg.ValueString()
		}
		i, seen := index[arg.Key]
		if !seen {
			i = len(given)
			index[arg.Key] = i
			given = append(given, "")
		}
		given[i] = arg.Key + "=" + v
	}
	var words []string
	if len(given) > 0 {
		words = append([]string{fmt.Sprintf("|%d", len(given))}, given...)
	}
	return strings.Join(append(words, args...), " ")
}

// maskedEnv hides the variables that a step gets from secrets.
type maskedEnv struct {
	*environment
	secret map[string]bool
}

func maskSecrets(c *instructions.RunCommand, env *environment) shell.EnvGetter {
	m := &maskedEnv{environment: env, secret: map[string]bool{}}
	for _, mnt := range instructions.GetMounts(c) {
		if mnt.Type == instructions.MountTypeSecret && mnt.Env != nil {
			m.secret[*mnt.Env] = true
		}
	}
	return m
}

// Get is the value of a variable, or stars.
func (m *maskedEnv) Get(key string) (string, bool) {
	if m.secret[key] {
		return "****", true
	}
	return m.environment.Get(key)
}

// process is an exec vertex in the making.
type process struct {
	root      *fsys
	options   *runOptions
	platform  ocispecs.Platform
	meta      *pb.Meta
	mounts    []mount
	secretEnv []*pb.SecretEnv
	ssh       []mount
	devices   []*pb.CDIDevice
	network   pb.NetMode
	security  pb.SecurityMode
	about     llb.Meta
}

// fsys is the root file system that the process leaves.
func (p *process) fsys() *fsys {
	return &fsys{make: func() (llb.Edge, error) {
		root, err := p.root.get()
		if err != nil {
			return llb.Edge{}, err
		}
		x := &llb.Exec{
			Meta: p.meta, Network: p.network, Security: p.security,
			SecretEnv: p.secretEnv, Devices: p.devices,
		}
		p.applyOptions()
		x.Mounts = append(x.Mounts, llb.Root(root))
		for _, m := range p.sortedMounts() {
			from, err := m.from.get()
			if err != nil {
				return llb.Edge{}, err
			}
			x.Mounts = append(x.Mounts, llb.Mount{From: from, Mount: m.Mount, NoOutput: m.noOutput})
		}
		return output(x.Vertex(forPlatform(p.platform), llb.WithMeta(p.about)))
	}}
}

// applyOptions adds what the request gives every step.
func (p *process) applyOptions() {
	o := p.options
	p.meta.Hostname = o.hostname
	p.meta.CgroupParent = o.cgroupParent
	p.meta.ExtraHosts = o.hosts
	p.meta.Ulimit = o.ulimits
	p.meta.ProxyEnv = o.proxy
	if len(p.ssh) > 0 && !hasEnv(p.meta.Env, "SSH_AUTH_SOCK") {
		p.meta.Env = append(p.meta.Env, "SSH_AUTH_SOCK="+p.ssh[0].Dest)
	}
}

func hasEnv(env []string, key string) bool {
	for _, kv := range env {
		if strings.HasPrefix(kv, key+"=") {
			return true
		}
	}
	return false
}
