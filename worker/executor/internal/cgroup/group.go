package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Group is that of one step. It is not safe for concurrent use, but
// for Usage.
type Group struct {
	unified string
	dir     int // open on unified; -1 is none
	trees   map[string]string
	joins   []int
	filters bool
	hybrid  bool // there are older trees
	// privileged says that its processes may make groups in it.
	privileged bool
}

// Create makes a group. Devices other than those that every process needs are out
// of its reach, unless it is privileged: then it is in all trees besides, as its
// process may make groups of its own in any. The id makes its name telling.
func (m *Manager) Create(id string, l Limits, privileged bool) (_ *Group, err error) {
	name := m.owner + strconv.FormatInt(m.count.Add(1), 10) + "-" + clean(id)
	g := &Group{dir: -1, trees: map[string]string{}, hybrid: m.hybrid, privileged: privileged}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Delete())
		}
	}()
	if m.unified != "" {
		g.unified = filepath.Join(m.unified, name)
		if err := m.mkdir(g.unified, true); err != nil {
			return nil, err
		}
		if g.dir, err = unix.Open(g.unified, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("opening %s: %w", g.unified, err)
		}
		if m.devices >= 0 && !privileged {
			if err := m.filterDevices(g.dir, l.Devices); err == nil {
				g.filters = true
			}
		}
	}
	if !g.filters && !privileged && m.trees["devices"] != "" {
		dir, err := g.join(m, "devices", name)
		if err != nil {
			return nil, err
		}
		if err := restrictDevices(dir, l.Devices); err != nil {
			return nil, fmt.Errorf("restricting devices: %w", err)
		}
		g.filters = true
	}
	for _, s := range settings(l) {
		if err := g.set(m, name, s); err != nil {
			return nil, fmt.Errorf("limiting %s: %w", s.what, err)
		}
	}
	if l.Count {
		g.count(m, name)
	}
	if privileged {
		return g, g.joinAll(m, name)
	}
	return g, nil
}

// joinAll makes the group in all trees of the machine in which kiln may.
func (g *Group) joinAll(m *Manager, name string) error {
	for c := range m.trees {
		if _, err := g.join(m, c, name); err != nil {
			return err
		}
	}
	m.all.Store(true)
	for c := range m.rest {
		// Kiln may not in this one, or it has no room: the step does without.
		g.join(m, c, name)
	}
	return nil
}

// filterDevices attaches the filter to a group, one of its own where more is allowed.
func (m *Manager) filterDevices(dir int, more []Device) error {
	if len(more) == 0 {
		return attachDeviceFilter(dir, m.devices)
	}
	program, err := loadDeviceFilter(more)
	if err != nil {
		return err
	}
	defer unix.Close(program) // the group holds it
	return attachDeviceFilter(dir, program)
}

// mkdirTries is how often kiln's folder is made anew before somebody who removes
// it each time is an error.
const mkdirTries = 20

// mkdir makes a group's folder. Another kiln that ends removes the folder above
// when it finds it empty, at any moment.
func (m *Manager) mkdir(dir string, unified bool) error {
	above := filepath.Dir(dir)
	for range mkdirTries {
		err := unix.Mkdir(dir, 0o755)
		if err == nil {
			return nil
		}
		if err != unix.ENOENT {
			return fmt.Errorf("making %s: %w", dir, err)
		}
		if !m.usable(above) {
			break
		}
		if unified {
			delegate(above)
		} else {
			inheritCPUs(above)
		}
	}
	return fmt.Errorf("making %s: %w", dir, unix.ENOENT)
}

// clean makes a name of an id.
func clean(id string) string {
	id = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, id)
	return id[:min(len(id), 64)]
}

