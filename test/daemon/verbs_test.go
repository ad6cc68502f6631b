package daemon

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// undriven are verbs and flags of the clients that no script drives, with the reason.
// What stands for a verb stands for its flags.
var undriven = map[string]string{
	"buildctl debug dump-metadata": "reads the database of a buildkitd that does not run",
	"buildx dap build":             "speaks the protocol of an editor's debugger, which buildx's own suite does (test/conformance)",
	"buildx debug":                 "needs a terminal: TestBuildxDebug",
	"buildx debug build":           "needs a terminal: TestBuildxDebug",
	"buildx dap attach":            "needs the terminal of an editor",
	"buildx history import":        "sends records to Docker Desktop",
	"buildx history open":          "opens Docker Desktop",
	"buildx install":               "changes the configuration of Docker's own command",
	"buildx uninstall":             "changes the configuration of Docker's own command",
}

// hidden are those that the clients have and their help leaves out.
// The flags of Docker's older builds that buildx takes and does nothing with are left out.
var hidden = map[string][]string{
	"buildctl dial-stdio": nil,
	"buildx bake":         {"--list-targets", "--list-variables"},
	"buildx build":        {"--print", "--memory", "--memory-swap", "--cpu-shares", "--cpu-period", "--cpu-quota", "--cpuset-cpus", "--cpuset-mems"},
	"buildx create":       {"--config"},
	"buildx dap attach":   nil,
	"buildx install":      nil,
	"buildx policy eval":  {"--filename"},
	"buildx prune":        {"--keep-storage"},
	"buildx uninstall":    nil,
}

// sameFlags are verbs that are another verb with something around it, and take that
// one's flags.
var sameFlags = map[string]string{
	"buildx debug build": "buildx build",
	"buildx dap build":   "buildx build",
}

// TestEveryVerbIsDriven holds what the clients' own help lists against the scripts of
// testdata: each verb, and each flag of each verb, stands in one, or in undriven.
func TestEveryVerbIsDriven(t *testing.T) {
	has := map[string]*verb{}
	for _, client := range []string{"buildctl", "buildx"} {
		readHelp(t, has, client)
	}
	for name, words := range hidden {
		if has[name] == nil {
			has[name] = newVerb()
		}
		for _, w := range words {
			has[name].flags[w] = w
		}
	}
	for name, of := range sameFlags {
		if has[name] == nil {
			t.Fatalf("the clients have no %s", name)
		}
		got, want := has[name].names(), has[of].names()
		if !slices.Equal(got, slices.DeleteFunc(want, func(f string) bool { return slices.Contains(hidden[of], f) })) {
			t.Errorf("%s has other flags than %s: %v, %v", name, of, got, want)
		}
		clear(has[name].flags)
	}
	driven := map[string]bool{}
	for _, file := range scripts(t) {
		for _, command := range commands(file) {
			drive(driven, has, command)
		}
	}

	wanted := map[string]bool{}
	for name, v := range has {
		if len(v.below) == 0 {
			wanted[name] = true
		}
		for _, f := range v.names() {
			wanted[name+" "+f] = true
		}
	}
	byVerb := map[string][]string{} // with the verb itself, which comes first
	for _, what := range slices.Sorted(maps.Keys(wanted)) {
		verb, _, _ := strings.Cut(what, " -")
		byVerb[verb] = append(byVerb[verb], what)
	}
	for _, verb := range slices.Sorted(maps.Keys(byVerb)) {
		if undriven[verb] != "" {
			continue
		}
		t.Run(verb, func(t *testing.T) {
			for _, what := range byVerb[verb] {
				if !driven[what] && undriven[what] == "" {
					t.Errorf("no script has %q", what)
				}
			}
		})
	}
	for what := range undriven {
		if driven[what] {
			t.Errorf("%q is driven, though the list says that it is not", what)
		}
		if !wanted[what] && has[what] == nil {
			t.Errorf("the list has %q, which the clients have not", what)
		}
	}
}

