package executor

import (
	"context"
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

// The spec that the comparison stands on is docker's.
func TestOCISpecIsDockers(t *testing.T) {
	s := shell(t, "true")
	spec, err := ociSpec(&s, user{}, nil, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"} {
		if !slices.Contains(spec.Linux.MaskedPaths, p) {
			t.Errorf("%s is not masked", p)
		}
	}
	for _, p := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		if !slices.Contains(spec.Linux.ReadonlyPaths, p) {
			t.Errorf("%s is not read-only", p)
		}
	}
	caps := slices.Clone(spec.Process.Capabilities.Bounding)
	slices.Sort(caps)
	want := []string{"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"}
	if !slices.Equal(caps, want) {
		t.Errorf("capabilities %v", caps)
	}
	if spec.Process.NoNewPrivileges {
		t.Error("no_new_privs is set, which BuildKit does not")
	}
	if spec.Linux.Seccomp == nil || len(spec.Linux.Seccomp.Syscalls) < 10 {
		t.Error("there is no seccomp profile")
	}
}
