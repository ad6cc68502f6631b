//go:build conformance

// Package conformance runs the integration tests that BuildKit and buildx have of their
// own against `kiln serve`, behind kiln's own tests with the real clients (test/daemon),
// and prints what became of each case.
//
// There are those of BuildKit's client, of its solver, of its bridge to frontends and of
// buildctl; that of its Dockerfile frontend, whose cases run with the daemon's own
// compiler ("builtin") and with BuildKit's, linked into the test ("client"), and, as a
// suite of its own, in an image ("gateway"); and that of buildx, which calls the real
// program. run.sh builds each as a program, in the module
// suite. It starts "buildkitd" anew for every case: a script here, which starts kiln.
// Images come from a registry's folder that is made beforehand (mirror_test.go). A case
// may fail that stands in the suite's list (known.txt, known-dockerfile.txt,
// known-buildx.txt), with the reason why a user is served well all the same, or what the
// machine lacks.
//
// CONFORMANCE_DAEMON names a program to run in kiln's place: with BuildKit's daemon the
// table tells what this machine cannot do.
package conformance

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kiln-build/kiln/test/internal/peer"
)

// daemon stands in for buildkitd: of its flags kiln has those that say where, and
// the configuration; the others turn on what kiln has no second kind of.
const daemon = `#!/bin/sh
root= addr= config=
while [ $# -gt 0 ]; do
	case $1 in
	--root | --addr | --config) eval "${1#--}=\$2"; shift ;;
	--root=* | --addr=* | --config=*) name=${1%%=*}; eval "${name#--}=\${1#*=}" ;;
	esac
	shift
done
exec KILN serve --root "$root" --addr "$addr" --config "$config"
`

// outcome is what became of a case.
type outcome struct {
	name   string // without what all cases have in common
	result string // "pass", "fail", "skip", or nothing where it did not end
	output strings.Builder
}

// suite is the tests of one package.
type suite struct {
	name    string
	program string // the tests' program; beside it lies a link to the package's folder
	worker  string // what the cases' names call the daemon
	known   string // the list of cases that may fail
	env     string // what chooses among the cases
}

var suites = []suite{
	{"client", "client", "oci", "known.txt", ""},
	{"buildctl", "buildctl", "oci", "known.txt", ""},
	{"frontend", "frontend", "oci", "known.txt", ""},
	{"solver", "solver", "oci", "known.txt", ""},
	{"dockerfile", "dockerfile", "oci", "known-dockerfile.txt", ""},
	{"gateway", "dockerfile", "oci", "known-dockerfile.txt", "FRONTEND_GATEWAY_ONLY=local:" + frontendFile},
	{"buildx", "tests", "remote", "known-buildx.txt", "TEST_BUILDX_EXPERIMENTAL=1"},
}

func TestSuite(t *testing.T) {
	programs, peers := os.Getenv("CONFORMANCE_PROGRAMS"), os.Getenv("CONFORMANCE_PEERS")
	if programs == "" || peers == "" {
		t.Fatal("this test is run by run.sh, which builds what it needs")
	}
	dir, err := os.MkdirTemp("", "kc-") // short: sockets lie below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.RemoveAll(dir)
		// Where buildx's suite has its configuration, whatever TMPDIR says.
		left, _ := filepath.Glob("/tmp/buildx-integration-remote-*")
		for _, d := range left {
			os.RemoveAll(d)
		}
	})
	env, err := setUp(dir, peers)
	if err != nil {
		t.Fatal(err)
	}
	pattern, cases := os.Getenv("CONFORMANCE_CASES"), 0
	lists := map[string]map[string]*known{}
	var counts []string
	tell := func(t *testing.T, outcomes []*outcome, err error, list map[string]*known) {
		if err != nil {
			t.Error(err)
		}
		cases += len(outcomes)
		_, name, _ := strings.Cut(t.Name(), "/")
		counts = append(counts, fmt.Sprintf("%-12s %s", name+":", report(t, outcomes, list)))
	}
	t.Run("scripts", func(t *testing.T) {
		outcomes, err := scripts(pattern)
		tell(t, outcomes, err, nil)
	})
	for _, s := range suites {
		if lists[s.known] == nil {
			if lists[s.known], err = readKnown(s.known); err != nil {
				t.Fatal(err)
			}
		}
		t.Run(s.name, func(t *testing.T) {
			env := slices.Clone(env)
			if s.env != "" {
				env = append(env, strings.Replace(s.env, frontendFile, filepath.Join(dir, frontendFile), 1))
			}
			outcomes, err := s.run(programs, pattern, env)
			tell(t, outcomes, err, lists[s.known])
		})
	}
	fmt.Printf("\n%s\n", strings.Join(counts, "\n"))
	if cases == 0 {
		t.Error("no case ran")
	}
	if pattern != "" || len(counts) != 1+len(suites) {
		return
	}
	for file, list := range lists {
		for name, k := range list {
			if !k.seen {
				t.Errorf("%s lists %s, which did not fail", file, name)
			}
		}
	}
}

