package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kiln-build/kiln/worker/usage"
)

// counting are the controllers of the older trees that a group is put into to be
// measured. It is in none of them for that alone, unless Limits.Count says so.
var counting = []string{"memory", "pids", "cpuacct", "blkio"}

// count puts the group where the machine counts what it uses, as far as kiln may.
func (g *Group) count(m *Manager, name string) {
	if g.unified != "" {
		// Kiln sets no limits of disks, and so this one is not on from the start.
		write(filepath.Dir(filepath.Dir(g.unified)), "cgroup.subtree_control", "+io")
		write(filepath.Dir(g.unified), "cgroup.subtree_control", "+io")
	}
	for _, c := range counting {
		if _, needless := unifiedFile[c]; needless && g.counts(c) {
			continue
		}
		if m.trees[c] == "" && m.rest[c] != "" {
			m.all.Store(true)
		}
		g.join(m, c, name) // without it there are fewer numbers
	}
}

// unifiedFile is the file of the unified tree that has the numbers of a controller.
var unifiedFile = map[string]string{"memory": "memory.stat", "pids": "pids.current", "cpuacct": "cpu.stat", "blkio": "io.stat"}

func (g *Group) counts(controller string) bool {
	if g.unified == "" {
		return false
	}
	_, err := os.Lstat(filepath.Join(g.unified, unifiedFile[controller]))
	return err == nil
}

// Usage gives what the group's processes have used, the ended ones too.
func (g *Group) Usage(at time.Time) *usage.Sample {
	s := &usage.Sample{Timestamp: at}
	if g.unified != "" {
		s.CPU, s.Memory, s.IO = cpuOf(g.unified), memoryOf(g.unified), ioOf(g.unified)
		s.PIDs = pidsOf(g.unified)
	}
	if dir := g.trees["cpuacct"]; s.CPU == nil && dir != "" {
		s.CPU = oldCPU(dir)
	}
	if dir := g.trees["memory"]; dir != "" && (s.Memory == nil || s.Memory.Anonymous == nil) {
		s.Memory = oldMemory(dir, s.Memory)
	}
	if dir := g.trees["blkio"]; dir != "" && (s.IO == nil || s.IO.ReadBytes == nil) {
		s.IO = oldIO(dir, s.IO)
	}
	if dir := g.trees["pids"]; s.PIDs == nil && dir != "" {
		s.PIDs = pidsOf(dir)
	}
	return s
}

// scale multiplies numbers that are there.
func scale(by uint64, numbers ...*uint64) {
	for _, n := range numbers {
		if n != nil {
			*n *= by
		}
	}
}

func cpuOf(dir string) *usage.CPU {
	c := &usage.CPU{}
	if !usage.ReadTable(filepath.Join(dir, "cpu.stat"), map[string]**uint64{
		"usage_usec": &c.UsageNanos, "user_usec": &c.UserNanos, "system_usec": &c.SystemNanos,
		"nr_periods": &c.Periods, "nr_throttled": &c.Throttled, "throttled_usec": &c.ThrottledNanos,
	}, 1) {
		return nil
	}
	scale(1000, c.UsageNanos, c.UserNanos, c.SystemNanos, c.ThrottledNanos)
	c.Pressure = usage.ReadPressure(filepath.Join(dir, "cpu.pressure"))
	return c
}

func oldCPU(dir string) *usage.CPU {
	c := &usage.CPU{
		UsageNanos: usage.ReadNumber(filepath.Join(dir, "cpuacct.usage")), UserNanos: usage.ReadNumber(filepath.Join(dir, "cpuacct.usage_user")),
		SystemNanos: usage.ReadNumber(filepath.Join(dir, "cpuacct.usage_sys")),
	}
	if c.UsageNanos == nil {
		return nil
	}
	return c
}

