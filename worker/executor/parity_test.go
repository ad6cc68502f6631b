package executor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What a process sees of itself and may do in kiln's own sandbox is compared with
// what it does in runc with docker's default spec: nowhere may kiln be laxer.
func TestParityWithRunc(t *testing.T) {
	layer := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(layer, "probe"), "./testdata/probe")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the probe: %v\n%s", err, out)
	}
	n := newNative(t)
	// A process that wants its parent to trace it gets no further by that, and kiln no less far.
	traced, err := output(t, n, onLayers(t, []string{busybox, layer}, "/probe", "traceme"))
	checkExit(t, err, 3, nil)
	if traced != "traced\ttrue\n" {
		t.Errorf("a traced process wrote %q", traced)
	}
	o, err := NewOCI(Options{Dir: t.TempDir()}, "runc")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	for _, user := range []string{"", "1000:1000"} {
		t.Run("user "+user, func(t *testing.T) {
			probe := func(e Executor) map[string]string {
				s := onLayers(t, []string{busybox, layer}, "/probe")
				s.User = user
				var out strings.Builder
				s.Stdout = &out
				if err := e.Run(context.Background(), s); err != nil {
					t.Fatal(err)
				}
				seen := map[string]string{}
				for line := range strings.Lines(out.String()) {
					k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
					seen[k] = v
				}
				return seen
			}
			kiln, runc := probe(n), probe(o)
			if len(kiln) < 100 || len(runc) < 100 {
				t.Fatalf("the probe saw %d and %d things", len(kiln), len(runc))
			}
			for name, k := range kiln {
				r, ok := runc[name]
				if why := laxer(name, k, r, ok); why != "" {
					t.Errorf("%s: kiln has %q, runc %q: %s", name, k, r, why)
				}
			}
			for name, r := range runc {
				if _, ok := kiln[name]; !ok && strings.HasPrefix(name, "mount.") && !strings.HasPrefix(name, "mount./sys/fs/cgroup/") {
					t.Errorf("%s: runc has %q, kiln nothing", name, r)
				}
			}
		})
	}
}

// laxer says why a value of kiln's permits more than runc's.
func laxer(name, kiln, runc string, inRunc bool) string {
	kind, what, _ := strings.Cut(name, ".")
	switch kind {
	case "status":
		return laxerStatus(what, kiln, runc)
	case "mount":
		return laxerMount(what, kiln, runc, inRunc)
	case "writable", "open", "dev":
		if !inRunc {
			return "runc has none"
		}
	case "device":
		if !inRunc || kiln == "ok" && runc != "ok" {
			return "it can be used"
		}
	case "content", "clone":
		if kiln == "true" && runc != "true" {
			return "it can be used"
		}
	case "call":
		refused := []string{"EPERM", "ENOSYS", "EACCES"}
		if slices.Contains(refused, runc) && !slices.Contains(refused, kiln) {
			return "it is let through"
		}
	default:
		if kiln != runc {
			return "they differ"
		}
	}
	return ""
}

func laxerStatus(what, kiln, runc string) string {
	switch what {
	case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
		k, _ := strconv.ParseUint(kiln, 16, 64)
		r, _ := strconv.ParseUint(runc, 16, 64)
		if k&^r != 0 {
			return "more capabilities"
		}
	default:
		if kiln != runc {
			return "they differ"
		}
	}
	return ""
}

func laxerMount(what, kiln, runc string, inRunc bool) string {
	if !inRunc {
		// Cgroups of other controllers, and all of them read-only.
		if strings.HasPrefix(what, "/sys/fs/cgroup/") && strings.HasPrefix(kiln, "ro,nosuid,nodev,noexec") {
			return ""
		}
		return "runc has no such mount"
	}
	options := func(s string) []string {
		o, _, _ := strings.Cut(s, " ")
		return strings.Split(o, ",")
	}
	for _, o := range options(runc) {
		if slices.Contains([]string{"ro", "nosuid", "nodev", "noexec"}, o) && !slices.Contains(options(kiln), o) {
			return "without " + o
		}
	}
	return ""
}

// The spec that the comparison stands on is docker's, to the letter: the files in
// testdata were compared with what buildkitd v0.33.1 hands to runc, and change by
// hand alone.
func TestOCISpecIsDockers(t *testing.T) {
	for _, test := range []struct {
		file string
		spec func(*Spec)
		user user
		env  []string
	}{
		{"ocispec.json", func(*Spec) {}, user{}, []string{"PATH=/bin"}},
		// A user, limits, a network of its own, a terminal: what a step may change.
		{"ocispec-options.json", func(s *Spec) {
			s.Network, s.Hostname, s.Cwd = NetworkNone, "host", "work"
			s.Resources = Resources{Memory: 1 << 20, MemorySwap: 2 << 20, CPUShares: 3, CPUPeriod: 4, CPUQuota: 5, CPUSetCPUs: "0", CPUSetMems: "0", PIDs: 6, ShmSize: 7 << 20}
			s.Ulimits = []Ulimit{{Name: "nofile", Soft: 8, Hard: 9}, {Name: "core", Soft: -1, Hard: -1}}
			s.Root.ReadOnly = true
		}, user{uid: 1, gid: 2, groups: []uint32{2, 3}}, nil},
		{"ocispec-insecure.json", func(s *Spec) { s.Insecure = true }, user{}, nil},
	} {
		s := Spec{ID: "step", Args: []string{"/bin/true"}, Network: NetworkHost}
		test.spec(&s)
		spec, err := ociSpec(&s, test.user, test.env, "/root-of-the-step", nil)
		if err != nil {
			t.Fatal(err)
		}
		// How many processors there are is the machine's affair.
		spec.Linux.MaskedPaths = slices.DeleteFunc(spec.Linux.MaskedPaths, func(p string) bool { return strings.HasSuffix(p, "/thermal_throttle") })
		got, err := json.MarshalIndent(spec, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join("testdata", test.file))
		if err != nil {
			t.Fatal(err)
		}
		if line := differentLine(string(got)+"\n", string(want)); line != "" {
			t.Errorf("%s: %s", test.file, line)
		}
	}
}

// differentLine gives the first line in which two texts differ.
func differentLine(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		switch {
		case i >= len(g):
			return fmt.Sprintf("line %d: got nothing, want %s", i+1, w[i])
		case i >= len(w):
			return fmt.Sprintf("line %d: got %s, want nothing", i+1, g[i])
		case g[i] != w[i]:
			return fmt.Sprintf("line %d: got %s, want %s", i+1, g[i], w[i])
		}
	}
	return ""
}
