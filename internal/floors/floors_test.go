// Package floors holds the test that keeps imports going one way.
package floors

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/kiln-build/kiln"

// may lists, for each folder of the module, the folders of the module that it
// may import besides itself and what lies below it. docs/architecture.md has the
// same table, with the reasons.
var may = map[string][]string{
	"llb":      {},
	"request":  {},
	"explain":  {},
	"journal":  {"explain", "solver", "cache", "llb"},
	"cache":    {},
	"registry": {"cache/blob"},
	"solver":   {"cache", "llb"},
	"frontend": {"llb"},
	"worker":   {"solver", "cache", "registry", "llb"},
	"exporter": {"cache", "registry", "llb"},
	"":         {"request", "explain", "journal", "frontend", "worker", "exporter", "solver", "cache", "registry", "llb"},
	"daemon":   {"", "request", "explain", "journal", "frontend", "worker", "exporter", "solver", "cache", "registry", "llb"},
	"cmd":      {"", "daemon", "request", "explain", "journal", "frontend", "worker", "exporter", "solver", "cache", "registry", "llb"},
	"internal": {},
	"examples": {"", "request", "explain", "frontend", "llb"},
	"test":     {"", "daemon", "request", "explain", "journal", "frontend", "worker", "exporter", "solver", "cache", "registry", "llb"},
}

// never lists what DESIGN forbids: the parts of BuildKit that kiln replaces.
var never = []string{"solver", "cache", "worker", "executor", "exporter", "snapshot", "source", "control",
	"frontend/dockerfile/dockerfile2llb", "frontend/dockerfile/builder"}

// allowed are the packages of wire types below forbidden folders.
var allowed = []string{"solver/pb"}

func TestImportsGoOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, module+"/...").Output()
	if err != nil {
		t.Fatalf("listing the packages: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		from := strings.TrimPrefix(strings.TrimPrefix(fields[0], module), "/")
		for _, imp := range fields[1:] {
			if problem := check(from, imp); problem != "" {
				t.Errorf("%s imports %s: %s", fields[0], imp, problem)
			}
		}
	}
}

func check(from, imp string) string {
	if rest, ok := strings.CutPrefix(imp, "github.com/moby/buildkit/"); ok && !under(rest, allowed) && under(rest, never) {
		return "kiln has its own"
	}
	if imp != module && !strings.HasPrefix(imp, module+"/") {
		return ""
	}
	to := strings.TrimPrefix(strings.TrimPrefix(imp, module), "/")
	floor, _, _ := strings.Cut(from, "/")
	targets, ok := may[floor]
	if !ok {
		return "the folder " + floor + " is on no floor; give it one here and in docs/architecture.md"
	}
	top, _, _ := strings.Cut(to, "/")
	if top == floor && floor != "" {
		return ""
	}
	if to == "" {
		for _, m := range targets {
			if m == "" {
				return ""
			}
		}
		return "that is on a higher floor"
	}
	if !under(to, targets) {
		return "that is on a higher floor, or beside it"
	}
	return ""
}

// under reports whether path is one of folders or below one.
func under(path string, folders []string) bool {
	for _, f := range folders {
		if f != "" && (path == f || strings.HasPrefix(path, f+"/")) {
			return true
		}
	}
	return false
}

func TestCheckFindsWhatIsForbidden(t *testing.T) {
	for _, c := range []struct {
		from, imp string
		fine      bool
	}{
		{"solver", module + "/cache/tree", true},
		{"solver", module + "/worker", false},                      // upwards
		{"frontend/dockerfile", module + "/solver", false},         // a frontend knows the bridge only
		{"exporter/oci", module + "/worker/layer", false},          // beside it
		{"cmd/kiln", module, true},                                 // the engine
		{"worker", module, false},                                  // the engine, from below
		{"llb", "github.com/moby/buildkit/solver/pb", true},        // wire types
		{"worker", "github.com/moby/buildkit/executor/oci", false}, // forbidden
		{"frontend/dockerfile", "github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb", false},
		{"elsewhere", module + "/llb", false}, // on no floor
	} {
		if problem := check(c.from, c.imp); (problem == "") != c.fine {
			t.Errorf("%s imports %s: got %q, want it allowed: %v", c.from, c.imp, problem, c.fine)
		}
	}
}
