// Package cgroup gives each step a control group of its own, in whichever form
// the machine has them: the unified hierarchy, the older one with a tree for each
// controller, or both.
//
// In the unified hierarchy a process is born into its group, which costs nothing;
// moving one there, as the older trees demand, can take milliseconds. So with
// both on a machine a group is in the unified tree, and in those of the
// controllers whose limits are asked for.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoController is a limit that no cgroup of this machine can set.
var ErrNoController = errors.New("this machine gives kiln no cgroup controller for it")

// Limits are the limits of a group; zero is none.
type Limits struct {
	Memory, MemorySwap   int64 // bytes; the second counts both, as docker does, and -1 is unlimited
	CPUShares, CPUPeriod uint64
	CPUQuota             int64
	CPUs, Mems           string
	PIDs                 int64
	Devices              []Device // may be used besides those that every process needs
	// Count puts the group into all trees that count what it uses.
	Count bool
}

// Manager makes groups. It is safe for concurrent use.
type Manager struct {
	unified string            // the folder of kiln's groups in the unified tree, or empty
	trees   map[string]string // the folders in the older trees, by controller
	rest    map[string]string // those of controllers that kiln itself has no use for; made when a group wants all
	owner   string            // the start of our groups' names
	count   atomic.Int64
	all     atomic.Bool // a group was made in all trees
	hybrid  bool        // there are older trees
	devices int         // the program that filters devices, or -1

	mu   sync.Mutex
	made []string // the parents that were not there, the inner ones first
}

// folder is that of kiln's groups below the parent group.
const folder = "kiln"

// Find looks for the trees that kiln may use, below the group called parent; the
// default is the root of the unified tree and kiln's own group in the older ones.
// It is nil where there are none. Groups of kilns that were killed are removed.
func Find(parent string) (*Manager, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("looking for cgroups: %w", err)
	}
	defer mounts.Close()
	own, err := ownGroups()
	if err != nil {
		return nil, fmt.Errorf("looking for cgroups: %w", err)
	}
	m := &Manager{trees: map[string]string{}, rest: map[string]string{}, devices: -1}
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		root, at := f[3], f[4]
		switch g[0] {
		case "cgroup2":
			m.unified = filepath.Join(at, parent, folder)
		case "cgroup":
			m.hybrid = true
			for controller := range strings.SplitSeq(g[2], ",") {
				if _, ok := own[controller]; !ok {
					continue
				}
				below := parent
				if below == "" {
					if below, err = filepath.Rel(root, own[controller]); err != nil || strings.HasPrefix(below, "..") {
						below = ""
					}
				}
				m.trees[controller] = filepath.Join(at, below, folder)
			}
		}
	}
	return m.prepare()
}

// ownGroups gives the path of this process's group for each controller.
func ownGroups() (map[string]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	own := map[string]string{}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(f[1], ",") {
			own[controller] = f[2]
		}
	}
	return own, nil
}

// prepare makes kiln's folders, and forgets the trees in which it may not.
func (m *Manager) prepare() (*Manager, error) {
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("looking for cgroups: %w", err)
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("looking for cgroups: %w", err)
	}
	m.owner = fmt.Sprintf("%s.%d.%s.", strings.Trim(ns, "pid:[]"), os.Getpid(), start)
	if m.unified != "" {
		if !m.usable(m.unified) {
			m.unified = ""
		} else {
			delegate(filepath.Dir(m.unified))
			delegate(m.unified)
			m.sweep(m.unified)
			if fd, err := loadDeviceFilter(nil); err == nil {
				m.devices = fd
			}
		}
	}
	for c, dir := range m.trees {
		if !needed[c] {
			m.rest[c] = dir
		}
		if !needed[c] || !m.usable(dir) {
			delete(m.trees, c)
			continue
		}
		m.sweep(dir)
		if c == "cpuset" {
			inheritCPUs(dir)
		}
	}
	if m.unified == "" && len(m.trees) == 0 {
		return nil, nil
	}
	return m, nil
}

// needed are the controllers of the older trees that kiln makes use of.
var needed = map[string]bool{"devices": true, "memory": true, "pids": true, "cpu": true, "cpuset": true}

// usable makes one of kiln's folders, and notes which of those above it were not there.
func (m *Manager) usable(dir string) bool {
	var missing []string
	for d := filepath.Dir(dir); ; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); err == nil {
			break
		}
		missing = append(missing, d)
	}
	if os.MkdirAll(dir, 0o755) != nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made = append(m.made, missing...)
	return true
}

// delegate turns the controllers on for the groups below dir, as far as it goes.
func delegate(dir string) {
	for _, c := range []string{"memory", "pids", "cpu", "cpuset"} {
		write(dir, "cgroup.subtree_control", "+"+c)
	}
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// inheritCPUs fills the sets that a new group of the older tree must have before
// a process can enter it.
func inheritCPUs(dir string) {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), f)); err == nil {
			write(dir, f, strings.TrimSpace(string(b)))
		}
	}
}

// sweep removes the groups of kilns that have ended, of this pid namespace, and
// kills what is left in them.
func (m *Manager) sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		f := strings.SplitN(e.Name(), ".", 4)
		if !e.IsDir() || len(f) != 4 || f[0] != strings.SplitN(m.owner, ".", 2)[0] {
			continue
		}
		pid, err := strconv.Atoi(f[1])
		if err != nil {
			continue
		}
		if start, err := startTime(pid); err == nil && start == f[2] {
			continue
		}
		group := filepath.Join(dir, e.Name())
		each(group, kill)
		each(group, remove)
	}
}

// each calls f for a group and all below it, the inner ones first, until it fails: a
// privileged step makes groups of its own.
func each(group string, f func(dir string) error) error {
	entries, err := os.ReadDir(group)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := each(filepath.Join(group, e.Name()), f); err != nil {
				return err
			}
		}
	}
	return f(group)
}

// kill kills the processes of a group.
func kill(group string) error {
	procs, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if err != nil {
		return nil // a group of threads, or one that has gone
	}
	for line := range strings.Lines(string(procs)) {
		if p, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && p > 1 {
			unix.Kill(p, unix.SIGKILL)
		}
	}
	return nil
}

// startTime is when a process began, in the kernel's ticks: with it a pid that
// was given away again is not taken for the old one.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The name in brackets may hold anything.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return "", fmt.Errorf("reading /proc/%d/stat: it is too short", pid)
	}
	return f[19], nil
}

// removeTries and removePause bound the wait for the kernel to let go of processes that have ended.
const (
	removeTries = 500
	removePause = 2 * time.Millisecond
)

func remove(dir string) error {
	var err error
	for range removeTries {
		if err = unix.Rmdir(dir); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(removePause)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// Close frees the manager, and kiln's folders where no other kiln uses them, with the
// parents that it made. No group of its may be left.
func (m *Manager) Close() {
	if m == nil {
		return
	}
	if m.devices >= 0 {
		unix.Close(m.devices)
	}
	if m.unified != "" {
		unix.Rmdir(m.unified)
	}
	for _, dir := range m.trees {
		unix.Rmdir(dir)
	}
	if m.all.Load() {
		for _, dir := range m.rest {
			unix.Rmdir(dir)
		}
	}
	for _, dir := range m.made {
		unix.Rmdir(dir)
	}
}