// setUp makes what the suite finds on its PATH and in its registry, and gives its
// environment.
func setUp(dir, peers string) ([]string, error) {
	program, err := standIn(dir)
	if err != nil {
		return nil, err
	}
	bin, mirror, temp := filepath.Join(dir, "bin"), filepath.Join(dir, "mirror"), filepath.Join(dir, "t")
	for _, d := range []string{bin, mirror, temp} {
		if err := os.Mkdir(d, 0o711); err != nil {
			return nil, err
		}
	}
	registry, err := exec.LookPath("docker-registry")
	if err != nil {
		return nil, fmt.Errorf("`make deps` installs it: %w", err)
	}
	frontend, err := frontendImage(filepath.Join(peers, "dockerfile-frontend"))
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		os.Chmod(dir, 0o711), // steps act as other users
		os.WriteFile(filepath.Join(bin, "buildkitd"), []byte(program), 0o755),
		os.Symlink(registry, filepath.Join(bin, "registry")),
		os.Symlink(filepath.Join(peers, "buildctl"), filepath.Join(bin, "buildctl")),
		os.Symlink(filepath.Join(peers, "buildx"), filepath.Join(bin, "buildx")),
		fillMirror(mirror, frontend),
		tarball.WriteToFile(filepath.Join(dir, frontendFile), name.MustParseReference("dockerfile-frontend:latest"), frontend),
	)
	return append(os.Environ(),
		"PATH="+bin+":"+os.Getenv("PATH"), "BUILDKIT_REGISTRY_MIRROR_DIR="+mirror, "TMPDIR="+temp,
	), err
}

// standIn gives the program that the suites find as buildkitd.
func standIn(dir string) (string, error) {
	if other := os.Getenv("CONFORMANCE_DAEMON"); other != "" {
		return "#!/bin/sh\nexec '" + other + "' \"$@\"\n", nil
	}
	kiln, err := peer.BuildKiln(dir)
	return strings.Replace(daemon, "KILN", kiln, 1), err
}

var (
	// prefix is what all names of cases have in common in one of the suites' tests.
	prefix = regexp.MustCompile(`^Test[A-Za-z]*Integration/`)
	// worker is the part of a case's name that names the daemon.
	worker = regexp.MustCompile(`/worker=(oci|remote)\b`)
)

// caseName gives the name by which the lists have a case.
func caseName(test string) string {
	return worker.ReplaceAllString(prefix.ReplaceAllString(test, ""), "")
}

// run runs the suite's cases whose names match a pattern, all where it is empty, and
// gives those that have no cases below them. A case that panics ends the whole program:
// what has not ended by then is run anew without it.
func (s *suite) run(programs, pattern string, env []string) ([]*outcome, error) {
	if pattern == "" {
		pattern = "."
	}
	all := map[string]*outcome{}
	for {
		before := len(ended(all))
		if err := s.runOnce(programs, pattern, env, all); err != nil {
			return leaves(all), err
		}
		panicked := false
		for _, o := range all {
			if i := strings.Index(o.output.String(), "\npanic: "); i >= 0 && o.result != "pass" {
				panicked = true
				o.result = "fail"
			}
		}
		if !panicked || len(ended(all)) == before {
			return leaves(all), nil
		}
	}
}

// ended gives the names of the suite's functions whose cases have all ended.
func ended(all map[string]*outcome) []string {
	open, names := map[string]bool{}, map[string]bool{}
	for name, o := range all {
		function, _, _ := strings.Cut(name, "/")
		names[function] = true
		if o.result == "" {
			open[function] = true
		}
	}
	var list []string
	for name := range names {
		if !open[name] {
			list = append(list, regexp.QuoteMeta(name))
		}
	}
	sort.Strings(list)
	return list
}

// runOnce runs what has not ended yet, and notes what becomes of it. A pattern has a
// case's name as the lists have it: what runs it is named behind its first part.
func (s *suite) runOnce(programs, pattern string, env []string, all map[string]*outcome) error {
	skip := "TestCompatibility"
	if done := ended(all); len(done) > 0 {
		skip += "|Integration/^(" + strings.Join(done, "|") + ")$"
	}
	name, within, inner := strings.Cut(pattern, "/")
	name = "Integration/(" + name + ")/worker=" + s.worker
	if inner {
		name += "/" + within
	}
	program := filepath.Join(programs, s.program)
	cmd := exec.Command("go", "tool", "test2json", program+".test", "-test.v=test2json", "-test.timeout=40m",
		"-test.run", name, "-test.skip", skip)
	cmd.Dir, cmd.Env = program+".dir", env
	return execute(cmd, all, func(test string) string {
		if !worker.MatchString(test) {
			return ""
		}
		return caseName(test)
	})
}