func memoryOf(dir string) *usage.Memory {
	m := &usage.Memory{}
	counted := usage.ReadTable(filepath.Join(dir, "memory.stat"), map[string]**uint64{
		"anon": &m.Anonymous, "file": &m.File, "kernel_stack": &m.KernelStack, "pagetables": &m.PageTables, "sock": &m.Sock,
		"shmem": &m.Shmem, "file_mapped": &m.FileMapped, "file_dirty": &m.FileDirty, "file_writeback": &m.FileWriteback,
		"slab": &m.Slab, "pgscan": &m.PagesScanned, "pgsteal": &m.PagesStolen, "pgfault": &m.Faults, "pgmajfault": &m.MajorFaults,
	}, 1)
	m.Pressure = usage.ReadPressure(filepath.Join(dir, "memory.pressure"))
	if !counted {
		if m.Pressure == nil {
			return nil
		}
		return m
	}
	var low, high, limit, oom, kill *uint64
	usage.ReadTable(filepath.Join(dir, "memory.events"), map[string]**uint64{
		"low": &low, "high": &high, "max": &limit, "oom": &oom, "oom_kill": &kill,
	}, 1)
	m.LowEvents, m.HighEvents, m.MaxEvents, m.OOMEvents, m.OOMKillEvents = value(low), value(high), value(limit), value(oom), value(kill)
	m.Peak = usage.ReadNumber(filepath.Join(dir, "memory.peak"))
	m.Swap = usage.ReadNumber(filepath.Join(dir, "memory.swap.current"))
	return m
}

func value(n *uint64) uint64 {
	if n == nil {
		return 0
	}
	return *n
}

// oldMemory adds the numbers of the older tree that mean the same.
func oldMemory(dir string, m *usage.Memory) *usage.Memory {
	if m == nil {
		m = &usage.Memory{}
	}
	usage.ReadTable(filepath.Join(dir, "memory.stat"), map[string]**uint64{
		"total_rss": &m.Anonymous, "total_cache": &m.File, "total_shmem": &m.Shmem, "total_mapped_file": &m.FileMapped,
		"total_dirty": &m.FileDirty, "total_writeback": &m.FileWriteback, "total_pgfault": &m.Faults, "total_pgmajfault": &m.MajorFaults,
		"total_swap": &m.Swap,
	}, 1)
	m.Peak = usage.ReadNumber(filepath.Join(dir, "memory.max_usage_in_bytes"))
	var kill *uint64
	usage.ReadTable(filepath.Join(dir, "memory.oom_control"), map[string]**uint64{"oom_kill": &kill}, 1)
	m.OOMKillEvents = value(kill)
	return m
}

func ioOf(dir string) *usage.IO {
	i := &usage.IO{Pressure: usage.ReadPressure(filepath.Join(dir, "io.pressure"))}
	data, err := os.ReadFile(filepath.Join(dir, "io.stat"))
	if err != nil {
		if i.Pressure == nil {
			return nil
		}
		return i
	}
	places := map[string]**uint64{
		"rbytes": &i.ReadBytes, "wbytes": &i.WriteBytes, "dbytes": &i.DiscardBytes, "rios": &i.Reads, "wios": &i.Writes, "dios": &i.Discards,
	}
	for line := range strings.Lines(string(data)) { // one for each disk
		for _, pair := range strings.Fields(line) {
			name, n, _ := strings.Cut(pair, "=")
			add(places[name], n)
		}
	}
	return i
}

// add adds a number to that in a place; nil is none.
func add(place **uint64, text string) {
	n, err := strconv.ParseUint(text, 10, 64)
	if place == nil || err != nil {
		return
	}
	if *place != nil {
		n += **place
	}
	*place = &n
}

// oldIO adds the numbers of the older tree.
func oldIO(dir string, i *usage.IO) *usage.IO {
	if i == nil {
		i = &usage.IO{}
	}
	read := func(file string, places map[string]**uint64) {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(data)) { // disk, what, number
			if f := strings.Fields(line); len(f) == 3 {
				add(places[f[1]], f[2])
			}
		}
	}
	read("blkio.throttle.io_service_bytes_recursive", map[string]**uint64{"Read": &i.ReadBytes, "Write": &i.WriteBytes, "Discard": &i.DiscardBytes})
	read("blkio.throttle.io_serviced_recursive", map[string]**uint64{"Read": &i.Reads, "Write": &i.Writes, "Discard": &i.Discards})
	if *i == (usage.IO{}) {
		return nil
	}
	return i
}

func pidsOf(dir string) *usage.PIDs {
	n := usage.ReadNumber(filepath.Join(dir, "pids.current"))
	if n == nil {
		return nil
	}
	return &usage.PIDs{Current: n}
}