// verb is a command of a client: the flags that it has itself, each name with the one
// that stands for all of its names, and the verbs below it.
type verb struct {
	flags map[string]string
	below map[string]bool
}

func newVerb() *verb { return &verb{map[string]string{}, map[string]bool{}} }

// names gives the flags, one name for each.
func (v *verb) names() []string {
	return slices.Compact(slices.Sorted(maps.Values(v.flags)))
}

var (
	flagName = regexp.MustCompile(`(?:^|[ ,])(--?[a-zA-Z][a-zA-Z-]*)`)
	verbName = regexp.MustCompile(`^  +([a-z][a-z-]*)`)
)

// readHelp reads a verb's help, and that of all below it.
func readHelp(t *testing.T, has map[string]*verb, name string) {
	t.Helper()
	words := strings.Fields(name)
	cmd := exec.CommandContext(t.Context(), filepath.Join(shared.peers, words[0]), append(words[1:], "--help")...)
	cmd.Env = append(os.Environ(), "BUILDX_EXPERIMENTAL=1", "BUILDX_CONFIG="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s --help: %v\n%s", name, err, out)
	}
	v, section := newVerb(), ""
	has[name] = v
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		if line != "" && line[0] != ' ' {
			section = strings.ToLower(line)
			continue
		}
		switch {
		case strings.HasSuffix(section, "commands:"):
			if m := verbName.FindStringSubmatch(line); m != nil && m[1] != "help" {
				v.below[m[1]] = true
			}
		case section == "flags:" || section == "options:" || section == "global options:" && len(words) == 1:
			names, _, _ := strings.Cut(strings.TrimSpace(line), "   ")
			addFlag(v, names)
		}
	}
	for b := range v.below {
		readHelp(t, has, name+" "+b)
	}
}

// addFlag adds what a line of help says of one flag.
func addFlag(v *verb, line string) {
	var names []string
	for _, m := range flagName.FindAllStringSubmatch(line, -1) {
		names = append(names, m[1])
	}
	if len(names) == 0 || slices.Contains(names, "--help") {
		return
	}
	long := slices.MaxFunc(names, func(a, b string) int { return len(a) - len(b) })
	for _, n := range names {
		v.flags[n] = long
	}
}

// scripts gives the scripts' texts, without the files that come with them.
func scripts(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	var out []string
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		text, _, _ := strings.Cut(string(data), "\n-- ")
		out = append(out, text)
	}
	return out
}

// commands gives the words of each command of a script, with the variables that the
// script sets put in, and those that it gives to a shell one by one.
func commands(script string) [][]string {
	vars, out := map[string]string{}, [][]string{}
	for line := range strings.Lines(script) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		line = os.Expand(strings.TrimSpace(line), func(name string) string {
			if v, ok := vars[name]; ok {
				return v
			}
			return "$" + name
		})
		line = strings.NewReplacer("'", "", `"`, "").Replace(line)
		if set, ok := strings.CutPrefix(line, "env "); ok {
			name, value, _ := strings.Cut(set, "=")
			vars[name] = value
			continue
		}
		for _, part := range regexp.MustCompile(`[;&|()]+`).Split(line, -1) {
			out = append(out, strings.Fields(part))
		}
	}
	return out
}

// drive notes which verb and which flags a command drives.
func drive(driven map[string]bool, has map[string]*verb, words []string) {
	at := slices.IndexFunc(words, func(w string) bool { return w == "buildctl" || w == "buildx" })
	if at < 0 {
		return
	}
	name := words[at]
	above := []string{name}
	for _, w := range words[at+1:] {
		if _, ok := has[name+" "+w]; ok {
			name += " " + w
			above = append(above, name)
			driven[name] = true
			continue
		}
		w, _, _ = strings.Cut(w, "=")
		for _, n := range above {
			if f, ok := has[n].flags[w]; ok {
				driven[n+" "+f] = true
			}
		}
	}
}