// scripts runs kiln's own tests with the real clients whose names match a pattern, all
// where it is empty: a case for each script, and for each verb and method of the clients.
func scripts(pattern string) ([]*outcome, error) {
	all := map[string]*outcome{}
	cmd := exec.Command("go", "test", "-json", "-count=1", "-timeout=40m", "-run", pattern, "../daemon")
	err := execute(cmd, all, func(test string) string { return test })
	if err == nil && pattern == "" && len(all) == 0 {
		err = errors.New("no test of ../daemon ran; `go vet ./test/daemon` may say why")
	}
	var list []*outcome
	for name, o := range all {
		whole := true
		for other := range all {
			whole = whole && !strings.HasPrefix(other, name+"/")
		}
		if whole {
			list = append(list, o)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].name < list[j].name })
	return list, err
}

// execute runs tests, and notes what becomes of those that name has a name for.
func execute(cmd *exec.Cmd, all map[string]*outcome, name func(test string) string) error {
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = read(out, all, name)
	_, drain := io.Copy(io.Discard, out)
	var exit *exec.ExitError
	if wait := cmd.Wait(); wait != nil && !errors.As(wait, &exit) {
		err = errors.Join(err, wait)
	}
	return errors.Join(err, drain)
}

// read reads what test2json writes.
func read(out io.Reader, all map[string]*outcome, nameOf func(test string) string) error {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("reading what the suite writes: %w", err)
		}
		name := nameOf(e.Test)
		if name == "" {
			continue
		}
		o := all[name]
		if o == nil {
			o = &outcome{name: name}
			all[name] = o
		}
		switch e.Action {
		case "pass", "fail", "skip":
			o.result = e.Action
		case "output":
			o.output.WriteString(e.Output)
		}
	}
	return lines.Err()
}

// leaves gives the cases, in order: of one that has cases within it, those that
// failed, or itself.
func leaves(all map[string]*outcome) []*outcome {
	inner := map[string]bool{}
	for name, o := range all {
		if o.result == "pass" || o.result == "skip" {
			continue
		}
		// The case within may be deeper than the next part of the name.
		for i, c := range name {
			if c == '/' {
				inner[name[:i]] = true
			}
		}
	}
	var list []*outcome
	for name, o := range all {
		if i := strings.LastIndexByte(name, '/'); i > 0 && (o.result == "pass" || o.result == "skip") && all[name[:i]] != nil {
			continue // the case that it is part of tells
		}
		if !inner[name] || o.result == "pass" {
			list = append(list, o)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].name < list[j].name })
	return list
}

// report prints the table and gives the counts, and fails for what is not expected.
func report(t *testing.T, outcomes []*outcome, expected map[string]*known) string {
	count := map[string]int{}
	var unexpected []*outcome
	for _, o := range outcomes {
		word, note := o.result, ""
		switch k := expected[o.name]; {
		case k != nil && o.result != "pass":
			k.seen = true
			word, note = "known", k.reason
		case o.result == "fail" || o.result == "":
			word, note = "FAIL", o.message()
			unexpected = append(unexpected, o)
		case o.result == "skip":
			note = o.skipped()
		}
		count[word]++
		fmt.Printf("%-60s %-6s %s\n", o.name, word, note)
	}
	for _, o := range unexpected {
		t.Errorf("%s\n%s", o.name, last(o.output.String(), 6000))
	}
	return fmt.Sprintf("%d passed, %d known, %d skipped, %d failed", count["pass"], count["known"], count["skip"], count["FAIL"])
}

// message gives the lines of a case's output that say what went wrong.
func (o *outcome) message() string {
	lines := strings.Split(o.output.String(), "\n")
	for i, line := range lines {
		if !strings.Contains(line, "Error:      ") && !strings.Contains(line, "panic:") {
			continue
		}
		var words []string
		for _, l := range lines[i:min(i+4, len(lines))] {
			l = strings.TrimSpace(strings.Replace(l, "Error:", "", 1))
			if strings.HasPrefix(l, "github.com/") || strings.HasPrefix(l, "Test:") || strings.HasPrefix(l, "/") {
				break
			}
			words = append(words, l)
		}
		text := strings.Join(strings.Fields(strings.Join(words, " ")), " ")
		return text[:min(len(text), 300)]
	}
	return "no message"
}

// skipLine is the line by which a case says why it skips itself.
var skipLine = regexp.MustCompile(`(?m)^\s+\S+\.go:\d+: (.*)\n.*--- SKIP`)

// skipped gives the reason for which a case was skipped.
func (o *outcome) skipped() string {
	if m := skipLine.FindStringSubmatch(o.output.String()); m != nil {
		return m[1]
	}
	return ""
}

func last(s string, n int) string { return s[max(0, len(s)-n):] }