// join makes the group in one of the older trees.
func (g *Group) join(m *Manager, controller, name string) (string, error) {
	if dir := g.trees[controller]; dir != "" {
		return dir, nil
	}
	top := m.top(controller)
	if top == "" {
		return "", ErrNoController
	}
	dir := filepath.Join(top, name)
	for c, other := range g.trees { // cpu and cpuacct may share a tree
		if m.top(c) == top {
			g.trees[controller] = other
			return other, nil
		}
	}
	if err := m.mkdir(dir, false); err != nil {
		return "", err
	}
	g.trees[controller] = dir
	if controller == "cpuset" {
		inheritCPUs(dir)
	}
	fd, err := unix.Open(filepath.Join(dir, "cgroup.procs"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening %s: %w", dir, err)
	}
	g.joins = append(g.joins, fd)
	return dir, nil
}

// top gives the folder of kiln's groups in the older tree of a controller; empty is none.
func (m *Manager) top(controller string) string {
	if dir := m.trees[controller]; dir != "" {
		return dir
	}
	return m.rest[controller]
}

// A setting is a limit in both forms.
type setting struct {
	what              string
	file, value       string // of the unified tree
	controller        string
	oldFile, oldValue string
	optional          bool // a file that is not there is no error
}

func settings(l Limits) []setting {
	var list []setting
	add := func(s setting) { list = append(list, s) }
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	if l.Memory > 0 {
		add(setting{"memory", "memory.max", num(l.Memory), "memory", "memory.limit_in_bytes", num(l.Memory), false})
	}
	switch {
	case l.MemorySwap > 0:
		// Docker's number counts memory and swap, the unified tree's swap alone.
		add(setting{"swap", "memory.swap.max", num(max(l.MemorySwap-l.Memory, 0)), "memory", "memory.memsw.limit_in_bytes", num(l.MemorySwap), true})
	case l.MemorySwap == -1:
		add(setting{"swap", "memory.swap.max", "max", "memory", "memory.memsw.limit_in_bytes", "-1", true})
	}
	if l.CPUShares > 0 {
		add(setting{"CPU shares", "cpu.weight", num(weight(l.CPUShares)), "cpu", "cpu.shares", num(int64(l.CPUShares)), false})
	}
	if l.CPUQuota != 0 || l.CPUPeriod != 0 {
		period, quota := int64(l.CPUPeriod), "max"
		if period == 0 {
			period = 100000 // the kernel's default
		}
		if l.CPUQuota > 0 {
			quota = num(l.CPUQuota)
		}
		add(setting{"CPU time", "cpu.max", quota + " " + num(period), "cpu", "cpu.cfs_period_us", num(period), false})
		if l.CPUQuota != 0 {
			add(setting{"CPU time", "", "", "cpu", "cpu.cfs_quota_us", num(l.CPUQuota), false})
		}
	}
	if l.CPUs != "" {
		add(setting{"CPUs", "cpuset.cpus", l.CPUs, "cpuset", "cpuset.cpus", l.CPUs, false})
	}
	if l.Mems != "" {
		add(setting{"memory nodes", "cpuset.mems", l.Mems, "cpuset", "cpuset.mems", l.Mems, false})
	}
	if l.PIDs > 0 {
		add(setting{"processes", "pids.max", num(l.PIDs), "pids", "pids.max", num(l.PIDs), false})
	}
	return list
}

// weight turns shares (2 to 262144, 1024 is normal) into the unified tree's weight
// (1 to 10000), end to end as OCI runtimes do.
func weight(shares uint64) int64 {
	shares = min(max(shares, 2), 262144)
	return int64(1 + (shares-2)*9999/262142)
}

func (g *Group) set(m *Manager, name string, s setting) error {
	if s.file != "" && g.unified != "" {
		err := write(g.unified, s.file, s.value)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return err
		}
	} else if s.file == "" && g.trees[s.controller] == "" {
		return nil // was set with the one before it
	}
	dir, err := g.join(m, s.controller, name)
	if err != nil {
		return err
	}
	err = write(dir, s.oldFile, s.oldValue)
	if s.optional && errors.Is(err, os.ErrNotExist) {
		return nil // a kernel that does not count swap
	}
	return err
}

// Dir is open on the group's folder in the unified tree, for a process to be born into; -1 is none.
func (g *Group) Dir() int { return g.dir }

// Joins are files that a process enters the rest of the group by, by writing 0 to each.
func (g *Group) Joins() []int { return g.joins }

// RestrictsDevices says whether the group keeps processes from devices.
func (g *Group) RestrictsDevices() bool { return g.filters }

// Folders are the folders of the group by the names that a process expects in
// /sys/fs/cgroup; none is a machine with the unified tree alone.
func (g *Group) Folders() map[string]string {
	if !g.hybrid {
		return nil
	}
	folders := map[string]string{}
	if g.unified != "" {
		folders["unified"] = g.unified
	}
	for c, dir := range g.trees {
		folders[strings.TrimPrefix(c, "name=")] = dir
	}
	return folders
}

// OOM says whether the kernel killed a process of the group for memory.
func (g *Group) OOM() bool {
	if g.unified != "" && counted(filepath.Join(g.unified, "memory.events")) {
		return true
	}
	dir := g.trees["memory"]
	return dir != "" && counted(filepath.Join(dir, "memory.oom_control"))
}

// CountsOOM says whether OOM can tell.
func (g *Group) CountsOOM() bool {
	if g.trees["memory"] != "" {
		return true
	}
	if g.unified == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(g.unified, "memory.events"))
	return err == nil
}

func counted(file string) bool {
	b, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" && f[1] != "0" {
			return true
		}
	}
	return false
}

// remove removes a folder of the group. Only a privileged process can have made groups
// in it, and only then it is worth looking.
func (g *Group) remove(dir string) error {
	if g.privileged {
		return each(dir, remove)
	}
	return remove(dir)
}

// Delete removes the group, in which no process may be left.
func (g *Group) Delete() error {
	for _, fd := range g.joins {
		unix.Close(fd)
	}
	if g.dir >= 0 {
		unix.Close(g.dir)
		g.dir = -1
	}
	var errs []error
	if g.unified != "" {
		errs = append(errs, g.remove(g.unified))
	}
	for _, dir := range g.trees {
		errs = append(errs, g.remove(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the step's cgroup: %w", err)
	}
	return nil
}
