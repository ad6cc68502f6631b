package cgroup

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettings(t *testing.T) {
	cases := []struct {
		name    string
		l       Limits
		unified string // file=value, in order
		old     string
	}{
		{"none", Limits{}, "", ""},
		{"memory", Limits{Memory: 1 << 20}, "memory.max=1048576", "memory.limit_in_bytes=1048576"},
		// docker counts memory and swap together, the unified tree swap alone
		{"swap", Limits{Memory: 100, MemorySwap: 150}, "memory.max=100 memory.swap.max=50", "memory.limit_in_bytes=100 memory.memsw.limit_in_bytes=150"},
		{"no limit of swap", Limits{MemorySwap: -1}, "memory.swap.max=max", "memory.memsw.limit_in_bytes=-1"},
		{"shares", Limits{CPUShares: 1024}, "cpu.weight=39", "cpu.shares=1024"},
		{"the most shares", Limits{CPUShares: 1 << 30}, "cpu.weight=10000", "cpu.shares=1073741824"},
		{"quota", Limits{CPUQuota: 5000, CPUPeriod: 10000}, "cpu.max=5000 10000 =", "cpu.cfs_period_us=10000 cpu.cfs_quota_us=5000"},
		{"quota of the default period", Limits{CPUQuota: 5000}, "cpu.max=5000 100000 =", "cpu.cfs_period_us=100000 cpu.cfs_quota_us=5000"},
		{"sets", Limits{CPUs: "0-1", Mems: "0"}, "cpuset.cpus=0-1 cpuset.mems=0", "cpuset.cpus=0-1 cpuset.mems=0"},
		{"processes", Limits{PIDs: 9}, "pids.max=9", "pids.max=9"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var unified, old []string
			for _, s := range settings(c.l) {
				unified, old = append(unified, s.file+"="+s.value), append(old, s.oldFile+"="+s.oldValue)
			}
			if got := strings.Join(unified, " "); got != c.unified {
				t.Errorf("unified: got %q, want %q", got, c.unified)
			}
			if got := strings.Join(old, " "); got != c.old {
				t.Errorf("older: got %q, want %q", got, c.old)
			}
		})
	}
}

// A group can be made, limited and removed; one that a dead kiln left is swept.
func TestGroup(t *testing.T) {
	m, err := Find("")
	if err != nil || m == nil {
		t.Fatalf("no cgroups on this machine: %v", err)
	}
	defer m.Close()
	other, err := Find("")
	if err != nil {
		t.Fatal(err)
	}
	other.Close() // takes the folders away
	g, err := m.Create("a/b c", Limits{PIDs: 5, Memory: 1 << 24}, false)
	if err != nil {
		t.Fatal(err)
	}
	if !g.RestrictsDevices() || !g.CountsOOM() || g.OOM() {
		t.Errorf("devices %v, counts OOM %v, OOM %v", g.RestrictsDevices(), g.CountsOOM(), g.OOM())
	}
	dirs := g.Folders()
	if g.unified != "" {
		dirs["the unified tree"] = g.unified
	}
	for _, dir := range dirs {
		if !strings.HasSuffix(dir, "-a_b_c") {
			t.Errorf("the group's folder is %s", dir)
		}
	}
	if err := g.Delete(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}

	for _, top := range append([]string{m.unified}, m.trees["pids"]) {
		if top == "" {
			continue
		}
		ns, _, _ := strings.Cut(m.owner, ".")
		dead, foreign := filepath.Join(top, ns+".999999999.1.1-x"), filepath.Join(top, "1.999999999.1.1-x")
		for _, d := range []string{dead, foreign} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		m.sweep(top)
		if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dead, err)
		}
		if err := os.Remove(foreign); err != nil { // of another pid namespace: not ours to judge
			t.Error(err)
		}
	}
}

// A privileged group is in every tree, and goes with all groups that were made in it.
func TestPrivilegedGroup(t *testing.T) {
	m, err := Find("")
	if err != nil || m == nil {
		t.Fatalf("no cgroups on this machine: %v", err)
	}
	defer m.Close()
	g, err := m.Create("privileged", Limits{}, true)
	if err != nil {
		t.Fatal(err)
	}
	dirs := maps.Clone(g.trees)
	for c := range m.trees {
		if dirs[c] == "" {
			t.Errorf("the group is not in the tree of %s", c)
		}
	}
	if m.unified != "" {
		dirs["the unified one"] = g.unified
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
			t.Error(err)
		}
	}
	if err := g.Delete(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
}

// A limit without its controller is an error, not a limit that is not there.
func TestNoController(t *testing.T) {
	m := &Manager{trees: map[string]string{}, devices: -1, owner: "x."}
	if _, err := m.Create("x", Limits{PIDs: 5}, true); !errors.Is(err, ErrNoController) {
		t.Errorf("got %v", err)
	}
}

// TestDevices gives a group a device more, to be read only, in the unified tree by a
// filter of its own and in the older one by its rules.
func TestDevices(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, older := range []bool{false, true} {
		m, err := Find("")
		if err != nil {
			t.Fatal(err)
		}
		unified, trees, devices := m.unified, m.trees, m.devices
		whole := func() { m.unified, m.trees, m.devices = unified, trees, devices; m.Close() }
		if older {
			m.unified, m.devices = "", -1
		} else {
			m.trees = map[string]string{}
		}
		if older && m.trees["devices"] == "" || !older && m.devices < 0 {
			whole()
			continue // a machine with the other tree alone
		}
		tried++
		g, err := m.Create("devices", Limits{Devices: []Device{{Major: 10, Minor: 229, Access: "r"}, {Block: true, Major: 250, Minor: 7, Access: "rwm"}}}, false)
		if err != nil {
			t.Fatal(err)
		}
		dir := g.unified
		if older {
			dir = g.trees["devices"]
		}
		out, err := exec.Command("sh", "-c", "echo $$ >"+dir+`/cgroup.procs || exit 1
			for d in fuse urandom loop-control; do
				(: </dev/$d) 2>/dev/null && echo read $d
				(: >/dev/$d) 2>/dev/null && echo wrote $d
			done; true`).CombinedOutput()
		if want := "read fuse\nread urandom\nwrote urandom\n"; err != nil || string(out) != want {
			t.Errorf("older tree %v: %v, got %q, want %q", older, err, out, want)
		}
		if err := g.Delete(); err != nil {
			t.Error(err)
		}
		whole()
	}
	if tried == 0 {
		t.Error("this machine filters no devices")
	}
}
